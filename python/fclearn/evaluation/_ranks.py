# SPDX-License-Identifier: Apache-2.0
r"""Exact ranks of all positives, without sorting the gallery as a whole or storing Q x G scores.

The rank of a positive is one plus the number of gallery rows above it, and numbers of rows add up
over blocks of the gallery: sort each block's scores, look each positive's score up in it. Equal
scores are ordered by gallery row, the lower row first.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.evaluation._keys import Ints, Keys
from fclearn.evaluation._metrics import Ranks
from fclearn.evaluation._rows import Scorer

# Pairs of a query and a positive held at once, about 32 bytes each.
_MAX_PAIRS = 2**22


@dataclass(frozen=True)
class _Pairs:
    """Queries and their positives, query by query; ``query`` counts from 0 within the chunk."""

    query: Ints
    row: Ints
    score: NDArray[np.float32]
    counts: Ints

    def of_queries(self, start: int, stop: int) -> slice:
        return slice(int(self.counts[:start].sum()), int(self.counts[:stop].sum()))


def positive_ranks(
    scorer: Scorer,
    labels: Keys,
    excluded: tuple[Keys, ...],
    batch_size: int,
    gallery_batch_size: int,
) -> Iterator[tuple[Ints, Ranks]]:
    """Yield query rows and the ranks of their positives; queries without positives never appear.

    Args:
        scorer: Scores of rows.
        labels: A positive is a gallery row of the query's label.
        excluded: Gallery rows that share one of these keys with the query do not exist for it.
        batch_size: Queries scored at once.
        gallery_batch_size: Gallery rows scored at once.
    """
    by_label = np.argsort(labels.gallery, kind="stable")
    sorted_labels = labels.gallery[by_label]
    starts = np.searchsorted(sorted_labels, labels.query, side="left")
    counts = np.searchsorted(sorted_labels, labels.query, side="right") - starts
    # Same label, same positives: adjacent queries share what is read for them. Similar numbers of
    # positives side by side keep the padding of `_add_above` small.
    queries = np.lexsort((labels.query, counts))
    queries = queries[counts[queries] > 0]
    for chunk in _split(queries, counts[queries]):
        pairs = _collect(
            scorer, labels, excluded, chunk, by_label, starts[chunk], counts[chunk],
            gallery_batch_size,
        )  # fmt: skip
        above = np.zeros(len(pairs.row), dtype=np.int64)
        for row in range(0, len(labels.gallery), gallery_batch_size):
            rows = slice(row, min(row + gallery_batch_size, len(labels.gallery)))
            block = scorer.gallery(rows)
            for first in range(0, len(chunk), batch_size):
                part = slice(first, min(first + batch_size, len(chunk)))
                scores = scorer.score(scorer.queries(chunk[part]), block)
                for keys in excluded:
                    same = keys.equal(chunk[part], rows).to(scores.device)
                    scores.masked_fill_(same, -torch.inf)
                _add_above(above, scores, pairs, part, rows)
        yield from _as_ranks(chunk, pairs, above)


def _split(queries: Ints, counts: Ints) -> Iterator[Ints]:
    """Cut queries so that no part has more than `_MAX_PAIRS` pairs, unless one query alone has."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(queries):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _MAX_PAIRS, side="right")))
        yield queries[start:stop]
        start = stop


def _collect(
    scorer: Scorer,
    labels: Keys,
    excluded: tuple[Keys, ...],
    chunk: Ints,
    by_label: Ints,
    starts: Ints,
    counts: Ints,
    gallery_batch_size: int,
) -> _Pairs:
    """Score the queries of a chunk against their own positives, one label at a time."""
    query = np.repeat(np.arange(len(chunk)), counts)
    offsets = np.cumsum(counts) - counts
    row = by_label[np.arange(len(query)) - np.repeat(offsets - starts, counts)]
    score = np.empty(len(query), dtype=np.float32)
    borders = np.flatnonzero(np.diff(labels.query[chunk])) + 1
    for first, last in zip([0, *borders], [*borders, len(chunk)], strict=True):
        positives = by_label[starts[first] : starts[first] + counts[first]]
        # A view: writing into it fills `score`.
        table = score[offsets[first] : offsets[first] + (last - first) * counts[first]]
        table = table.reshape(last - first, counts[first])
        queries = scorer.queries(chunk[first:last])
        for begin in range(0, len(positives), gallery_batch_size):
            part = slice(begin, begin + gallery_batch_size)
            table[:, part] = scorer.score(queries, scorer.gallery(positives[part])).cpu().numpy()
        # Looking up ascending scores walks through memory instead of jumping.
        order = np.argsort(table, axis=1)
        table[:] = np.take_along_axis(table, order, axis=1)
        row[offsets[first] : offsets[first] + order.size] = positives[order].reshape(-1)
    keep = np.ones(len(query), dtype=bool)
    for keys in excluded:
        keep &= keys.query[chunk[query]] != keys.gallery[row]
    query = query[keep]
    return _Pairs(query, row[keep], score[keep], np.bincount(query, minlength=len(chunk)))


def _add_above(above: Ints, scores: Tensor, pairs: _Pairs, part: slice, rows: slice) -> None:
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


def _as_ranks(chunk: Ints, pairs: _Pairs, above: Ints) -> Iterator[tuple[Ints, Ranks]]:
    """Sort the ranks of each query; queries whose positives were all excluded drop out."""
    found = pairs.counts > 0
    if not found.any():
        return
    order = np.lexsort((above, pairs.query))
    numbered = np.cumsum(found) - 1
    yield chunk[found], Ranks(numbered[pairs.query[order]], above[order] + 1, pairs.counts[found])
