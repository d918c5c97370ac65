# SPDX-License-Identifier: Apache-2.0
"""Autograd of the losses that are a difference of two readouts, or of one and a target.

Their gradient is a difference, too. It is taken in the dtype that the kernels accumulate in, and
rounded to that of the inputs once: each term on its own in a half type would leave of a small
difference nothing but rounding. ``differentiate`` is whether gradients are enabled, which they
never are inside of ``forward``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fcl_ext import ops
from fcl_ext._bank_gradient import bank_gradient
from fcl_ext._derivatives import differentiable_once
from fcl_ext._frozen import packed_prototypes


class TargetLoss(torch.autograd.Function):
    """``lse - s x.t`` of each row, with gradients to embeddings, prototypes and targets."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        prototypes: Tensor,
        targets: Tensor,
        scale: float,
        normalize: bool,
        differentiate: bool,
    ) -> Tensor:
        need_embeddings = differentiate and ctx.needs_input_grad[0]
        packed = packed_prototypes(prototypes, normalize)
        logsumexp, mean = ops.softmax_readout(
            embeddings, prototypes, None, None, scale, need_embeddings, normalize, *packed
        )
        wide = targets.to(logsumexp.dtype)
        grad = scale * (mean - wide) if need_embeddings else None
        ctx.save_for_backward(embeddings, prototypes, targets, logsumexp, grad)
        ctx.scale, ctx.normalize = scale, normalize
        return logsumexp - scale * (embeddings.to(wide.dtype) * wide).sum(1)

    @staticmethod
    @differentiable_once("compat_loss")
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, prototypes, targets, logsumexp, grad = ctx.saved_tensors
        _, need_prototypes, need_targets = ctx.needs_input_grad[:3]
        grad_embeddings = grad_prototypes = grad_targets = None
        if grad is not None:
            grad_embeddings = (grad * grad_losses[:, None]).to(embeddings.dtype)
        if need_prototypes:
            grad_prototypes = ops.softmax_readout_backward(
                *(embeddings, prototypes, None, None, logsumexp, grad_losses, None, ctx.scale),
                *(False, True, False, ctx.normalize),
            )[1].to(prototypes.dtype)
        if need_targets:
            wide = embeddings.to(grad_losses.dtype)
            grad_targets = (-ctx.scale * grad_losses[:, None] * wide).to(targets.dtype)
        return grad_embeddings, grad_prototypes, grad_targets, None, None, None


class SupconLoss(torch.autograd.Function):
    r"""``lse - lse_positive`` of each row, with gradients to embeddings and bank.

    With ``apart``, the dense pass leaves the positives out and the loss is
    :math:`\log(1 + e^{\ell_{negative} - \ell_{positive}})`: of a row that is nearly right, both the
    loss and its gradient would otherwise be differences of numbers that hardly differ. It needs
    positives that count once each, without weights, in order, and a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        bank: Tensor,
        labels: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        log_weights: Tensor | None,
        scale: float,
        normalize: bool,
        apart: bool,
        differentiate: bool,
    ) -> Tensor:
        need_embeddings = differentiate and ctx.needs_input_grad[0]
        packed = packed_prototypes(bank, normalize)
        exclude = (labels, crow_indices, col_indices) if apart else (None, None, None)
        others, mean = ops.softmax_readout(
            *(embeddings, bank, None, exclude[0], scale, need_embeddings, normalize),
            *(*packed, *exclude[1:]),
        )
        positive, positive_mean = ops.sparse_readout(
            *(embeddings, bank, labels, crow_indices, col_indices, log_weights),
            *(scale, need_embeddings, normalize),
        )
        difference = others - positive
        # Weight of the other rows in the gradient; without `apart` they are all rows.
        share = torch.sigmoid(difference) if apart else torch.ones_like(difference)
        grad = scale * share[:, None] * (mean - positive_mean) if need_embeddings else None
        ctx.save_for_backward(
            *(embeddings, bank, labels, crow_indices, col_indices, log_weights),
            *(others, positive, share, grad),
        )
        ctx.options = scale, normalize, apart
        # Not softplus, which is linear from 20 on: that would cost float64 its last digits.
        zeros = torch.zeros_like(difference)
        return torch.logaddexp(zeros, difference) if apart else difference

    @staticmethod
    @differentiable_once("compat_supcon")
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, bank, labels, crow, col, log_weights, others, positive, share, grad = (
            ctx.saved_tensors
        )
        scale, normalize, apart = ctx.options
        grad_embeddings = grad_bank = None
        if grad is not None:
            grad_embeddings = (grad * grad_losses[:, None]).to(embeddings.dtype)
        if ctx.needs_input_grad[1]:
            exclude = (labels, crow, col) if apart else (None, None, None)
            coefficient = share * grad_losses
            through_others = ops.softmax_readout_backward(
                *(embeddings, bank, None, exclude[0], others, coefficient, None, scale),
                *(False, True, False, normalize, *exclude[1:]),
            )[1]
            through_positives = bank_gradient(
                *(embeddings, bank, labels, crow, col, log_weights, positive, coefficient),
                *(scale, normalize),
            )
            grad_bank = (through_others - through_positives).to(bank.dtype)
        return grad_embeddings, grad_bank, *(None,) * 8
