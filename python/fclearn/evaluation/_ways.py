# SPDX-License-Identifier: Apache-2.0
"""Which way to the ranks: by ranking everything, by a checked search, or by an index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fclearn.evaluation._ranks import positive_ranks
from fclearn.evaluation._rows import Rows, Scorer
from fclearn.evaluation._topk import MAX_DEPTH, ranks_of, search
from fclearn.evaluation.indexed import IndexedGallery
from fclearn.evaluation.keys import Exclusion
from fclearn.evaluation.metrics import Ranks, deepest_rank
from fclearn.evaluation.relevance import Relevance
from fclearn.evaluation.types import Ints


def deepest(names: Sequence[str], relevance: Relevance, *, needs_one: bool) -> int | None:
    """Ranks that the metrics look at; None: all of them.

    Args:
        names: Of the metrics.
        relevance: What is right.
        needs_one: Whether only the first ranks can be had.

    Raises:
        ValueError: All ranks are asked of what has only the first ones.
    """
    depths = {name: deepest_rank(name, relevance.totals) for name in names}
    endless = [name for name, depth in depths.items() if depth is None]
    if endless and needs_one:
        raise ValueError(
            f"metrics: {', '.join(endless)} would need all ranks, and an index has only the first "
            f"ones; ask for {', '.join(f'{name}@100' for name in endless)}"
        )
    return None if endless else max(1, *(depth or 0 for depth in depths.values()))


def exact_ranks(
    scorer: Scorer,
    relevance: Relevance,
    excluded: tuple[Exclusion, ...],
    queries: Ints,
    depth: int | None,
    batch_size: int,
    gallery_batch_size: int,
) -> Iterator[tuple[Ints, Ranks]]:
    """Yield query rows and the ranks of their positives, by a search where that is enough.

    Args:
        scorer: Scores of rows.
        relevance: What is right.
        excluded: Gallery rows that do not exist for a query.
        queries: Those to rank, each with something right.
        depth: Ranks wanted; None: all.
        batch_size: Of `positive_ranks`.
        gallery_batch_size: Of `positive_ranks`.
    """
    hidden = sum(exclusion.most_hidden() for exclusion in excluded)
    if depth is not None and depth + hidden <= MAX_DEPTH and scorer.device.type == "cpu":
        unsure = [np.empty(0, np.int64)]
        for chunk, rows, certain in search(scorer, excluded, queries, depth):
            yield from ranks_of(relevance, excluded, chunk[certain], rows[certain])
            unsure.append(chunk[~certain])
        queries = np.concatenate(unsure)
    yield from positive_ranks(scorer, relevance, excluded, queries, batch_size, gallery_batch_size)


def indexed_ranks(
    query: Rows,
    gallery: IndexedGallery,
    relevance: Relevance,
    excluded: tuple[Exclusion, ...],
    queries: Ints,
    depth: int,
    metric: str,
) -> Iterator[tuple[Ints, Ranks]]:
    """Yield query rows and the ranks of their positives, as an index has them.

    Args:
        query: Rows of the queries.
        gallery: The index.
        relevance: What is right.
        excluded: Gallery rows that do not exist for a query.
        queries: Those to rank, each with something right.
        depth: Ranks wanted.
        metric: ``"cosine"``, or the index's own.

    Raises:
        ValueError: Queries narrower than the index, or that cannot be compared; another metric.
    """
    if query.dim < gallery.dim:
        raise ValueError(
            f"query: expected at least as many dims as the index's {gallery.dim}, got {query.dim}"
        )
    gallery.check_metric(metric)
    query.check(gallery.dim, needs_norm=metric == "cosine")
    rows = gallery.search(query, queries, depth, excluded, unit_norm=metric == "cosine")
    yield from ranks_of(relevance, excluded, queries, rows)
