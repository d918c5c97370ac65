# SPDX-License-Identifier: Apache-2.0
"""CSR arithmetic on tensors: checks, row-wise softmax, self-loops, symmetric variants."""

from __future__ import annotations

import torch
from torch import Tensor


def check_csr(crow_indices: Tensor, col_indices: Tensor, values: Tensor) -> None:
    """Refuse arrays that are not a square CSR matrix with finite values; ``-1`` columns pad.

    Raises:
        TypeError: A wrong dtype.
        ValueError: Anything else, naming the array and the place.
    """
    if crow_indices.dtype != torch.int64:
        raise TypeError(f"crow_indices: expected int64, got {crow_indices.dtype}")
    if col_indices.dtype not in {torch.int32, torch.int64}:
        raise TypeError(f"col_indices: expected int32 or int64, got {col_indices.dtype}")
    if values.dtype not in {torch.float32, torch.float64}:
        raise TypeError(f"values: expected float32 or float64, got {values.dtype}")
    if crow_indices.ndim != 1 or crow_indices.shape[0] == 0:
        raise ValueError(f"crow_indices: expected shape [N + 1], got {list(crow_indices.shape)}")
    if col_indices.ndim != 1 or col_indices.shape != values.shape:
        raise ValueError(
            "expected col_indices and values of one shape [E], got "
            f"{list(col_indices.shape)} and {list(values.shape)}"
        )
    num_nodes, num_edges = crow_indices.shape[0] - 1, col_indices.shape[0]
    first, last = int(crow_indices[0]), int(crow_indices[-1])
    if first != 0 or last != num_edges:
        raise ValueError(
            f"crow_indices: expected to run from 0 to E = {num_edges}, got {first} to {last}"
        )
    row = _first(crow_indices.diff() < 0)
    if row is not None:
        raise ValueError(f"crow_indices: expected never to decrease, but it does after row {row}")
    edge = _first((col_indices < -1) | (col_indices >= num_nodes))
    if edge is not None:
        raise ValueError(
            f"col_indices: expected values in [0, {num_nodes}) or -1, got "
            f"{int(col_indices[edge])} at edge {edge}"
        )
    edge = _first(~values.detach().isfinite())
    if edge is not None:
        raise ValueError(f"values: expected finite numbers, got {values[edge]:g} at edge {edge}")


def _first(mask: Tensor) -> int | None:
    return int(mask.nonzero()[0]) if bool(mask.any()) else None


def offsets(counts: Tensor) -> Tensor:
    """Row offsets ``(N + 1,)`` of rows with these counts."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def spread(per_row: Tensor, crow_indices: Tensor) -> Tensor:
    """One value per row -> one per edge."""
    return torch.repeat_interleave(per_row, crow_indices.diff())


def row_of_edge(crow_indices: Tensor) -> Tensor:
    """Row of each edge, int64 ``(E,)``."""
    nodes = torch.arange(crow_indices.shape[0] - 1, device=crow_indices.device)
    return spread(nodes, crow_indices)


def row_sums(per_edge: Tensor, crow_indices: Tensor) -> Tensor:
    """Sum over each row, 0 for empty rows; float only."""
    return torch.segment_reduce(per_edge, "sum", offsets=crow_indices, axis=0, initial=0)


def row_softmax(logits: Tensor, crow_indices: Tensor) -> Tensor:
    """Softmax over each row; the row's maximum is taken out first, so nothing overflows."""
    most = torch.segment_reduce(logits.detach(), "max", offsets=crow_indices, axis=0)
    weights = torch.exp(logits - spread(most, crow_indices))
    return weights / spread(row_sums(weights, crow_indices), crow_indices)


def add_self_loops(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Drop padding, and give every node without an edge one to itself, of value 0."""
    keep = col_indices >= 0
    degree = row_sums(keep.double(), crow_indices).long()
    alone = degree == 0
    if bool(keep.all()) and not bool(alone.any()):
        return crow_indices, col_indices, values
    crow = offsets(degree + alone)
    num_edges = int(crow[-1])
    # An edge moves down by the number of self-loops put in before its row.
    rows = row_of_edge(crow_indices)[keep]
    place = torch.arange(len(rows), device=rows.device) + (alone.cumsum(0) - alone.long())[rows]
    lonely = alone.nonzero()[:, 0]
    col = col_indices.new_empty(num_edges)
    col[place] = col_indices[keep]
    col[crow[:-1][alone]] = lonely.to(col.dtype)
    return crow, col, values.new_zeros(num_edges).index_copy(0, place, values[keep])


def symmetrize(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``D^-1/2 W D^-1/2`` with ``W = (P + P^T) / 2``; every row of P must have an edge."""
    num_nodes = crow_indices.shape[0] - 1
    rows, cols = row_of_edge(crow_indices), col_indices.long()
    keys = torch.cat([rows * num_nodes + cols, cols * num_nodes + rows])
    unique, place = torch.unique(keys, return_inverse=True)
    weights = values.new_zeros(len(unique)).index_add(0, place, torch.cat([values, values]) / 2)
    rows = torch.div(unique, max(num_nodes, 1), rounding_mode="floor")
    cols = unique - rows * num_nodes
    crow = offsets(torch.bincount(rows, minlength=num_nodes))
    scale = row_sums(weights, crow).rsqrt()
    return crow, cols.to(col_indices.dtype), weights * scale[rows] * scale[cols]


def mutual_edges(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The edges whose reverse is an edge too, in their order; padding is dropped."""
    num_nodes = crow_indices.shape[0] - 1
    rows, cols = row_of_edge(crow_indices), col_indices.long()
    keep = (cols >= 0) & torch.isin(rows * num_nodes + cols, cols * num_nodes + rows)
    crow = offsets(torch.bincount(rows[keep], minlength=num_nodes))
    return crow, col_indices[keep], values[keep]


def union_with_reverse(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Every edge in both directions, with the mean of the values there were for the pair.

    Columns ascend within a row; padding is dropped.
    """
    num_nodes = crow_indices.shape[0] - 1
    is_edge = col_indices >= 0
    rows, cols = row_of_edge(crow_indices)[is_edge], col_indices.long()[is_edge]
    keys = torch.cat([rows * num_nodes + cols, cols * num_nodes + rows])
    unique, place, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    both = values[is_edge].repeat(2)
    means = values.new_zeros(len(unique)).index_add(0, place, both) / counts
    rows = torch.div(unique, max(num_nodes, 1), rounding_mode="floor")
    crow = offsets(torch.bincount(rows, minlength=num_nodes))
    return crow, (unique - rows * num_nodes).to(col_indices.dtype), means
