# SPDX-License-Identifier: Apache-2.0
"""Autograd of compat_loss: the op has computed the gradients, backward only hands them out.

A ``torch.autograd.Function`` rather than a registered formula, because around a loss of a few
microseconds the latter's bookkeeping would cost as much again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fcl_ext import ops
from fcl_ext._derivatives import differentiable_once
from fcl_ext._frozen import packed_prototypes
from fcl_ext._logits import room_for_logits
from fcl_ext._loss_checks import can_look

# Prototypes, and logits, up to so many numbers get their gradient in the forward call: on two
# hundred classes a second call and what it takes to get there cost as much as the gradient. A
# forward pass without a backward one then wastes a few microseconds.
_SMALL = 2**18


class CompatLoss(torch.autograd.Function):
    """``ops.compat_loss`` with gradients to embeddings and prototypes."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        prototypes: Tensor,
        labels: Tensor,
        mean_prototype: Tensor | None,
        scale: float,
        margin: float,
        arcface: bool,
        label_smoothing: float,
        normalize: bool,
        ignore_index: int,
        reduction: str,
        differentiate: bool,
    ) -> Tensor:
        # Gradients are never enabled inside of forward: the caller says whether they are.
        need_embeddings = differentiate and ctx.needs_input_grad[0]
        need_prototypes = differentiate and ctx.needs_input_grad[1]
        # Not needed for the gradients, but to refuse theirs (differentiable_once).
        inputs = (
            embeddings if need_embeddings else None,
            prototypes if need_prototypes else None,
        )
        ctx.dtype = embeddings.dtype
        ctx.options = (scale, label_smoothing, normalize, ignore_index)
        # In any case: it forgets what was kept of prototypes that are in training now.
        packed, squared_norms = packed_prototypes(prototypes, normalize)
        both = need_embeddings and need_prototypes and reduction != "none"
        if both and prototypes.dim() == embeddings.dim() == 2:  # other shapes are refused below
            num_classes, dim = prototypes.shape
            if num_classes * max(dim, len(embeddings)) <= _SMALL:
                loss, grad, grad_prototypes = ops.compat_loss_gradients(
                    embeddings,
                    prototypes,
                    labels,
                    mean_prototype,
                    scale,
                    margin,
                    arcface,
                    label_smoothing,
                    normalize,
                    ignore_index,
                    reduction,
                )
                ctx.save_for_backward(*inputs, grad, None, grad_prototypes)
                return loss
        logits = room_for_logits(embeddings, prototypes) if need_prototypes else None
        loss, grad, unit, state = ops.compat_loss(
            embeddings,
            prototypes,
            labels,
            mean_prototype,
            scale,
            margin,
            arcface,
            label_smoothing,
            normalize,
            ignore_index,
            reduction,
            need_embeddings,
            need_prototypes,
            logits,
            packed,
            squared_norms,
        )
        if need_prototypes:
            rows = unit if normalize else embeddings
            ctx.save_for_backward(*inputs, grad, labels, rows, state, logits)
        else:
            ctx.save_for_backward(*inputs, grad, labels if reduction == "none" else None)
        return loss

    @staticmethod
    @differentiable_once("compat_loss")
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad_loss), *(None,) * 10


def _gradients(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """To embeddings and prototypes."""
    need_embeddings, need_prototypes = ctx.needs_input_grad[:2]
    _, prototypes, grad, labels, *rest = ctx.saved_tensors
    scale, label_smoothing, normalize, ignore_index = ctx.options
    grad_embeddings: Tensor | None = None
    if need_embeddings:
        factor = grad_loss
        if grad_loss.dim() > 0:
            # An ignored row has no say, whatever the gradient of its loss: NaN times 0 is one.
            factor = grad_loss.masked_fill(labels == ignore_index, 0)[:, None]
        grad_embeddings = _times(grad, factor).to(ctx.dtype)
    grad_prototypes: Tensor | None = None
    if len(rest) == 1:
        grad_prototypes = _times(rest[0], grad_loss).to(ctx.dtype)
    elif need_prototypes:
        rows, state, logits = rest
        grad_prototypes = ops.compat_loss_backward(
            rows,
            prototypes,
            labels,
            state,
            grad_loss,
            scale,
            label_smoothing,
            normalize,
            ignore_index,
            logits,
        ).to(prototypes.dtype)
    return grad_embeddings, grad_prototypes


def _times(grad: Tensor, factor: Tensor) -> Tensor:
    """The product; of ``loss.backward()`` itself, whose factor is 1, without work.

    What the graph keeps is then what it hands out: whoever writes into it and goes back again, with
    ``retain_graph``, is told so by torch; not if torch could not see it (``.data``).
    """
    return grad if _is_one(factor) else grad * factor


def _is_one(factor: Tensor) -> bool:
    if factor.dim() > 0 or not can_look(factor):
        return False
    try:
        return bool(factor.item() == 1)
    except RuntimeError:  # several at once (is_grads_batched), or a number that is traced
        return False
