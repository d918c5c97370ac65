# SPDX-License-Identifier: Apache-2.0
r"""Ranks of positives while rows of a gallery change their scores one after another.

The rank of a positive with score t is one plus the number of rows above t. When a set S of rows is
re-embedded that number changes by #{new scores in S above t} - #{old scores in S above t}, and over
disjoint sets these changes add up. So one order costs two sorts of the gallery, cut into the steps
of its curve, however many steps there are; nothing is ranked again.

Scores become integer keys in which ties are broken by row, the lower first, so that all keys of a
query are distinct and "above" is a plain comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fclearn.evaluation.metrics import Ranks, metric_values
from fclearn.evaluation.score_bits import sort_bits

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_LOWEST, _ALL_RANKS = np.iinfo(np.int64).min, np.iinfo(np.int64).max


def order_keys(scores: NDArray[np.float32], left_out: NDArray[np.bool_]) -> Ints:
    """Distinct int64 keys ``(n, G)`` that sort like the scores, ties by row, lower rows above.

    Args:
        scores: Shape ``(n, G)``, float32, not NaN.
        left_out: Rows that shall never be above another, bool ``(n, G)``.
    """
    keys = (sort_bits(scores).astype(np.int64) - 2**31 << 32) | (
        2**32 - 1 - np.arange(scores.shape[1])
    )
    keys[left_out] = _LOWEST
    return np.asarray(keys)


@dataclass(frozen=True)
class Positives:
    """Columns of the positives of a block of queries, padded.

    Attributes:
        column: Shape ``(n, P)``, int64; 0 where padded.
        is_real: Which are no padding, bool ``(n, P)``.
        grade: How right they are, 0 where padded, float64 ``(n, P)``; None: all are 1.
    """

    column: Ints
    is_real: NDArray[np.bool_]
    grade: Floats | None

    @classmethod
    def of(cls, mask: NDArray[np.bool_], grades: Floats | None = None) -> Positives:
        """Columns where a mask is true.

        Args:
            mask: Shape ``(n, G)``.
            grades: Of all columns, shape ``(n, G)``, above 0 where the mask is; None: all are 1.
        """
        counts = mask.sum(axis=1)
        is_real = np.arange(int(counts.max(initial=0))) < counts[:, None]
        column = np.zeros(is_real.shape, dtype=np.int64)
        column[is_real] = np.nonzero(mask)[1]
        grade = None
        if grades is not None:
            grade = np.zeros(is_real.shape)
            grade[is_real] = grades[mask]
        return cls(column, is_real, grade)

    def metrics(self, names: Sequence[str], rank: Ints) -> Floats:
        """Metrics of each query from the ranks of its positives.

        Args:
            names: As checked by `fclearn.evaluation`.
            rank: From 1, shape ``(n, P)``; whatever it likes where padded.

        Returns:
            Shape ``(n, M)``, float64, NaN for queries without a positive.
        """
        counts = self.is_real.sum(axis=1)
        counted = counts > 0
        found = np.full((len(counts), len(names)), np.nan)
        if not counted.any():
            return found
        # Padding comes last, so that what is real stays in its place.
        order = np.argsort(np.where(self.is_real, rank, _ALL_RANKS), axis=1)
        query = np.repeat(np.arange(int(counted.sum())), counts[counted])
        grades = ideal = None
        if self.grade is not None:
            grades = np.take_along_axis(self.grade, order, axis=1)[self.is_real]
            ideal = -np.sort(-self.grade, axis=1)[self.is_real]
        ranks = Ranks(
            query,
            np.take_along_axis(rank, order, axis=1)[self.is_real],
            counts[counted],
            grades,
            ideal,
        )
        for at, name in enumerate(names):
            found[counted, at] = metric_values(name, ranks)
        return found


def ranks_of(keys: Ints, positives: Positives) -> Ints:
    """Ranks of the positives, from 1, shape ``(n, P)``."""
    own = np.take_along_axis(keys, positives.column, axis=1)
    return 1 + _count_above(np.sort(keys, axis=1), own)


class MovingRanks:
    """Ranks of the positives of a block of queries at every step of any number of orders.

    Args:
        before: Keys of all rows as stored, shape ``(n, G)``.
        after: Keys of all rows re-embedded, shape ``(n, G)``.
        positives: Whose ranks.
    """

    def __init__(self, before: Ints, after: Ints, positives: Positives) -> None:
        self._before, self._after, self._positives = before, after, positives
        self._width = positives.column.shape[1]
        # A positive has two scores in its life: its old one, then its new one.
        self._thresholds = np.concatenate(
            [np.take_along_axis(keys, positives.column, 1) for keys in (before, after)], axis=1
        )
        self._start = _count_above(np.sort(before, axis=1), self._thresholds)

    def along(self, order: Ints, counts: Sequence[int]) -> list[Ints]:
        """Ranks, from 1, ``(n, P)``, once the first ``counts[i]`` rows of an order are re-embedded.

        Args:
            order: Gallery rows, a permutation, shape ``(G,)``.
            counts: Ascending.
        """
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        moved_at = place[self._positives.column]
        above, done, found = self._start.copy(), 0, []
        for count in counts:
            if count > done:
                rows = order[done:count]
                for keys, sign in ((self._after, 1), (self._before, -1)):
                    above += sign * _count_above(
                        np.sort(np.take(keys, rows, axis=1), axis=1), self._thresholds
                    )
                done = count
            old, new = above[:, : self._width], above[:, self._width :]
            found.append(1 + np.where(moved_at < count, new, old))
        return found


def _count_above(ordered: Ints, thresholds: Ints) -> Ints:
    """How many of each row's ascending keys exceed each of its thresholds."""
    reached = torch.searchsorted(
        torch.from_numpy(ordered), torch.from_numpy(thresholds), right=True
    )
    return np.asarray(ordered.shape[1] - reached.numpy())
