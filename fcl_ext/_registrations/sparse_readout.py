# SPDX-License-Identifier: Apache-2.0
"""Shape inference, autograd, autocast of sparse_readout; formulas: csrc/ops/sparse_readout.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fcl_ext._bank_gradient import bank_gradient
from fcl_ext._registrations.common import (
    accumulate_dtype,
    check_dtype,
    check_floating,
    check_same_device,
    check_scale,
    check_shape,
    refuse_double_backward,
    register_autograd,
    register_float32_autocast,
)


def _check_bank(op: str, embeddings: Tensor, rows: Tensor, scale: float) -> None:
    check_floating(op, "embeddings", embeddings)
    check_shape(op, "embeddings", embeddings, "[N, D]", (None, None))
    check_dtype(op, "rows", rows, embeddings.dtype)
    check_shape(op, "rows", rows, "[R, D]", (None, embeddings.shape[1]))
    check_same_device(op, "rows", rows, embeddings)
    check_scale(op, scale)


def _check_vector(
    op: str,
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    letters: str,
    size: int | None,
    reference: Tensor,
) -> None:
    check_dtype(op, name, tensor, dtype)
    check_shape(op, name, tensor, letters, (size,))
    check_same_device(op, name, tensor, reference)


def _check_not_empty(op: str, name: str, crow: Tensor) -> None:
    torch._check(crow.shape[0] > 0, lambda: f"fcl::{op}: expected {name} of shape [L + 1], got [0]")


@torch.library.register_fake("fcl::sparse_readout")
def _fake(
    embeddings: Tensor,
    rows: Tensor,
    labels: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    log_weights: Tensor | None,
    scale: float,
    need_mean: bool,
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    op = "sparse_readout"
    _check_bank(op, embeddings, rows, scale)
    num_queries, dim = embeddings.shape
    dtype = accumulate_dtype(embeddings.dtype)
    for name, tensor, letters, size in (
        ("labels", labels, "[N]", num_queries),
        ("crow_indices", crow_indices, "[L + 1]", None),
        ("col_indices", col_indices, "[E]", None),
    ):
        _check_vector(op, name, tensor, torch.int64, letters, size, embeddings)
    _check_not_empty(op, "crow_indices", crow_indices)
    if log_weights is not None:
        num_edges = col_indices.shape[0]
        _check_vector(op, "log_weights", log_weights, dtype, "[E]", num_edges, embeddings)
    return (
        embeddings.new_empty((num_queries,), dtype=dtype),
        embeddings.new_empty((num_queries if need_mean else 0, dim), dtype=dtype),
    )


@torch.library.register_fake("fcl::sparse_readout_backward_rows")
def _fake_backward_rows(
    embeddings: Tensor,
    rows: Tensor,
    logsumexp: Tensor,
    coefficient: Tensor,
    row_crow: Tensor,
    row_labels: Tensor,
    row_log_weights: Tensor | None,
    query_crow: Tensor,
    query_index: Tensor,
    scale: float,
    normalize: bool = False,
) -> Tensor:
    op = "sparse_readout_backward_rows"
    _check_bank(op, embeddings, rows, scale)
    dtype = accumulate_dtype(embeddings.dtype)
    for name, tensor in (("logsumexp", logsumexp), ("coefficient", coefficient)):
        _check_vector(op, name, tensor, dtype, "[N]", embeddings.shape[0], embeddings)
    for name, tensor, letters, size in (
        ("row_crow", row_crow, "[R + 1]", rows.shape[0] + 1),
        ("row_labels", row_labels, "[E]", None),
        ("query_crow", query_crow, "[L + 1]", None),
        ("query_index", query_index, "[M]", None),
    ):
        _check_vector(op, name, tensor, torch.int64, letters, size, embeddings)
    _check_not_empty(op, "query_crow", query_crow)
    if row_log_weights is not None:
        num_edges = row_labels.shape[0]
        _check_vector(op, "row_log_weights", row_log_weights, dtype, "[E]", num_edges, embeddings)
    return embeddings.new_empty(tuple(rows.shape), dtype=dtype)


def _setup_context(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, float, bool, bool],
    output: tuple[Tensor, Tensor],
) -> None:
    embeddings, rows, labels, crow_indices, col_indices, log_weights, *options = inputs
    logsumexp, mean = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        embeddings, rows, labels, crow_indices, col_indices, log_weights, logsumexp, mean
    )
    ctx.scale, ctx.need_mean, ctx.normalize = options


def _backward(
    ctx: Any, grad_logsumexp: Tensor | None, grad_mean: Tensor | None
) -> tuple[Tensor | None, ...]:
    embeddings, rows, labels, crow_indices, col_indices, log_weights, logsumexp, mean = (
        ctx.saved_tensors
    )
    if ctx.needs_input_grad[5]:
        raise RuntimeError("fcl::sparse_readout: log_weights have no gradient; detach them")
    if grad_mean is not None and ctx.need_mean:
        raise RuntimeError("fcl::sparse_readout: its second output, mean, has no gradient")
    nothing: tuple[Tensor | None, ...] = (None,) * 9
    if grad_logsumexp is None:
        return nothing
    grad_embeddings: Tensor | None = None
    if ctx.needs_input_grad[0]:
        if not ctx.need_mean:
            raise RuntimeError(
                "fcl::sparse_readout: the gradient to embeddings needs need_mean=True"
            )
        grad_embeddings = (ctx.scale * grad_logsumexp[:, None] * mean).to(embeddings.dtype)
    grad_rows: Tensor | None = None
    if ctx.needs_input_grad[1]:
        grad_rows = bank_gradient(
            embeddings,
            rows,
            labels,
            crow_indices,
            col_indices,
            log_weights,
            logsumexp,
            grad_logsumexp,
            ctx.scale,
            ctx.normalize,
        ).to(rows.dtype)
    return (grad_embeddings, grad_rows, *nothing[2:])


register_autograd("sparse_readout", _backward, setup_context=_setup_context)
refuse_double_backward("sparse_readout_backward_rows")
register_float32_autocast("sparse_readout")
