# SPDX-License-Identifier: Apache-2.0
"""Shape inference, autograd, autocast of softmax_readout; formulas: csrc/ops/softmax_readout.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fcl_ext import ops
from fcl_ext._registrations.common import (
    accumulate_dtype,
    check_classes,
    check_dtype,
    check_floating,
    check_same_device,
    check_scale,
    check_shape,
    refuse_double_backward,
    register_autograd,
    register_float32_autocast,
)
from fcl_ext._registrations.pack_prototypes import check_packed, check_packed_device


def _check(
    op: str,
    embeddings: Tensor,
    prototypes: Tensor,
    values: Tensor | None,
    exclude: Tensor | None,
    exclude_crow: Tensor | None,
    exclude_col: Tensor | None,
    scale: float,
) -> None:
    check_floating(op, "embeddings", embeddings)
    check_shape(op, "embeddings", embeddings, "[N, D]", (None, None))
    check_dtype(op, "prototypes", prototypes, embeddings.dtype)
    check_shape(op, "prototypes", prototypes, "[C, D]", (None, embeddings.shape[1]))
    check_same_device(op, "prototypes", prototypes, embeddings)
    check_classes(op, prototypes)
    if values is not None:
        check_dtype(op, "values", values, embeddings.dtype)
        check_shape(op, "values", values, "[C, Dv]", (prototypes.shape[0], None))
        check_same_device(op, "values", values, embeddings)
        torch._check(
            values.shape[1] > 0,
            lambda: f"fcl::{op}: expected values with at least one dim, got {list(values.shape)}",
        )
    if exclude is not None:
        check_dtype(op, "exclude", exclude, torch.int64)
        check_shape(op, "exclude", exclude, "[N]", (embeddings.shape[0],))
        check_same_device(op, "exclude", exclude, embeddings)
    torch._check(
        (exclude_crow is None) == (exclude_col is None)
        and (exclude is not None or exclude_crow is None),
        lambda: f"fcl::{op}: expected exclude with both of exclude_crow and exclude_col, or none",
    )
    if exclude_crow is not None and exclude_col is not None:
        check_dtype(op, "exclude_crow", exclude_crow, torch.int64)
        check_shape(op, "exclude_crow", exclude_crow, "[L + 1]", (None,))
        check_same_device(op, "exclude_crow", exclude_crow, embeddings)
        torch._check(
            exclude_crow.shape[0] > 0,
            lambda: f"fcl::{op}: expected exclude_crow of shape [L + 1], got [0]",
        )
        check_dtype(op, "exclude_col", exclude_col, torch.int64)
        check_shape(op, "exclude_col", exclude_col, "[E]", (None,))
        check_same_device(op, "exclude_col", exclude_col, embeddings)
    check_scale(op, scale)
    torch._check(
        exclude_crow is None or embeddings.device.type != "cuda",
        lambda: f"fcl::{op}: sets of classes are left out on the CPU only",
    )


@torch.library.register_fake("fcl::softmax_readout")
def _fake(
    embeddings: Tensor,
    prototypes: Tensor,
    values: Tensor | None,
    exclude: Tensor | None,
    scale: float,
    need_mean: bool,
    normalize: bool = False,
    packed: Tensor | None = None,
    squared_norms: Tensor | None = None,
    exclude_crow: Tensor | None = None,
    exclude_col: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    op = "softmax_readout"
    check_packed_device(op, packed, prototypes)
    _check(op, embeddings, prototypes, values, exclude, exclude_crow, exclude_col, scale)
    check_packed(op, packed, squared_norms, prototypes)
    dtype = accumulate_dtype(embeddings.dtype)
    num_rows = embeddings.shape[0]
    value_dim = (prototypes if values is None else values).shape[1]
    return (
        embeddings.new_empty((num_rows,), dtype=dtype),
        embeddings.new_empty((num_rows if need_mean else 0, value_dim), dtype=dtype),
    )


@torch.library.register_fake("fcl::softmax_readout_backward")
def _fake_backward(
    embeddings: Tensor,
    prototypes: Tensor,
    values: Tensor | None,
    exclude: Tensor | None,
    logsumexp: Tensor,
    coefficient: Tensor,
    grad_mean: Tensor | None,
    scale: float,
    need_embeddings: bool,
    need_prototypes: bool,
    need_values: bool,
    normalize: bool = False,
    exclude_crow: Tensor | None = None,
    exclude_col: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "softmax_readout_backward"
    _check(op, embeddings, prototypes, values, exclude, exclude_crow, exclude_col, scale)
    dtype = accumulate_dtype(embeddings.dtype)
    num_rows, dim = embeddings.shape
    num_classes = prototypes.shape[0]
    value_dim = dim if values is None else values.shape[1]
    for name, tensor in (("logsumexp", logsumexp), ("coefficient", coefficient)):
        check_dtype(op, name, tensor, dtype)
        check_shape(op, name, tensor, "[N]", (num_rows,))
        check_same_device(op, name, tensor, embeddings)
    if grad_mean is not None:
        check_dtype(op, "grad_mean", grad_mean, dtype)
        check_shape(op, "grad_mean", grad_mean, "[N, Dv]", (num_rows, value_dim))
        check_same_device(op, "grad_mean", grad_mean, embeddings)
    return (
        embeddings.new_empty((num_rows if need_embeddings else 0, dim), dtype=dtype),
        embeddings.new_empty((num_classes if need_prototypes else 0, dim), dtype=dtype),
        embeddings.new_empty(
            (num_classes if need_values and values is not None else 0, value_dim), dtype=dtype
        ),
    )


def _setup_context(
    ctx: Any,
    inputs: tuple[Any, ...],
    output: tuple[Tensor, Tensor],
) -> None:
    embeddings, prototypes, values, exclude, scale, need_mean, normalize = inputs[:7]
    logsumexp, mean = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(embeddings, prototypes, values, exclude, *inputs[9:], logsumexp, mean)
    ctx.scale = scale
    ctx.need_mean = need_mean
    ctx.normalize = normalize


def _backward(
    ctx: Any, grad_logsumexp: Tensor | None, grad_mean: Tensor | None
) -> tuple[Tensor | None, ...]:
    embeddings, prototypes, values, exclude, crow, col, logsumexp, mean = ctx.saved_tensors
    need_embeddings, need_prototypes, need_values = ctx.needs_input_grad[:3]
    nothing = (None,) * 11
    if not ctx.need_mean:
        grad_mean = None
    if grad_logsumexp is None and grad_mean is None:
        return nothing
    coefficient = torch.zeros_like(logsumexp) if grad_logsumexp is None else grad_logsumexp
    if grad_mean is not None:
        coefficient = coefficient - (grad_mean * mean).sum(1)
    grad_embeddings: Tensor | None = None
    if need_embeddings and grad_mean is None and values is None and ctx.need_mean:
        # d lse / dx = scale * mean: the forward pass has computed the gradient already. mean is an
        # output of the op, so differentiating this product once more is still right.
        grad_embeddings = (ctx.scale * coefficient[:, None] * mean).to(embeddings.dtype)
        need_embeddings = False
    grad_prototypes: Tensor | None = None
    grad_values: Tensor | None = None
    if need_embeddings or need_prototypes or need_values:
        through_op, to_prototypes, to_values = ops.softmax_readout_backward(
            embeddings,
            prototypes,
            values,
            exclude,
            logsumexp,
            coefficient,
            grad_mean,
            ctx.scale,
            need_embeddings,
            need_prototypes,
            need_values,
            ctx.normalize,
            crow,
            col,
        )
        if need_embeddings:
            grad_embeddings = through_op.to(embeddings.dtype)
        if need_prototypes:
            grad_prototypes = to_prototypes.to(prototypes.dtype)
        if need_values:
            grad_values = to_values.to(prototypes.dtype)
    return grad_embeddings, grad_prototypes, grad_values, *(None,) * 8


register_autograd("softmax_readout", _backward, setup_context=_setup_context)
refuse_double_backward("softmax_readout_backward")
register_float32_autocast("softmax_readout")
