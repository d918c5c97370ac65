# SPDX-License-Identifier: Apache-2.0
"""Shape inference of csr_transpose, and the graph checks every op on a CSR shares."""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext._registrations.common import check_dtype, check_shape


def check_csr(op: str, crow_indices: Tensor, col_indices: Tensor) -> None:
    """Refuse what check_csr of csrc/ops/csr_transpose.h refuses; entries are not looked at."""
    check_dtype(op, "crow_indices", crow_indices, torch.int64)
    check_shape(op, "crow_indices", crow_indices, "[N + 1]", (None,))
    torch._check(
        crow_indices.shape[0] > 0,
        lambda: f"fcl::{op}: expected crow_indices of shape [N + 1], got [0]",
    )
    torch._check(
        col_indices.dtype in (torch.int32, torch.int64),
        lambda: f"fcl::{op}: expected col_indices of dtype int32 or int64, got {col_indices.dtype}",
    )
    check_shape(op, "col_indices", col_indices, "[E]", (None,))


@torch.library.register_fake("fcl::csr_transpose")
def _fake(
    crow_indices: Tensor, col_indices: Tensor, num_columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    op = "csr_transpose"
    check_csr(op, crow_indices, col_indices)
    torch._check(
        num_columns >= 0, lambda: f"fcl::{op}: expected num_columns >= 0, got {num_columns}"
    )
    return (
        crow_indices.new_empty((num_columns + 1,)),
        torch.empty_like(col_indices, memory_format=torch.contiguous_format),
        crow_indices.new_empty((col_indices.shape[0],)),
    )
