# SPDX-License-Identifier: Apache-2.0
r"""Exact ranks of all positives, without sorting the gallery as a whole or storing Q x G scores.

The rank of a positive is one plus the number of gallery rows above it, and numbers of rows add up
over blocks of the gallery: sort each block's scores, look each positive's score up in it. Equal
scores are ordered by gallery row, the lower row first.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fclearn.evaluation._pairs import Pairs, list_pairs, split, totals
from fclearn.evaluation._rows import Scorer
from fclearn.evaluation.keys import Exclusion
from fclearn.evaluation.metrics import Ranks
from fclearn.evaluation.relevance import Relevance
from fclearn.evaluation.types import Ints


def positive_ranks(
    scorer: Scorer,
    relevance: Relevance,
    excluded: tuple[Exclusion, ...],
    queries: Ints,
    batch_size: int,
    gallery_batch_size: int,
) -> Iterator[tuple[Ints, Ranks]]:
    """Yield query rows and the ranks of their positives; queries without positives never appear.

    Args:
        scorer: Scores of rows.
        relevance: What the positives are.
        excluded: Gallery rows that do not exist for a query.
        queries: Queries to rank, in any order.
        batch_size: Queries scored at once.
        gallery_batch_size: Gallery rows scored at once.
    """
    # Same positives side by side: adjacent queries share what is read for them. Similar numbers of
    # positives side by side keep the padding of `_add_above` small.
    queries = queries[np.lexsort((relevance.keys[queries], relevance.counts[queries]))]
    for chunk in split(queries, relevance.counts[queries]):
        pairs = _scored(scorer, relevance, chunk, gallery_batch_size).without(excluded, chunk)
        above = np.zeros(len(pairs.row), dtype=np.int64)
        num_gallery = scorer.num_gallery if len(pairs.row) else 0
        for row in range(0, num_gallery, gallery_batch_size):
            rows = slice(row, min(row + gallery_batch_size, num_gallery))
            block = scorer.gallery(rows)
            for first in range(0, len(chunk), batch_size):
                part = slice(first, min(first + batch_size, len(chunk)))
                scores = scorer.score(scorer.queries(chunk[part]), block)
                for exclusion in excluded:
                    hidden = exclusion.hidden(chunk[part], rows).to(scores.device)
                    scores.masked_fill_(hidden, -torch.inf)
                _add_above(above, scores, pairs, part, rows)
        yield from _as_ranks(relevance, chunk, pairs, above)


def _scored(scorer: Scorer, relevance: Relevance, chunk: Ints, gallery_batch_size: int) -> Pairs:
    """Score the queries of a chunk against their own positives, one set of positives at a time."""
    pairs = list_pairs(relevance, chunk)
    score = np.empty(len(pairs.row), dtype=np.float32)
    row, grade = pairs.row, pairs.grade
    for part in relevance.groups(chunk):
        at = pairs.of_queries(part.start, part.stop)
        shape = part.stop - part.start, int(pairs.counts[part.start])
        if shape[1] == 0:
            continue
        # Views: writing into them fills what they are views of.
        table, rows = score[at].reshape(shape), row[at].reshape(shape)
        queries = scorer.queries(chunk[part])
        for begin in range(0, shape[1], gallery_batch_size):
            some = slice(begin, begin + gallery_batch_size)
            table[:, some] = scorer.score(queries, scorer.gallery(rows[0, some])).cpu().numpy()
        # Looking up ascending scores walks through memory instead of jumping.
        order = np.argsort(table, axis=1)
        table[:] = np.take_along_axis(table, order, axis=1)
        rows[:] = np.take_along_axis(rows, order, axis=1)
        if grade is not None:
            grades = grade[at].reshape(shape)
            grades[:] = np.take_along_axis(grades, order, axis=1)
    return replace(pairs, score=score)


def _add_above(above: Ints, scores: Tensor, pairs: Pairs, part: slice, rows: slice) -> None:
    """Add to each pair of queries ``part`` the number of gallery rows ``rows`` ranked above it."""
    at = pairs.of_queries(part.start, part.stop)
    query = pairs.query[at] - part.start
    row, score, counts = pairs.row[at], pairs.score[at], pairs.counts[part]
    if len(row) == 0:
        return
    # Earlier rows win ties, so a positive behind this block is beaten by equal scores in it too.
    threshold = np.where(row >= rows.stop, np.nextafter(score, np.float32(-np.inf)), score)
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded = np.full((len(counts), int(counts.max())), np.inf, dtype=np.float32)
    padded[query, column] = threshold
    ordered = _sort_rows(scores)
    right = torch.searchsorted(ordered, torch.from_numpy(padded).to(scores.device), right=True)
    below = right.cpu().numpy()[query, column]
    above[at] += (rows.stop - rows.start) - below
    # A positive inside this block is among the scores it was compared with. Only if the next lower
    # one equals it as well do rows decide.
    inside = np.flatnonzero((row >= rows.start) & (row < rows.stop) & (below >= 2))
    if len(inside):
        lower = ordered[_index(query[inside], scores), _index(below[inside] - 2, scores)]
        tied = inside[lower.cpu().numpy() == score[inside]]
        above[at.start + tied] += _tied_before(scores, query[tied], row[tied] - rows.start)


def _tied_before(scores: Tensor, query: Ints, column: Ints) -> Ints:
    """Count the columns before each given one that hold the same score."""
    before = np.zeros(len(query), dtype=np.int64)
    for one in np.unique(query):
        values = scores[int(one)].cpu().numpy()
        mine = np.flatnonzero(query == one)
        for value in np.unique(values[column[mine]]):
            tied = mine[values[column[mine]] == value]
            before[tied] = np.searchsorted(np.flatnonzero(values == value), column[tied])
    return before


def _sort_rows(scores: Tensor) -> Tensor:
    if scores.device.type != "cpu":
        return scores.sort(dim=1).values
    # numpy's vectorised sort is many times faster than torch's on a CPU, and leaves the GIL.
    ordered = scores.numpy().copy()
    slices = np.array_split(ordered, torch.get_num_threads())
    with ThreadPoolExecutor(len(slices)) as pool:
        list(pool.map(lambda rows: rows.sort(axis=1), slices))
    return torch.from_numpy(ordered)


def _index(values: Ints, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)


def _as_ranks(
    relevance: Relevance, chunk: Ints, pairs: Pairs, above: Ints
) -> Iterator[tuple[Ints, Ranks]]:
    """Sort the ranks of each query; queries whose positives were all excluded drop out."""
    counts, ideal = totals(relevance, chunk, pairs)
    counted = counts > 0
    if not counted.any():
        return
    order = np.lexsort((above, pairs.query))
    numbered = np.cumsum(counted) - 1
    yield (
        chunk[counted],
        Ranks(
            numbered[pairs.query[order]],
            above[order] + 1,
            counts[counted],
            None if pairs.grade is None else pairs.grade[order],
            ideal,
        ),
    )
