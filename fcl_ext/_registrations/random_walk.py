# SPDX-License-Identifier: Apache-2.0
"""Shape inference, autograd and autocast of the walk (formulas: csrc/ops/random_walk.h)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fcl_ext import ops
from fcl_ext._registrations.common import (
    accumulate_dtype,
    check_damping,
    check_dtype,
    check_floating,
    check_num_steps,
    check_same_device,
    check_shape,
    dtype_name,
    number,
    refuse_double_backward,
    register_autograd,
    register_float32_autocast,
)
from fcl_ext._registrations.csr_transpose import check_csr


def _check(
    op: str,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    features: Tensor,
    damping: float,
) -> None:
    check_csr(op, crow_indices, col_indices)
    check_floating(op, "features", features)
    check_shape(op, "features", features, "[N, D]", (crow_indices.shape[0] - 1, None))
    check_same_device(op, "features", features, crow_indices)
    if not (values.dtype == torch.float32 == accumulate_dtype(features.dtype)):
        check_dtype(op, "values", values, features.dtype)
    check_shape(op, "values", values, "[E]", (col_indices.shape[0],))
    check_same_device(op, "values", values, crow_indices)
    check_damping(op, damping)


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


@torch.library.register_fake("fcl::random_walk")
def _fake(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    features: Tensor,
    damping: float,
    num_steps: int,
) -> Tensor:
    _check("random_walk", crow_indices, col_indices, values, features, damping)
    check_num_steps("random_walk", num_steps)
    return _contiguous_like(features)


@torch.library.register_fake("fcl::random_walk_backward")
def _fake_backward(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    features: Tensor,
    grad_output: Tensor,
    damping: float,
    num_steps: int,
    need_features: bool,
    need_values: bool,
) -> tuple[Tensor, Tensor]:
    op = "random_walk_backward"
    _check(op, crow_indices, col_indices, values, features, damping)
    check_num_steps(op, num_steps)
    check_dtype(op, "grad_output", grad_output, features.dtype)
    check_shape(op, "grad_output", grad_output, "[N, D]", tuple(features.shape))
    check_same_device(op, "grad_output", grad_output, crow_indices)
    num_rows, dim = features.shape
    return (
        features.new_empty((num_rows if need_features else 0, dim)),
        values.new_empty((values.shape[0] if need_values else 0,)),
    )


@torch.library.register_fake("fcl::random_walk_resume")
def _fake_resume(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    state: Tensor,
    features: Tensor,
    damping: float,
    num_steps: int,
    num_bf16_steps: int,
) -> Tensor:
    op = "random_walk_resume"
    _check(op, crow_indices, col_indices, values, features, damping)
    check_num_steps(op, num_steps)
    torch._check(
        features.dtype in (torch.float32, torch.float64),
        lambda: (
            f"fcl::{op}: expected features of dtype float32 or float64, "
            f"got {dtype_name(features.dtype)}"
        ),
    )
    if not (state.dtype == torch.bfloat16 and features.dtype == torch.float32):
        check_dtype(op, "state", state, features.dtype)
    check_shape(op, "state", state, "[N, D]", tuple(features.shape))
    check_same_device(op, "state", state, crow_indices)
    torch._check(
        0 <= num_bf16_steps <= num_steps,
        lambda: (
            f"fcl::{op}: expected num_bf16_steps in [0, num_steps = {num_steps}], "
            f"got {num_bf16_steps}"
        ),
    )
    if num_bf16_steps > 0:
        torch._check(
            features.dtype == torch.float32,
            lambda: (
                f"fcl::{op}: expected features of dtype float32 with num_bf16_steps > 0, "
                f"got {dtype_name(features.dtype)}"
            ),
        )
    dtype = state.dtype if num_steps == 0 else features.dtype
    if num_steps == num_bf16_steps > 0:
        dtype = torch.bfloat16
    return torch.empty_like(features, dtype=dtype, memory_format=torch.contiguous_format)


@torch.library.register_fake("fcl::random_walk_tol")
def _fake_tol(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    features: Tensor,
    damping: float,
    tol: float,
    max_steps: int,
    norm: str,
) -> tuple[Tensor, Tensor]:
    op = "random_walk_tol"
    _check(op, crow_indices, col_indices, values, features, damping)
    torch._check(
        0 < tol < 1,
        lambda: f"fcl::{op}: expected tol in the open interval (0, 1), got {number(tol)}",
    )
    torch._check(max_steps >= 1, lambda: f"fcl::{op}: expected max_steps >= 1, got {max_steps}")
    torch._check(norm in ("max", "sum"), lambda: f"fcl::{op}: expected norm max or sum, got {norm}")
    return _contiguous_like(features), torch.empty((), dtype=torch.int64, device="cpu")


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float, int], output: Tensor
) -> None:
    del output  # iterates are recomputed from the features
    crow_indices, col_indices, values, features, damping, num_steps = inputs
    ctx.save_for_backward(crow_indices, col_indices, values, features)
    ctx.damping = damping
    ctx.num_steps = num_steps


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    crow_indices, col_indices, values, features = ctx.saved_tensors
    need_values, need_features = ctx.needs_input_grad[2:4]
    grad_features, grad_values = ops.random_walk_backward(
        crow_indices,
        col_indices,
        values,
        features,
        grad_output,
        ctx.damping,
        ctx.num_steps,
        need_features,
        need_values,
    )
    return (
        None,
        None,
        grad_values if need_values else None,
        grad_features if need_features else None,
        None,
        None,
    )


def _setup_context_tol(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, float, float, int, str],
    output: tuple[Tensor, Tensor],
) -> None:
    crow_indices, col_indices, values, features, damping, tol, max_steps, norm = inputs
    state, num_steps = output
    ctx.mark_non_differentiable(num_steps)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(crow_indices, col_indices, values, state)
    ctx.num_nodes = features.shape[0]
    ctx.options = (damping, tol, max_steps)
    # The transpose has the rows of P as columns, so the bound that held for P holds for it there.
    ctx.adjoint_norm = "sum" if norm == "max" else "max"


def _backward_tol(
    ctx: Any, grad_state: Tensor | None, _grad_num_steps: Tensor | None
) -> tuple[Tensor | None, ...]:
    nothing: tuple[Tensor | None, ...] = (None,) * 8
    if grad_state is None:
        return nothing
    crow_indices, col_indices, values, state = ctx.saved_tensors
    damping, tol, max_steps = ctx.options
    # Implicit: with A = (1 - l) (I - l P^T)^-1 G, dF = A and dP_e = l / (1 - l) A[row] . Z[col].
    crow_t, col_t, edge_order = ops.csr_transpose(crow_indices, col_indices, ctx.num_nodes)
    adjoint, _ = ops.random_walk_tol(
        crow_t,
        col_t,
        values[edge_order],
        grad_state,
        damping,
        tol,
        max_steps,
        ctx.adjoint_norm,
    )
    grad_values: Tensor | None = None
    if ctx.needs_input_grad[2]:
        dots = ops.edge_dot(crow_indices, col_indices, adjoint, state)
        grad_values = (damping / (1 - damping) * dots).to(values.dtype)
    grad_features = adjoint if ctx.needs_input_grad[3] else None
    return (None, None, grad_values, grad_features, None, None, None, None)


register_autograd("random_walk", _backward, setup_context=_setup_context)
register_autograd("random_walk_tol", _backward_tol, setup_context=_setup_context_tol)


def _backward_resume(_ctx: object, _grad: Tensor) -> None:
    raise RuntimeError("fcl::random_walk_resume: it has no gradient; use random_walk")


register_autograd("random_walk_resume", _backward_resume)
refuse_double_backward("random_walk_backward")
register_float32_autocast("random_walk")
register_float32_autocast("random_walk_tol")
