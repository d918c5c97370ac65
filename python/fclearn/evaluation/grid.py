# SPDX-License-Identifier: Apache-2.0
r"""Vectors rounded to a grid on which their products are exact.

Rankings must not depend on how the work is cut into blocks, but a matrix product rounds differently
for every shape, thread count and BLAS. So vectors are first scaled to norm at most 1 and rounded to
multiples of :math:`2^{-26}` (finer than what float32 resolves near 1). Products of such numbers are
multiples of :math:`2^{-52}`, and by Cauchy-Schwarz no partial sum exceeds 1, so float64 represents
every one of them: the product is *exact*, in whatever order it is summed, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

# l2 adds three products, which leaves two bits less than one product has.
_BITS = {"cosine": 26, "ip": 26, "l2": 25}
# Numbers at once: they and their squares stay in the cache.
_ELEMENTS = 2**17


def to_grid(rows: Tensor, metric: str = "cosine") -> Tensor:
    """Round rows of norm at most 1 to the grid of a metric, in place.

    Args:
        rows: Shape ``(n, D)``, float64; changed.
        metric: ``"cosine"``, ``"ip"`` or ``"l2"``.

    Returns:
        The same tensor.
    """
    grid = 2.0 ** _BITS[metric]
    return rows.mul_(grid).round_().div_(grid)


def row_norms(rows: Tensor) -> Tensor:
    """Norm of each row, ``(n,)``, summed in one fixed order so that no block shape can change it.

    Args:
        rows: Shape ``(n, D)``, float64.

    Example:
        >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [5.0, 0.0]
    """
    step = max(1, _ELEMENTS // max(rows.shape[1], 1))
    return torch.cat([_norms_at_once(part) for part in rows.split(step)])


def _norms_at_once(rows: Tensor) -> Tensor:
    squares = rows * rows
    while squares.shape[1] > 1:
        half = (squares.shape[1] + 1) // 2
        tail = squares[:, half:]
        squares[:, : tail.shape[1]] += tail
        squares = squares[:, :half]
    return squares[:, 0].sqrt()
