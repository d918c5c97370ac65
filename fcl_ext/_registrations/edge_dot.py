# SPDX-License-Identifier: Apache-2.0
"""Shape inference and autocast of edge_dot; its own gradient raises (no caller needs one)."""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext._registrations.common import (
    accumulate_dtype,
    check_dtype,
    check_floating,
    check_same_device,
    check_shape,
    register_autograd,
    register_float32_autocast,
)
from fcl_ext._registrations.csr_transpose import check_csr


@torch.library.register_fake("fcl::edge_dot")
def _fake(crow_indices: Tensor, col_indices: Tensor, left: Tensor, right: Tensor) -> Tensor:
    op = "edge_dot"
    check_csr(op, crow_indices, col_indices)
    check_floating(op, "left", left)
    check_shape(op, "left", left, "[N, D]", (crow_indices.shape[0] - 1, None))
    check_same_device(op, "left", left, crow_indices)
    check_dtype(op, "right", right, left.dtype)
    check_shape(op, "right", right, "[M, D]", (None, left.shape[1]))
    check_same_device(op, "right", right, crow_indices)
    return left.new_empty((col_indices.shape[0],), dtype=accumulate_dtype(left.dtype))


def _backward(_ctx: object, _grad: Tensor) -> None:
    raise RuntimeError("fcl::edge_dot: it has no gradient")


register_autograd("edge_dot", _backward)
register_float32_autocast("edge_dot")
