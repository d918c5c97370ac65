# SPDX-License-Identifier: Apache-2.0
"""A graph in windows of 16 rows, for the tensor cores' walk (docs/walk_cuda.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fcl_ext import cuda_paths, ops

#: Edges per row that a window gathers, from which the tensor cores' walk is asked for: it moves
#: that many times fewer bytes of the state, and more of the graph.
ENOUGH_REUSE = 2.0


@dataclass(frozen=True)
class WalkWindows:
    """What `ops.walk_windows` makes of a graph, with the weights of its edges.

    Attributes:
        window_crow: Slots of each window, int64 ``(W + 1,)``.
        window_col: Column of each slot, -1 for none, int32 ``(S,)``.
        chunk_crow: Edges of each 16 slots, int64 ``(S / 16 + 1,)``.
        positions: Row and slot of each edge, uint8 ``(P,)``.
        values: Weights of the edges, float32 ``(P,)``.
        reuse: Edges per slot that is used, 1 where no row of a window shares a column.
    """

    window_crow: Tensor
    window_col: Tensor
    chunk_crow: Tensor
    positions: Tensor
    values: Tensor
    reuse: float

    @property
    def arrays(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the operator takes, in its order."""
        return (self.window_crow, self.window_col, self.chunk_crow, self.positions, self.values)

    def to(self, device: torch.device | str) -> WalkWindows:
        """Copy on another device."""
        window_crow, window_col, chunk_crow, positions, values = (t.to(device) for t in self.arrays)
        return WalkWindows(window_crow, window_col, chunk_crow, positions, values, self.reuse)

    def walk(self, rows: Tensor, damping: float, num_steps: int, num_bf16_steps: int) -> Tensor:
        """Exactly ``num_steps``; shape and dtype of the rows, which must be finite."""
        return ops.random_walk_union(*self.arrays, rows, damping, num_steps, num_bf16_steps)


def build(crow_indices: Tensor, col_indices: Tensor, values: Tensor) -> WalkWindows:
    """Windows of a graph, on the device of its values.

    Example:
        >>> import torch
        >>> crow, col = torch.tensor([0, 2, 4]), torch.tensor([0, 1, 0, 1])
        >>> build(crow, col, torch.ones(4)).reuse
        2.0
    """
    window_crow, window_col, chunk_crow, positions, edge_order = ops.walk_windows(
        crow_indices.cpu(), col_indices.cpu()
    )
    used = int((window_col >= 0).sum())
    reuse = len(edge_order) / used if used else 1.0
    weights = values.detach().cpu().float()[edge_order]
    windows = WalkWindows(window_crow, window_col, chunk_crow, positions, weights, reuse)
    return windows.to(values.device)


def is_asked() -> bool:
    """Whether walks on CUDA take windows where rows share enough."""
    return cuda_paths.is_taken("random_walk_union", "union")
