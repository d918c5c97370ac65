# SPDX-License-Identifier: Apache-2.0
"""Room for the logits that a loss keeps from its forward pass for the gradient to the prototypes.

One block of memory stays from step to step. Fresh memory of that size comes from the system page by
page, each cleared first: that would take a fifth of a training step.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np
import torch
from torch import Tensor

#: Bytes of logits a loss may keep. Above that they are computed again: half as much work once
#: more, but no memory.
LOGITS_CAP = 512 * 2**20
_ROWS = 128
# Smaller ones the allocator has at hand.
_SMALLEST_KEPT = 2**22


class _Kept:
    """At most one block that nobody uses at the moment."""

    def __init__(self) -> None:
        self._block: np.ndarray | None = None
        # Blocks come back whenever a tensor is freed, so also inside of a call of this class.
        self._lock = threading.RLock()

    def take(self, size: int) -> np.ndarray:
        """At least ``size`` float32 numbers, uninitialised."""
        with self._lock:
            block, self._block = self._block, None
        if block is None or len(block) < size:
            block = np.empty(size, dtype=np.float32)
        return block

    def give(self, block: np.ndarray) -> None:
        """Take a block back; the larger of two stays."""
        with self._lock:
            if self._block is None or len(self._block) < len(block):
                self._block = block


_kept = _Kept()


def room_for_logits(embeddings: Tensor, prototypes: Tensor) -> Tensor | None:
    """Uninitialised (N / 128, C, 128) float32 as ``ops.compat_loss`` wants it.

    None where the op takes none (other dtypes and devices), where a compiler traces, or above
    `LOGITS_CAP`.
    """
    fits = embeddings.dtype == torch.float32 and embeddings.device.type == "cpu"
    if not fits or torch.compiler.is_compiling():
        return None
    shape = (-(-len(embeddings) // _ROWS), len(prototypes), _ROWS)
    size = shape[0] * shape[1] * shape[2]
    if 4 * size > LOGITS_CAP:
        return None
    if 4 * size < _SMALLEST_KEPT:
        return embeddings.new_empty(shape)
    block = _kept.take(size)
    # The tensor holds this array, not the block: when the last tensor of it is freed, the array is,
    # and the block goes back. A graph that is kept for a second backward keeps its logits.
    part = block[:size]
    weakref.finalize(part, _kept.give, block).atexit = False
    return torch.from_numpy(part).view(shape)
