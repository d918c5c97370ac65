# SPDX-License-Identifier: Apache-2.0
r"""Exact ranks of the positives among the first k, for metrics that look no further.

A float32 search is several times faster than the exact scores, and wrong in the last bits. So it
only proposes: a few more rows than asked for. Where two of its scores are nearer to each other than
both can be off, the rows are scored again, exactly; where a row that was not proposed could still
be among the first k, the query goes to the ranking of the whole gallery. What comes out is, to the
last bit, what ranking everything would give.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fcl_ext
from fclearn.evaluation._pairs import list_pairs, split, totals
from fclearn.evaluation._rows import Scorer
from fclearn.evaluation.keys import Exclusion
from fclearn.evaluation.metrics import Ranks
from fclearn.evaluation.relevance import Relevance
from fclearn.evaluation.types import Ints

#: Most ranks that are searched for; beyond, ranking the whole gallery costs less.
MAX_DEPTH = 2048
# Rows proposed beyond those asked for, for scores that cannot be told apart.
_MARGIN = 28
# Numbers of a block of the gallery, and of the queries at once, in float32: 128 MB each.
_BLOCK_ELEMENTS = 2**25
# Rows proposed at once, for all queries together; some 60 bytes each while they are sorted out.
_PROPOSED = 2**23
# Numbers scored again at once, as float64.
_EXACT_ELEMENTS = 2**20


def search(
    scorer: Scorer, excluded: tuple[Exclusion, ...], queries: Ints, depth: int
) -> Iterator[tuple[Ints, Ints, NDArray[np.bool_]]]:
    """Yield queries, their first gallery rows, and whether those are certain.

    Args:
        scorer: Scores of rows, on the CPU.
        excluded: Gallery rows that do not exist for a query.
        queries: Queries to search, in any order.
        depth: Rows asked for.

    Yields:
        Queries ``(n,)``; rows ``(n, depth)``, best first, -1 behind the end of the gallery; whether
        each query is certain, bool ``(n,)``.
    """
    hidden = sum(exclusion.most_hidden() for exclusion in excluded)
    width = min(scorer.num_gallery, depth + hidden + _MARGIN)
    step = max(1, min(_BLOCK_ELEMENTS // scorer.dim, _PROPOSED // width))
    for start in range(0, len(queries), step):
        chunk = queries[start : start + step]
        values, rows = _propose(scorer, chunk, width)
        rows, place = first_visible(_settle(scorer, chunk, values, rows), excluded, chunk, depth)
        certain = np.ones(len(chunk), dtype=bool)
        if width < scorer.num_gallery:
            # A cluster of close scores keeps its places, so these bound what was picked from it.
            last = values[np.arange(len(chunk)), _end_of_cluster(scorer, values, place)]
            certain = (rows[:, -1] >= 0) & (last > values[:, -1] + 2 * scorer.slack)
        yield chunk, rows, certain


def first_visible(
    rows: Ints, excluded: tuple[Exclusion, ...], queries: Ints, depth: int
) -> tuple[Ints, Ints]:
    """The first rows of each query that exist for it, and the place of the last of them.

    Args:
        rows: Shape ``(n, width)``, best first; -1: no row.
        excluded: Gallery rows that do not exist for a query.
        queries: Shape ``(n,)``.
        depth: Rows wanted.

    Returns:
        Shape ``(n, depth)``, -1 where too few are left, and ``(n,)``.
    """
    visible = rows >= 0
    for exclusion in excluded:
        visible &= ~exclusion.hides(queries[:, None], rows)
    # Stable: what is left keeps its order.
    order = np.argsort(~visible, axis=1, kind="stable")[:, :depth]
    first = np.where(np.take_along_axis(visible, order, 1), np.take_along_axis(rows, order, 1), -1)
    missing = depth - order.shape[1]
    return np.pad(first, ((0, 0), (0, missing)), constant_values=-1), order[:, -1]


def ranks_of(
    relevance: Relevance, excluded: tuple[Exclusion, ...], queries: Ints, rows: Ints
) -> Iterator[tuple[Ints, Ranks]]:
    """Yield query rows and the ranks of those positives that are among their first rows.

    Args:
        relevance: What the positives are.
        excluded: Gallery rows that do not exist for a query, and are not among its first.
        queries: Shape ``(n,)``.
        rows: First rows of each, shape ``(n, depth)``, best first, -1 where there are none.
    """
    order = np.lexsort((relevance.keys[queries], relevance.counts[queries]))
    queries, rows = queries[order], rows[order]
    start = 0
    for chunk in split(queries, relevance.counts[queries]):
        grades = relevance.grades(chunk, rows[start : start + len(chunk)])
        start += len(chunk)
        counts, ideal = relevance.counts[chunk], None
        if excluded or relevance.graded:
            pairs = list_pairs(relevance, chunk).without(excluded, chunk)
            counts, ideal = totals(relevance, chunk, pairs)
        counted = counts > 0
        if not counted.any():
            continue
        query, rank = np.nonzero(grades[counted])
        found = grades[counted][query, rank] if relevance.graded else None
        yield chunk[counted], Ranks(query, rank + 1, counts[counted], found, ideal)


def _propose(scorer: Scorer, chunk: Ints, width: int) -> tuple[NDArray[np.float32], Ints]:
    """Rows of the ``width`` best float32 scores, and the scores, best first."""
    queries = scorer.narrow("query", chunk)
    # What `Scorer.narrow` leaves as given, the kernel normalises; unit rows it leaves alone.
    metric = scorer.metric
    best = torch.empty(len(chunk), 0)
    rows = torch.empty(len(chunk), 0, dtype=torch.int64)
    step = max(width, _BLOCK_ELEMENTS // scorer.dim)
    for start, block in scorer.narrow_gallery(step, len(chunk)):
        near, found = fcl_ext.knn_search(queries, block, min(width, len(block)), metric=metric)
        best, rows = _merge(best, rows, found, near.long() + start, width)
    return best.numpy(), rows.numpy()


def _merge(
    best: Tensor, rows: Tensor, found: Tensor, near: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    if best.shape[1] == 0:
        return found, near
    both = torch.cat([best, found], 1)
    best, order = both.topk(min(width, both.shape[1]), dim=1)
    return best, torch.cat([rows, near], 1).gather(1, order)


def _close(scorer: Scorer, values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether a score and the next one are too near to each other to tell which is better."""
    return np.asarray(values[:, :-1].astype(np.float64) - values[:, 1:] <= 2 * scorer.slack)


def _settle(scorer: Scorer, chunk: Ints, values: NDArray[np.float32], rows: Ints) -> Ints:
    """Put rows whose float32 scores are too near to each other into their exact order."""
    close = _close(scorer, values)
    unsure = np.zeros(values.shape, dtype=bool)
    unsure[:, 1:] |= close
    unsure[:, :-1] |= close
    query, place = np.nonzero(unsure)
    if len(query) == 0:
        return rows
    row = rows[query, place]
    score = np.empty(len(row), dtype=np.float32)
    # In the order of the gallery, which may be on a disk.
    by_row = np.argsort(row)
    step = max(1, _EXACT_ELEMENTS // scorer.dim)
    for start in range(0, len(row), step):
        some = by_row[start : start + step]
        queries = scorer.queries(chunk[query[some]])
        score[some] = scorer.score_pairs(queries, scorer.gallery(row[some])).numpy()
    # Chains of close neighbours: their rows change places with each other only.
    starts = np.ones(values.shape, dtype=bool)
    starts[:, 1:] = ~close
    cluster = np.cumsum(starts.reshape(-1)).reshape(values.shape)[query, place]
    settled: Ints = rows.copy()
    settled[query, place] = row[np.lexsort((row, -score, cluster))]
    return settled


def _end_of_cluster(scorer: Scorer, values: NDArray[np.float32], place: Ints) -> Ints:
    """Last place of the chain of close scores that each query's place belongs to."""
    apart = np.ones(values.shape, dtype=bool)
    apart[:, :-1] = ~_close(scorer, values)
    apart &= np.arange(values.shape[1]) >= place[:, None]
    return np.asarray(np.argmax(apart, axis=1), dtype=np.int64)
