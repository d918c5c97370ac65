# SPDX-License-Identifier: Apache-2.0
"""Evaluation by several processes, each ranking its share of the queries: the same numbers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import torch

from fclearn.distributed.collectives import total
from fclearn.distributed.shard_files import Arrays, ShardFiles, pieces
from fclearn.distributed.world import World
from fclearn.evaluation import sharing
from fclearn.evaluation.sharing import Rank, Values
from fclearn.evaluation.types import Ints

# Each piece reads the gallery, so they are few; and of no more queries than are ranked at once.
_PIECES, _FEWEST, _MOST = 64, 256, 65536


@contextmanager
def evaluating_by_all(
    world: World, scratch: Path | None = None, piece_queries: int | None = None
) -> Iterator[None]:
    """While it lasts, `evaluate_retrieval` and all that calls it share their queries.

    Every process must make the same calls, and gets the same results: those of one process, to the
    last bit. Memory per process is that of one.

    Args:
        world: Processes.
        scratch: Folder of this evaluation alone, on a disk that all processes see: finished pieces
            of queries are kept there until the end, so that the same calls go on after a kill. The
            caller names it by all that the numbers depend on. None: nothing is kept.
        piece_queries: Queries of a piece, at least 1; None: as many as make 64 pieces, but 256 to
            65,536.

    Example:
        >>> from fclearn import evaluate_retrieval
        >>> from fclearn.distributed import joined_world
        >>> from fclearn.distributed.evaluation import evaluating_by_all
        >>> with joined_world() as world, evaluating_by_all(world):  # doctest: +SKIP
        ...     evaluate_retrieval("query", "gallery", query_labels=[0], gallery_labels=[0])
    """
    calls = count()

    def share(queries: Ints, rank: Rank, facts: Mapping[str, object]) -> Values:
        if scratch is None:
            return _merged(rank(queries[world.rank :: world.size]), world)
        width = piece_queries or min(max(-(-len(queries) // _PIECES), _FEWEST), _MOST)
        ranges = pieces(len(queries), width)
        files = ShardFiles(scratch / f"call-{next(calls):03d}", facts, ranges, world)

        def work(begin: int, end: int) -> Arrays:
            own = queries[begin:end]
            return {name: column[own] for name, column in rank(own).items()}

        files.run(work)
        # Of no query: the names, and NaN everywhere.
        values = rank(queries[:0])
        for begin, end, arrays in files.read():
            for name, column in values.items():
                column[queries[begin:end]] = arrays[name]
        return values

    with sharing.shared(share):
        yield
    if scratch is not None:
        world.barrier()
        if world.is_first:
            shutil.rmtree(scratch, ignore_errors=True)
        world.barrier()


def _merged(values: Values, world: World) -> Values:
    """Values of own queries, NaN elsewhere -> values of all."""
    mine = torch.from_numpy(np.stack(list(values.values())))
    ranked = ~mine.isnan()
    # One process has each query: what is added to its value is zero.
    both = torch.stack([torch.where(ranked, mine, 0.0), ranked.double()]).to(world.device)
    value, found = total(both, world.group).cpu()
    merged = torch.where(found > 0, value, torch.nan).numpy()
    return dict(zip(values, merged, strict=True))
