# SPDX-License-Identifier: Apache-2.0
"""Random graphs for the tests of the graph ops."""

from __future__ import annotations

import torch
from torch import Tensor


def random_csr(
    rows: int,
    columns: int,
    edges: int,
    *,
    padding: float = 0.0,
    index: torch.dtype = torch.int64,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Offsets and columns of a random matrix: uneven rows, repeated edges, padding."""
    generator = torch.Generator().manual_seed(seed)
    if edges == 0:
        counts = torch.zeros(rows, dtype=torch.int64)
    else:
        # Squared weights make some rows much longer than others, and leave some empty.
        weights = torch.rand(rows, generator=generator).square() + 1e-6
        owners = torch.multinomial(weights, edges, replacement=True, generator=generator)
        counts = torch.bincount(owners, minlength=rows)
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    col = torch.randint(0, max(columns, 1), (edges,), generator=generator)
    col[torch.rand(edges, generator=generator) < padding] = -1
    return crow.to(device), col.to(index).to(device)


def row_stochastic(
    rows: int,
    edges: int,
    *,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
    **options: object,
) -> tuple[Tensor, Tensor, Tensor]:
    """A square graph whose rows sum to 1, or to 0 where they have no edge."""
    crow, col = random_csr(rows, rows, edges, seed=seed, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed + 1)
    weights = torch.rand(edges, dtype=torch.float64, generator=generator) + 0.1
    row = torch.repeat_interleave(torch.arange(rows), crow.diff())
    weights[col < 0] = 0
    sums = torch.zeros(rows, dtype=torch.float64).index_add(0, row, weights)
    # Padding carries a NaN, which nothing may read.
    values = (weights / sums.clamp(min=1e-30)[row]).masked_fill(col < 0, torch.nan)
    return crow.to(device), col.to(device), values.to(dtype).to(device)
