# SPDX-License-Identifier: Apache-2.0
"""Shape inference of graph_prepare; formulas: csrc/ops/graph_prepare.h."""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext._registrations.common import check_dtype, check_same_device, check_shape
from fcl_ext._registrations.csr_transpose import check_csr, check_num_nodes


@torch.library.register_fake("fcl::graph_prepare")
def _fake(
    crow_indices: Tensor, col_indices: Tensor, order: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "graph_prepare"
    check_csr(op, crow_indices, col_indices)
    check_num_nodes(op, crow_indices)
    num_nodes = crow_indices.shape[0] - 1
    if order is not None:
        check_dtype(op, "order", order, torch.int64)
        check_shape(op, "order", order, "[N]", (num_nodes,))
        check_same_device(op, "order", order, crow_indices)
    return (
        crow_indices.new_empty((num_nodes,)),
        torch.empty_like(crow_indices, memory_format=torch.contiguous_format),
        torch.empty_like(col_indices, memory_format=torch.contiguous_format),
        crow_indices.new_empty((col_indices.shape[0],)),
    )
