# SPDX-License-Identifier: Apache-2.0
"""Losses that are a difference of two readouts, or of one and a target, with their autograd.

Their gradient is a difference, too. It is taken in the dtype that the kernels accumulate in, and
rounded to that of the inputs once: each term on its own in a half type would leave of a small
difference nothing but rounding.

Each loss is a composition of operators that have gradients of their own. A Function computes it and
keeps its gradient; where nobody wants one, or where a gradient is to be differentiated again, the
composition itself is what torch sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcl_ext import ops
from fcl_ext._bank_gradient import bank_gradient
from fcl_ext._frozen import packed_prototypes


class PositiveRows(NamedTuple):
    """Which rows of a bank are the positives of each query.

    Attributes:
        labels: Set of each query, shape ``(N,)``.
        crow_indices: CSR of the sets.
        col_indices: Rows of the bank.
        log_weights: Of the rows of each set, or None.
        apart: Whether the dense sum leaves them out (see `supcon_losses`).
    """

    labels: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    log_weights: Tensor | None
    apart: bool

    @property
    def exclude(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The sets that `ops.softmax_readout` leaves out."""
        if not self.apart:
            return None, None, None
        return self.labels, self.crow_indices, self.col_indices


def target_losses(
    embeddings: Tensor, prototypes: Tensor, targets: Tensor, scale: float, normalize: bool
) -> Tensor:
    """``lse - s x.t`` of each row, differentiable by all three tensors."""
    inputs = (embeddings, prototypes, targets)
    if _wants_gradient(*inputs):
        losses: Tensor = _TargetLoss.apply(*inputs, scale, normalize)  # type: ignore[no-untyped-call]
        return losses
    return _target_losses(*inputs, scale, normalize, need_mean=False)[0]


def supcon_losses(
    embeddings: Tensor, bank: Tensor, positives: PositiveRows, scale: float, normalize: bool
) -> Tensor:
    r"""``lse - lse_positive`` of each row, differentiable by embeddings and bank.

    With ``apart``, the dense pass leaves the positives out and the loss is
    :math:`\log(1 + e^{\ell_{negative} - \ell_{positive}})`: of a row that is nearly right, both the
    loss and its gradient would otherwise be differences of numbers that hardly differ. It needs
    positives that count once each, without weights, in order, and a CPU.
    """
    if _wants_gradient(embeddings, bank):
        losses: Tensor = _SupconLoss.apply(  # type: ignore[no-untyped-call]
            embeddings, bank, *positives, scale, normalize
        )
        return losses
    return _supcon_losses(embeddings, bank, positives, scale, normalize, need_mean=False)[0]


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _target_losses(
    embeddings: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    scale: float,
    normalize: bool,
    *,
    need_mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses, and the readout they are made of."""
    packed = packed_prototypes(prototypes, normalize)
    logsumexp, mean = ops.softmax_readout(
        embeddings, prototypes, None, None, scale, need_mean, normalize, *packed
    )
    wide = logsumexp.dtype
    return logsumexp - scale * (embeddings.to(wide) * targets.to(wide)).sum(1), logsumexp, mean


class _TargetLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        prototypes: Tensor,
        targets: Tensor,
        scale: float,
        normalize: bool,
    ) -> Tensor:
        inputs, need_embeddings = (embeddings, prototypes, targets), ctx.needs_input_grad[0]
        losses, logsumexp, mean = _target_losses(
            *inputs, scale, normalize, need_mean=need_embeddings
        )
        grad = scale * (mean - targets.to(mean.dtype)) if need_embeddings else None
        ctx.save_for_backward(*inputs, logsumexp, grad)
        ctx.options = scale, normalize
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, prototypes, targets, logsumexp, grad = ctx.saved_tensors
        scale, normalize = ctx.options
        if torch.is_grad_enabled():
            found = _differentiable(
                ctx,
                lambda x, w, t: _target_losses(x, w, t, scale, normalize, need_mean=True)[0],
                (embeddings, prototypes, targets),
                grad_losses,
            )
            return *found, None, None
        _, need_prototypes, need_targets = ctx.needs_input_grad[:3]
        grad_embeddings = grad_prototypes = grad_targets = None
        if grad is not None:
            grad_embeddings = (grad * grad_losses[:, None]).to(embeddings.dtype)
        if need_prototypes:
            grad_prototypes = ops.softmax_readout_backward(
                *(embeddings, prototypes, None, None, logsumexp, grad_losses, None, scale),
                *(False, True, False, normalize),
            )[1].to(prototypes.dtype)
        if need_targets:
            wide = embeddings.to(grad_losses.dtype)
            grad_targets = (-scale * grad_losses[:, None] * wide).to(targets.dtype)
        return grad_embeddings, grad_prototypes, grad_targets, None, None


class _Supcon(NamedTuple):
    losses: Tensor
    difference: Tensor
    logsumexp: Tensor
    mean: Tensor
    positive: Tensor
    positive_mean: Tensor


def _supcon_losses(
    embeddings: Tensor,
    bank: Tensor,
    positives: PositiveRows,
    scale: float,
    normalize: bool,
    *,
    need_mean: bool,
) -> _Supcon:
    """The losses, and what they are made of."""
    labels, crow_indices, col_indices, log_weights, apart = positives
    # First, as it names what is wrong with the sets.
    positive, positive_mean = ops.sparse_readout(
        *(embeddings, bank, labels, crow_indices, col_indices, log_weights),
        *(scale, need_mean, normalize),
    )
    packed = packed_prototypes(bank, normalize)
    exclude, *sets = positives.exclude
    logsumexp, mean = ops.softmax_readout(
        embeddings, bank, None, exclude, scale, need_mean, normalize, *packed, *sets
    )
    difference = logsumexp - positive
    # Not softplus, which is linear from 20 on: that would cost float64 its last digits.
    losses = torch.logaddexp(torch.zeros_like(difference), difference) if apart else difference
    return _Supcon(losses, difference, logsumexp, mean, positive, positive_mean)


class _SupconLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        bank: Tensor,
        labels: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        log_weights: Tensor | None,
        apart: bool,
        scale: float,
        normalize: bool,
    ) -> Tensor:
        need_embeddings, need_bank = ctx.needs_input_grad[:2]
        sets = (labels, crow_indices, col_indices, log_weights)
        found = _supcon_losses(
            *(embeddings, bank, PositiveRows(*sets, apart), scale, normalize),
            need_mean=need_embeddings,
        )
        # Weight of the other rows in the gradient; without `apart` they are all rows.
        difference = found.difference
        share = torch.sigmoid(difference) if apart else torch.ones_like(difference)
        grad = None
        if need_embeddings:
            grad = scale * share[:, None] * (found.mean - found.positive_mean)
        readouts = (found.logsumexp, found.positive, share) if need_bank else (None,) * 3
        ctx.save_for_backward(embeddings, bank, *sets, *readouts, grad)
        ctx.options = apart, scale, normalize
        return found.losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, bank, labels, crow, col, log_weights = ctx.saved_tensors[:6]
        logsumexp, positive, share, grad = ctx.saved_tensors[6:]
        apart, scale, normalize = ctx.options
        positives = PositiveRows(labels, crow, col, log_weights, apart)
        if torch.is_grad_enabled():
            found = _differentiable(
                ctx,
                lambda x, f: _supcon_losses(x, f, positives, scale, normalize, need_mean=True)[0],
                (embeddings, bank),
                grad_losses,
            )
            return *found, *(None,) * 7
        grad_embeddings = grad_bank = None
        if grad is not None:
            grad_embeddings = (grad * grad_losses[:, None]).to(embeddings.dtype)
        if ctx.needs_input_grad[1]:
            exclude, *excluded = positives.exclude
            coefficient = share * grad_losses
            through_others = ops.softmax_readout_backward(
                *(embeddings, bank, None, exclude, logsumexp, coefficient, None, scale),
                *(False, True, False, normalize, *excluded),
            )[1]
            through_positives = bank_gradient(
                *(embeddings, bank, labels, crow, col, log_weights, positive, coefficient),
                *(scale, normalize),
            )
            grad_bank = (through_others - through_positives).to(bank.dtype)
        return grad_embeddings, grad_bank, *(None,) * 7


def _differentiable(
    ctx: Any,
    losses: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    grad_losses: Tensor,
) -> list[Tensor | None]:
    """Gradients as the operators' own formulas have them, which know their derivatives or raise."""
    wanted = [index for index in range(len(inputs)) if ctx.needs_input_grad[index]]
    found = torch.autograd.grad(
        losses(*inputs), [inputs[index] for index in wanted], grad_losses, create_graph=True
    )
    gradients: list[Tensor | None] = [None] * len(inputs)
    for index, gradient in zip(wanted, found, strict=True):
        gradients[index] = gradient
    return gradients
