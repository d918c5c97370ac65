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

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_LOWEST, _ALL_RANKS = np.iinfo(np.int64).min, np.iinfo(np.int64).max


def order_keys(scores: NDArray[np.float32], left_out: NDArray[np.bool_]) -> Ints:
    """Distinct int64 keys ``(n, G)`` that sort like the scores, ties by row, lower rows above.

    Args:
        scores: Shape ``(n, G)``, float32, not NaN.
        left_out: Rows that shall never be above another, bool ``(n, G)``.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # adding zero turns -0.0 into 0.0
    ordered = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    keys = (ordered.astype(np.int64) << 32) | (2**32 - 1 - np.arange(scores.shape[1]))
    keys[left_out] = _LOWEST
    return np.asarray(keys)


@dataclass(frozen=True)
class Positives:
    """Columns of the positives of a block of queries, padded.

    Attributes:
        column: Shape ``(n, P)``, int64; 0 where padded.
        is_real: Which are no padding, bool ``(n, P)``.
        grade: How right they are, 0 where padded, float64 ``(n, P)``.
    """

    column: Ints
    is_real: NDArray[np.bool_]
    grade: Floats

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
        grade = is_real.astype(np.float64)
        if grades is not None:
            grade[is_real] = grades[mask]
        return cls(column, is_real, grade)

    def metric(self, name: str, rank: Ints) -> Floats:
        r"""Average precision, CMC@k or nDCG@k of each query from the ranks of its positives.

        ``map``: :math:`\frac1R \sum_j j / r_j` over the sorted ranks; ``cmc@k``: 1 if the smallest
        is at most k; ``ndcg@k``: :math:`\sum_{r_j \le k} g_j / \log_2(1 + r_j)` over its maximum.

        Args:
            name: ``"map"``, ``"cmc@k"``, ``"ndcg"`` or ``"ndcg@k"``.
            rank: From 1, shape ``(n, P)``.

        Returns:
            Shape ``(n,)``, float64, NaN for queries without a positive.
        """
        counts = self.is_real.sum(axis=1)
        ranks = np.sort(np.where(self.is_real, rank, _ALL_RANKS), axis=1)
        if name.startswith("ndcg"):
            values = self._discounted_gain(rank, int(name.partition("@")[2] or _ALL_RANKS))
        elif name == "map":
            hits = np.arange(1, ranks.shape[1] + 1)
            gains = np.where(hits <= counts[:, None], hits / ranks, 0.0)
            values = np.asarray(gains.sum(axis=1) / np.maximum(counts, 1))
        else:
            found = ranks[:, :1] <= int(name.removeprefix("cmc@"))
            values = np.asarray(found.any(axis=1), dtype=np.float64)
        return np.asarray(np.where(counts > 0, values, np.nan))

    def _discounted_gain(self, rank: Ints, k: int) -> Floats:
        """Normalised discounted gain at k, 0 for queries without a positive, shape ``(n,)``."""
        # Padding may have any rank; its grade is 0.
        gains = (rank <= k) * self.grade / np.log2(1.0 + np.where(self.is_real, rank, 1))
        best = -np.sort(-self.grade, axis=1)[:, :k]
        ideal = (best / np.log2(np.arange(2.0, best.shape[1] + 2.0))).sum(axis=1)
        return np.asarray(gains.sum(axis=1) / np.where(ideal > 0, ideal, 1.0))


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
