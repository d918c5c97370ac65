# SPDX-License-Identifier: Apache-2.0
"""Shape inference of csr_transpose, and the graph checks every op on a CSR shares."""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext._registrations.common import (
    INT32_MAX,
    check_dtype,
    check_same_device,
    check_shape,
    dtype_name,
)


def check_csr(op: str, crow_indices: Tensor, col_indices: Tensor) -> None:
    """Refuse what check_csr of csrc/ops/csr_transpose.h refuses; entries are not looked at."""
    check_dtype(op, "crow_indices", crow_indices, torch.int64)
    torch._check(
        crow_indices.dim() == 1 and crow_indices.shape[0] > 0,
        lambda: (
            f"fcl::{op}: expected crow_indices of shape [N + 1], got {list(crow_indices.shape)}"
        ),
    )
    torch._check(
        col_indices.dtype in (torch.int32, torch.int64),
        lambda: (
            f"fcl::{op}: expected col_indices of dtype int32 or int64, "
            f"got {dtype_name(col_indices.dtype)}"
        ),
    )
    check_shape(op, "col_indices", col_indices, "[E]", (None,))
    check_same_device(op, "col_indices", col_indices, crow_indices)


def check_num_nodes(op: str, crow_indices: Tensor) -> None:
    """Refuse more nodes than int32 can number."""
    num_nodes = crow_indices.shape[0] - 1
    torch._check(
        num_nodes <= INT32_MAX,
        lambda: f"fcl::{op}: expected at most 2^31 - 1 nodes, got {num_nodes}",
    )


@torch.library.register_fake("fcl::csr_transpose")
def _fake(
    crow_indices: Tensor, col_indices: Tensor, num_columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    op = "csr_transpose"
    check_csr(op, crow_indices, col_indices)
    torch._check(
        num_columns >= 0, lambda: f"fcl::{op}: expected num_columns >= 0, got {num_columns}"
    )
    num_rows, num_edges = crow_indices.shape[0] - 1, col_indices.shape[0]
    if num_columns == 0:
        torch._check(
            num_edges == 0,
            lambda: f"fcl::{op}: expected no edges in a matrix without columns, got {num_edges}",
        )
    if col_indices.dtype == torch.int32:
        torch._check(
            num_rows <= INT32_MAX,
            lambda: (
                f"fcl::{op}: expected at most 2^31 - 1 rows with int32 col_indices, got {num_rows}"
            ),
        )
    return (
        crow_indices.new_empty((num_columns + 1,)),
        torch.empty_like(col_indices, memory_format=torch.contiguous_format),
        crow_indices.new_empty((num_edges,)),
    )
