# SPDX-License-Identifier: Apache-2.0
"""The gradient of the sparse readout to its bank, from what its forward pass has left."""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext import ops


def bank_gradient(
    embeddings: Tensor,
    rows: Tensor,
    labels: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    log_weights: Tensor | None,
    logsumexp: Tensor,
    grad_logsumexp: Tensor,
    scale: float,
    normalize: bool,
) -> Tensor:
    """``sum_i grad_logsumexp_i dlse_i/drows``, (R, D), in the dtype that kernels accumulate in."""
    row_crow, row_labels, edge_order = ops.csr_transpose(crow_indices, col_indices, rows.shape[0])
    # Queries of each label as CSR. Queries without a label (negative) sort first, so the first
    # list starts behind them.
    sorted_labels, query_index = torch.sort(labels, stable=True)
    bounds = torch.arange(crow_indices.shape[0], device=labels.device)
    query_crow = torch.searchsorted(sorted_labels, bounds)
    return ops.sparse_readout_backward_rows(
        embeddings,
        rows,
        logsumexp,
        grad_logsumexp,
        row_crow,
        row_labels,
        None if log_weights is None else log_weights[edge_order],
        query_crow,
        query_index,
        scale,
        normalize,
    )
