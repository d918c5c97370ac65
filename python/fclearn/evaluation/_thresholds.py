# SPDX-License-Identifier: Apache-2.0
"""Thresholds that a given share of the impostors reaches, from scores too many to store.

A threshold accepts what reaches it. That for a false-accept rate t is the lowest that no more than
a share t of the impostors reach, found exactly: pairs are counted by the bits of their float32
scores, first by the upper 16, then, for the buckets that matter, by the lower 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation._keys import Ints

#: Makes one pass over all pairs: scores, float32 ``(n,)``, and whether each pair is genuine.
ScorePass = Callable[[], Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]]

_HALF = 2**16
_SIGN = np.uint32(2**31)


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and what it lets through.

    Attributes:
        wanted: Share of impostors that may be accepted.
        threshold: Scores that reach it are accepted.
        false_rate: Share of impostors accepted, at most ``wanted``.
        true_rate: Share of genuine ones accepted.
        is_resolved: Whether there are at least 1 / ``wanted`` impostors: with fewer, the threshold
            stands above all of them, and says little about such a rate.
    """

    wanted: float
    threshold: float
    false_rate: float
    true_rate: float
    is_resolved: bool


@dataclass(frozen=True)
class Counts:
    """Impostor and genuine pairs by the upper half of their scores' bits, shape ``(2, 2**16)``."""

    table: Ints

    @property
    def num_impostor(self) -> int:
        """Impostor pairs."""
        return int(self.table[0].sum())

    @property
    def num_genuine(self) -> int:
        """Genuine pairs."""
        return int(self.table[1].sum())


def count_pairs(pairs: ScorePass) -> Counts:
    """The first pass."""
    table = np.zeros((2, _HALF), dtype=np.int64)
    for scores, genuine in pairs():
        high = (_ordered(scores) >> np.uint32(16)).astype(np.int64)
        table += np.bincount(high + genuine * _HALF, minlength=2 * _HALF).reshape(2, _HALF)
    return Counts(table)


def operating_points(
    pairs: ScorePass, counts: Counts, allowed: Sequence[int], wanted: Sequence[float]
) -> list[OperatingPoint]:
    """The second pass: the lowest thresholds that no more than ``allowed`` impostors reach.

    Args:
        pairs: The same pairs again.
        counts: Of the first pass, with impostors and genuine pairs.
        allowed: Impostors that may be accepted, each from 0 to their number.
        wanted: The shares behind these numbers, to be told.
    """
    above = np.cumsum(counts.table[:, ::-1], axis=1)[:, ::-1]
    # The bucket of the best impostor that must not be accepted; none if all may.
    buckets = [int(np.flatnonzero(above[0] > most).max(initial=-1)) for most in allowed]
    fine = {bucket: np.zeros((2, _HALF), dtype=np.int64) for bucket in buckets if bucket >= 0}
    for scores, genuine in pairs() if fine else ():
        order = _ordered(scores)
        high = order >> np.uint32(16)
        for bucket, table in fine.items():
            inside = high == bucket
            low = (order[inside] & np.uint32(_HALF - 1)).astype(np.int64)
            low += genuine[inside] * _HALF
            np.add(table, np.bincount(low, minlength=2 * _HALF).reshape(2, _HALF), out=table)
    points = []
    for most, share, bucket in zip(allowed, wanted, buckets, strict=True):
        threshold, accepted = -np.inf, above[:, 0]
        if bucket >= 0:
            beyond = above[:, bucket + 1] if bucket + 1 < _HALF else np.zeros(2, np.int64)
            inner = np.cumsum(fine[bucket][:, ::-1], axis=1)[:, ::-1] + beyond[:, None]
            refused = int(np.flatnonzero(inner[0] > most).max())
            accepted = inner[:, refused + 1] if refused + 1 < _HALF else beyond
            threshold = just_above(_score_of((bucket << 16) + refused))
        points.append(
            OperatingPoint(
                wanted=float(share),
                threshold=float(threshold),
                false_rate=float(accepted[0] / counts.num_impostor),
                true_rate=float(accepted[1] / counts.num_genuine),
                is_resolved=share * counts.num_impostor >= 1,
            )
        )
    return points


def just_above(score: np.float32) -> float:
    """The next float32."""
    return float(np.nextafter(score, np.float32(np.inf)))


def check_rates(rates: Sequence[float], name: str) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: No rate, or one outside (0, 1).
    """
    if not len(rates):
        raise ValueError(f"{name}: expected at least one rate")
    for rate in rates:
        if not 0 < rate < 1:
            raise ValueError(f"{name}: expected rates in (0, 1), got {rate}")


def _ordered(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bits that sort as the numbers do; -0 is 0."""
    bits = (scores + np.float32(0)).view(np.uint32)
    return np.asarray(np.where(bits & _SIGN, ~bits, bits | _SIGN), dtype=np.uint32)


def _score_of(order: int) -> np.float32:
    bits = order ^ int(_SIGN) if order & int(_SIGN) else ~order & (2**32 - 1)
    score: np.float32 = np.array([bits], np.uint32).view(np.float32)[0]
    return score
