# SPDX-License-Identifier: Apache-2.0
"""Thresholds that a given share of the impostors reaches, from scores too many to store.

A threshold accepts what reaches it. That for a false-accept rate t is the lowest that no more than
a share t of the impostors reach, found exactly, for the queries as they are and for resamples of
them at once: pairs are counted, as often as a resample has their query, by the bits of their
float32 scores, first by the upper 12, then, for the buckets that matter, by the next 10, and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation.score_bits import from_sort_bits, sort_bits
from fclearn.evaluation.types import Ints

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredPairs:
    """Some pairs of a query and a gallery row.

    Attributes:
        scores: Shape ``(n,)``.
        genuine: Whether a pair should be accepted, shape ``(n,)``.
        query: Its query, shape ``(n,)``, int64, of a range of few.
    """

    scores: NDArray[np.float32]
    genuine: NDArray[np.bool_]
    query: Ints


#: Makes one pass over all pairs.
ScorePass: TypeAlias = Callable[[], Iterator[ScoredPairs]]

# Bits that each pass tells apart, upper ones first. A table has a row for each resample, so that
# two passes of 16 bits would need 2**16 cells for each; three need 2**12.
_LEVELS = (12, 10, 10)
# Rows of a table that are summed up at once.
_ROWS = 128


@dataclass(frozen=True)
class Counts:
    """Pairs by the upper bits of their scores, for each way to weigh the queries.

    Attributes:
        table: Impostor and genuine pairs, shape ``(2, W, 2**12)``; whole numbers.
        weights: How often each of W ways has each query, shape ``(W, Q)``.
    """

    table: Floats
    weights: NDArray[np.uint8]

    @property
    def totals(self) -> Floats:
        """Impostor and genuine pairs, shape ``(2, W)``."""
        total: Floats = self.table.sum(axis=2)
        return total


@dataclass(frozen=True)
class Cuts:
    """The lowest thresholds that no more than the allowed impostors reach.

    Attributes:
        thresholds: Shape ``(R, W)``; -inf where all may be accepted.
        accepted: Impostor and genuine pairs that reach them, shape ``(2, R, W)``; whole numbers.
    """

    thresholds: Floats
    accepted: Floats


def count_pairs(pairs: ScorePass, weights: NDArray[np.uint8]) -> Counts:
    """The first pass.

    Args:
        pairs: All of them.
        weights: As `Counts`.
    """
    table = np.zeros((2, len(weights), 2 ** _LEVELS[0]))
    rows = np.arange(len(weights))
    for some in pairs():
        upper = (sort_bits(some.scores) >> np.uint32(32 - _LEVELS[0])).astype(np.int64)
        _add(table, rows, weights, some.genuine, some.query, upper)
    return Counts(table, weights)


def cut(pairs: ScorePass, counts: Counts, allowed: Ints) -> Cuts:
    """The other passes: one for each further level of bits.

    Args:
        pairs: The same pairs again.
        counts: Of the first pass.
        allowed: Impostors that may be accepted, shape ``(R, W)``, each from 0 to their number.
    """
    num_ways = len(counts.weights)
    first = [_refused(counts.table, np.zeros((2, num_ways)), most) for most in allowed]
    bucket = np.concatenate([column for column, _ in first])
    beyond = np.concatenate([above for _, above in first], axis=1)
    most = allowed.reshape(-1)
    # Where all may pass, there is no bucket to look into.
    open_rows = np.flatnonzero(bucket >= 0)
    told = _LEVELS[0]
    for width in _LEVELS[1:] if len(open_rows) else ():
        table = np.zeros((2, len(open_rows), 2**width))
        _count_inside(
            table, pairs, bucket[open_rows], told, width, counts.weights, open_rows % num_ways
        )
        inner, beyond[:, open_rows] = _refused(table, beyond[:, open_rows], most[open_rows])
        bucket[open_rows] = (bucket[open_rows] << width) + inner
        told += width
    thresholds = np.full(most.shape, -np.inf)
    thresholds[open_rows] = just_above(from_sort_bits(bucket[open_rows].astype(np.uint32)))
    return Cuts(thresholds.reshape(allowed.shape), beyond.reshape(2, *allowed.shape))


def just_above(score: NDArray[np.float32]) -> Floats:
    """The next float32."""
    above: NDArray[np.float32] = np.nextafter(score, np.float32(np.inf))
    return above.astype(np.float64)


def _count_inside(
    table: Floats,
    pairs: ScorePass,
    bucket: Ints,
    told: int,
    width: int,
    weights: NDArray[np.uint8],
    ways: Ints,
) -> None:
    """Add to each row of the table the pairs in its bucket, by the bits that come next.

    Args:
        table: Shape ``(2, M, 2**width)``, changed.
        pairs: All of them.
        bucket: Upper ``told`` bits of the scores that count in each row, shape ``(M,)``.
        told: Bits that buckets have.
        width: Bits that come next.
        weights: As `Counts`.
        ways: Row of the weights for each row of the table, shape ``(M,)``.
    """
    found, group = np.unique(bucket, return_inverse=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    place = np.full(2**told, -1, dtype=np.int32)
    place[found] = np.arange(len(found))
    for some in pairs():
        order = sort_bits(some.scores)
        where = place[order >> np.uint32(32 - told)]
        inside = np.flatnonzero(where >= 0)
        inside = inside[np.argsort(where[inside], kind="stable")]
        lower = order[inside] >> np.uint32(32 - told - width) & np.uint32(2**width - 1)
        parts = np.cumsum(np.bincount(where[inside], minlength=len(found)))[:-1]
        columns = (some.genuine[inside], some.query[inside], lower.astype(np.int64))
        split = (np.split(column, parts) for column in columns)
        for rows, genuine, query, bins in zip(members, *split, strict=True):
            _add(table, rows, weights[ways[rows]], genuine, query, bins)


def _add(
    table: Floats,
    rows: Ints,
    weights: NDArray[np.uint8],
    genuine: NDArray[np.bool_],
    query: Ints,
    bins: Ints,
) -> None:
    """Count pairs into some rows of a table, as often as each row has their query.

    Args:
        table: Shape ``(2, M, B)``, changed.
        rows: Which of the M, shape ``(m,)``.
        weights: Of these rows, shape ``(m, Q)``.
        genuine: Of each pair, shape ``(n,)``.
        query: Of each pair.
        bins: Column of each pair.
    """
    if not len(bins):
        return
    # Few pairs are counted one by one, many by a product, narrow as few columns occur in a block.
    occurs = np.zeros(table.shape[2], dtype=bool)
    occurs[bins] = True
    columns = np.flatnonzero(occurs)
    first, last = int(query.min()), int(query.max())
    size = last - first + 1
    times = weights[:, first : last + 1]
    if len(rows) * len(bins) <= size * len(columns):
        cell = (np.arange(len(rows))[:, None] * 2 + genuine) * table.shape[2] + bins
        added = np.bincount(
            cell.reshape(-1),
            weights=times[:, query - first].reshape(-1),
            minlength=2 * len(rows) * table.shape[2],
        )
        table[:, rows] += added.reshape(len(rows), 2, -1).swapaxes(0, 1)
        return
    cell = (genuine * size + (query - first)) * len(columns) + (np.cumsum(occurs) - 1)[bins]
    counted = np.bincount(cell, minlength=2 * size * len(columns)).reshape(2, size, -1)
    # float32 is twice as fast, and exact for whole numbers up to 2**24.
    exact = np.float32 if len(bins) * int(times.max()) <= 2**24 else np.float64
    product = times.astype(exact) @ counted.astype(exact)
    table[:, rows[:, None], columns] += product


def _refused(table: Floats, beyond: Floats, most: Ints) -> tuple[Ints, Floats]:
    """The column of the best impostor that must not pass, and what passes above it.

    Args:
        table: Pairs by column, shape ``(2, M, B)``.
        beyond: Pairs above all columns, shape ``(2, M)``.
        most: Impostors that may pass, shape ``(M,)``.

    Returns:
        The column, shape ``(M,)``, -1 where all may pass; pairs above it, shape ``(2, M)``.
    """
    columns, passing = [], []
    for start in range(0, len(most), _ROWS):
        part = slice(start, start + _ROWS)
        above = np.cumsum(table[:, part, ::-1], axis=2)[:, :, ::-1] + beyond[:, part, None]
        above = np.concatenate([above, beyond[:, part, None]], axis=2)
        # Ever fewer are above: those columns come first that too many reach.
        column = (above[0] > most[part, None]).sum(axis=1) - 1
        columns.append(column)
        passing.append(above[:, np.arange(len(column)), column + 1])
    return np.concatenate(columns), np.concatenate(passing, axis=1)
