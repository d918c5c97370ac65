# SPDX-License-Identifier: Apache-2.0
"""Shape inference of class_walk; formulas: csrc/ops/class_walk.h."""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext._registrations.common import (
    check_damping,
    check_dtype,
    check_num_steps,
    check_same_device,
    check_shape,
    number,
    register_autograd,
)
from fcl_ext._registrations.csr_transpose import check_csr


@torch.library.register_fake("fcl::class_walk")
def _fake(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    labels: Tensor,
    num_classes: int,
    damping: float,
    drop: float,
    num_steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "class_walk"
    check_csr(op, crow_indices, col_indices)
    check_dtype(op, "values", values, torch.float32)
    check_shape(op, "values", values, "[E]", (col_indices.shape[0],))
    check_same_device(op, "values", values, crow_indices)
    check_dtype(op, "labels", labels, torch.int64)
    check_shape(op, "labels", labels, "[N]", (crow_indices.shape[0] - 1,))
    check_same_device(op, "labels", labels, crow_indices)
    torch._check(
        0 <= num_classes < 2**31,
        lambda: f"fcl::{op}: expected num_classes in [0, 2^31), got {num_classes}",
    )
    check_damping(op, damping)
    torch._check(0 <= drop < 1, lambda: f"fcl::{op}: expected drop in [0, 1), got {number(drop)}")
    check_num_steps(op, num_steps)
    # How many entries are left depends on the data.
    count = torch.library.get_ctx().new_dynamic_size()
    return (
        torch.empty_like(crow_indices, memory_format=torch.contiguous_format),
        crow_indices.new_empty((count,), dtype=torch.int32),
        values.new_empty((count,)),
    )


def _backward(_ctx: object, *_grads: Tensor | None) -> None:
    raise RuntimeError("fcl::class_walk: it has no gradient")


register_autograd("class_walk", _backward)
