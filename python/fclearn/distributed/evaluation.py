# SPDX-License-Identifier: Apache-2.0
"""Evaluation by several processes, each ranking its share of the queries: the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from fclearn.distributed.collectives import total
from fclearn.distributed.world import World
from fclearn.evaluation import sharing


@contextmanager
def evaluating_by_all(world: World) -> Iterator[None]:
    """While it lasts, `evaluate_retrieval` and all that calls it share their queries.

    Every process must make the same calls, and gets the same results: those of one process, to the
    last bit. Memory per process is that of one.

    Args:
        world: Processes.

    Example:
        >>> from fclearn import evaluate_retrieval
        >>> from fclearn.distributed import joined_world
        >>> from fclearn.distributed.evaluation import evaluating_by_all
        >>> with joined_world() as world, evaluating_by_all(world):  # doctest: +SKIP
        ...     evaluate_retrieval("query", "gallery", query_labels=[0], gallery_labels=[0])
    """

    def own(queries: NDArray[np.int64]) -> NDArray[np.int64]:
        return queries[world.rank :: world.size]

    def merged(values: NDArray[np.float64]) -> NDArray[np.float64]:
        mine = torch.from_numpy(values)
        ranked = ~mine.isnan()
        # One process has each query: what is added to its value is zero.
        both = torch.stack([torch.where(ranked, mine, 0.0), ranked.double()]).to(world.device)
        value, count = total(both, world.group).cpu()
        return torch.where(count > 0, value, torch.nan).numpy()

    with sharing.shared(sharing.Share(own, merged)):
        yield
