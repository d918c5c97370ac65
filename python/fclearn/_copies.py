# SPDX-License-Identifier: Apache-2.0
"""Rows that are exactly equal: found, and linked to one of them in a graph of the others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fclearn import _csr


def first_equals(rows: Tensor, labels: Tensor | None) -> Tensor:
    """For each row the first row equal to it, int64 ``(N,)``; with labels, of its own class.

    Rows with a negative label have no class, and equal none. -0 equals 0.
    """
    num_rows = rows.shape[0]
    own = torch.arange(num_rows)
    classes = torch.zeros(num_rows, dtype=torch.int64) if labels is None else labels
    # Equal numbers have equal bytes once -0 is 0, and bytes sort as one item.
    numbers = (rows.detach().cpu() + 0).contiguous().view(torch.uint8)
    table = np.concatenate([classes[:, None].view(torch.uint8).numpy(), numbers.numpy()], axis=1)
    items = table.view(np.dtype((np.void, table.shape[1]))).ravel()
    _, first, place = np.unique(items, return_index=True, return_inverse=True)
    return torch.where(classes < 0, own, torch.from_numpy(first[place]))


def link(
    graph: tuple[Tensor, Tensor, Tensor], first: Tensor, rows: Tensor, metric: str
) -> tuple[Tensor, Tensor, Tensor]:
    """A graph of the distinct rows -> one of all rows, where a copy has one edge, to its first.

    Args:
        graph: CSR of the distinct rows, in their order.
        first: Result of `first_equals`.
        rows: All rows, for the similarity of a copy with its equal.
        metric: As in `fclearn.KnnGraph.build`.
    """
    crow, col, values = graph
    first = first.to(col.device)
    is_copy = first != torch.arange(len(first), device=col.device)
    distinct = (~is_copy).nonzero()[:, 0]
    degree = torch.ones_like(first)
    degree[distinct] = crow.diff()
    all_crow = _csr.offsets(degree)
    of_copy = _csr.spread(is_copy, all_crow)
    all_col = col.new_empty(len(of_copy))
    all_values = values.new_empty(len(of_copy))
    # Row by row, each kind of edge comes in its own order.
    all_col[~of_copy] = torch.where(col >= 0, distinct.to(col.dtype)[col.long().clamp(min=0)], -1)
    all_col[of_copy] = first[is_copy].to(col.dtype)
    all_values[~of_copy] = values
    squares = rows.detach()[is_copy].to(values.dtype).square().sum(1)
    if metric == "cosine":
        squares = (rows.detach()[is_copy] != 0).any(1).to(values.dtype)
    all_values[of_copy] = torch.zeros_like(squares) if metric == "l2" else squares
    return all_crow, all_col, all_values
