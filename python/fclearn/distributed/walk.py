# SPDX-License-Identifier: Apache-2.0
"""Walks of stored features by several processes, each on its own columns: no step exchanges any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fclearn.distributed.shard_files import pieces
from fclearn.distributed.world import World
from fclearn.features import FeatureSource, as_features
from fclearn.graph import KnnGraph
from fclearn.out_of_core import walk_file

#: Columns of a piece: one line of a cache, in float32.
PIECE_COLUMNS = 16


class WalkedColumns:
    """Walked features in files of some columns each.

    Args:
        folder: Where they are.
        num_columns: D.
        piece_columns: Columns of a file.
    """

    def __init__(self, folder: Path, num_columns: int, piece_columns: int = PIECE_COLUMNS) -> None:
        self.folder = folder
        self._ranges = pieces(num_columns, piece_columns)

    def paths(self) -> Iterator[tuple[int, int, Path]]:
        """First column, end, and file of each piece."""
        for begin, end in self._ranges:
            yield begin, end, self.folder / f"columns-{begin:06d}.npy"

    def rows(self, begin: int, end: int) -> NDArray[np.floating]:
        """Rows ``[begin, end)`` of all columns, in memory."""
        parts = [np.load(path, mmap_mode="r")[begin:end] for _, _, path in self.paths()]
        return np.concatenate(parts, axis=1)


def walk_by_all(
    graph: KnnGraph,
    features: FeatureSource,
    folder: Path,
    *,
    world: World,
    damping: float = 0.9,
    num_steps: int,
    memory_bytes: int = 4 << 30,
    piece_columns: int = PIECE_COLUMNS,
) -> WalkedColumns:
    """`fclearn.out_of_core.walk_file` by all processes of a torchrun.

    Equal to the walk of one process up to rounding. A file that is there is done; one that was
    under way goes on behind its last recorded columns.

    Args:
        graph: Normalised, on the CPU; every process holds it.
        features: Shape ``(N, D)``, on a disk that all processes see.
        folder: For the files; made if needed.
        world: Processes.
        damping: As `walk_file`.
        num_steps: As `walk_file`.
        memory_bytes: As `walk_file`, for each process.
        piece_columns: Columns of a piece, at least 1.

    Returns:
        The walked features, on every process.

    Raises:
        ValueError: As `walk_file`.
        OSError: As `walk_file`.
    """
    source = as_features(features)
    walked = WalkedColumns(folder, source.shape[1], piece_columns)
    if world.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        missing = [piece for piece in walked.paths() if not piece[2].exists()]
    missing = world.from_first(missing if world.is_first else [])
    for begin, end, path in missing[world.rank :: world.size]:
        walk_file(
            graph,
            source[:, begin:end],
            path,
            damping=damping,
            num_steps=num_steps,
            memory_bytes=memory_bytes,
        )
    world.barrier()
    return walked
