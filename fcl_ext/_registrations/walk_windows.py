# SPDX-License-Identifier: Apache-2.0
"""Shape inference of walk_windows and random_walk_union; formulas: csrc/ops/walk_windows.h."""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext._registrations.common import (
    check_damping,
    check_dtype,
    check_floating,
    check_num_steps,
    check_same_device,
    check_shape,
    dtype_name,
    register_autograd,
    register_float32_autocast,
)
from fcl_ext._registrations.csr_transpose import check_csr, check_num_nodes


@torch.library.register_fake("fcl::walk_windows")
def _fake(
    crow_indices: Tensor, col_indices: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_csr("walk_windows", crow_indices, col_indices)
    check_num_nodes("walk_windows", crow_indices)
    # How much rows share depends on the data.
    chunks = torch.library.get_ctx().new_dynamic_size()
    num_edges = torch.library.get_ctx().new_dynamic_size()
    num_windows = (crow_indices.shape[0] + 14) // 16
    return (
        crow_indices.new_empty((num_windows + 1,)),
        crow_indices.new_empty((16 * chunks,), dtype=torch.int32),
        crow_indices.new_empty((chunks + 1,)),
        crow_indices.new_empty((num_edges,), dtype=torch.uint8),
        crow_indices.new_empty((num_edges,)),
    )


@torch.library.register_fake("fcl::random_walk_union")
def _fake_union(
    window_crow: Tensor,
    window_col: Tensor,
    chunk_crow: Tensor,
    positions: Tensor,
    values: Tensor,
    features: Tensor,
    damping: float,
    num_steps: int,
    num_bf16_steps: int = 0,
) -> Tensor:
    op = "random_walk_union"
    check_floating(op, "features", features)
    torch._check(
        features.dtype != torch.float64,
        lambda: (
            f"fcl::{op}: expected features of dtype float32, bfloat16 or float16, "
            f"got {dtype_name(features.dtype)}"
        ),
    )
    check_shape(op, "features", features, "[N, D]", (None, None))
    check_dtype(op, "window_crow", window_crow, torch.int64)
    windows = (features.shape[0] + 15) // 16
    check_shape(op, "window_crow", window_crow, "[N / 16 rounded up + 1]", (windows + 1,))
    check_dtype(op, "window_col", window_col, torch.int32)
    check_shape(op, "window_col", window_col, "[S]", (None,))
    slots = window_col.shape[0]
    torch._check(
        slots % 16 == 0,
        lambda: (
            f"fcl::{op}: expected window_col of shape [S] with S a multiple of 16, "
            f"got {list(window_col.shape)}"
        ),
    )
    check_dtype(op, "chunk_crow", chunk_crow, torch.int64)
    check_shape(op, "chunk_crow", chunk_crow, "[S / 16 + 1]", (slots // 16 + 1,))
    check_dtype(op, "positions", positions, torch.uint8)
    check_shape(op, "positions", positions, "[P]", (None,))
    check_dtype(op, "values", values, torch.float32)
    check_shape(op, "values", values, "[P]", (positions.shape[0],))
    for name, tensor in (
        ("window_col", window_col),
        ("chunk_crow", chunk_crow),
        ("positions", positions),
        ("values", values),
        ("features", features),
    ):
        check_same_device(op, name, tensor, window_crow)
    check_damping(op, damping)
    check_num_steps(op, num_steps)
    torch._check(
        0 <= num_bf16_steps <= num_steps,
        lambda: (
            f"fcl::{op}: expected num_bf16_steps in [0, num_steps = {num_steps}], "
            f"got {num_bf16_steps}"
        ),
    )
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _backward(_ctx: object, _grad: Tensor) -> None:
    raise RuntimeError("fcl::random_walk_union: it has no gradient; use random_walk")


register_autograd("random_walk_union", _backward)
register_float32_autocast("random_walk_union")
