# SPDX-License-Identifier: Apache-2.0
"""The threshold on new scores that lets through as many impostors as the old one did."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from fclearn.backfill._samples import Floats, sorted_scores
from fclearn.evaluation._bootstrap import check_bootstrap, interval


@dataclass(frozen=True)
class TransferredThreshold:
    """What `move_threshold` found.

    Attributes:
        threshold: On new scores; those that reach it are accepted.
        interval: Bootstrap interval of it, over both samples.
        false_accept_rate: Share of the old sample at or above the old threshold.
        kept_rate: Share of the new sample at or above the *old* threshold: what happens if nobody
            moves it.
        new_rate: Share of the new sample at or above the new one, at most ``false_accept_rate``.
        num_old: Old scores.
        num_new: New scores.
        confidence: Of the interval.
    """

    threshold: float
    interval: tuple[float, float]
    false_accept_rate: float
    kept_rate: float
    new_rate: float
    num_old: int
    num_new: int
    confidence: float

    def to_dict(self) -> dict[str, object]:
        """All fields, as JSON values."""
        return {**asdict(self), "interval": list(self.interval)}


def move_threshold(
    old_scores: ArrayLike,
    new_scores: ArrayLike,
    threshold: float,
    *,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> TransferredThreshold:
    r"""Move a threshold to another scale of scores, keeping its false-accept rate.

    With :math:`\mathrm{FAR} = \frac1n \#\{s_{old} \ge t_{old}\}` over impostor pairs, the new
    threshold is the lowest of the m new impostor scores that at most
    :math:`\lfloor \mathrm{FAR} \cdot m \rfloor` of them reach. No labels or features are needed,
    only a sample of scores of pairs that should *not* match on either side; they need not be the
    same pairs.

    Args:
        old_scores: Impostor scores of the old system, any shape, larger is nearer.
        new_scores: Of the new one.
        threshold: In use on old scores.
        num_bootstrap: Resamples behind the interval.
        confidence: Of the interval, in (0, 1).
        seed: Of the resamples.

    Returns:
        The new threshold and its interval.

    Raises:
        TypeError: Scores that are not real numbers.
        ValueError: No scores, NaN or infinite ones; no old score at or above the threshold, or too
            few new scores for its rate: then the sample says nothing about it.

    Note:
        Resampled counts at or above a threshold are binomial, and the position of a resample's
        k-th largest value is a rounded beta variable, so the bootstrap is exact and takes
        O(num_bootstrap) beyond one sort. It treats scores as independent. Pairs that share a query
        are not: take few pairs of each of many queries.

    References:
        Phillips et al., *The FERET evaluation methodology for face-recognition algorithms*, TPAMI
        2000 (rates at a threshold); Efron, *Bootstrap methods*, Annals of Statistics 1979.

    Example:
        >>> import numpy as np
        >>> old = np.linspace(0, 1, 1001)
        >>> moved = move_threshold(old, 0.5 * old + 0.2, 0.9)
        >>> round(moved.threshold, 3), round(moved.false_accept_rate, 3), moved.kept_rate
        (0.65, 0.101, 0.0)
    """
    old, new = sorted_scores(old_scores, "old_scores"), sorted_scores(new_scores, "new_scores")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold: expected a finite number, got {threshold}")
    check_bootstrap(num_bootstrap, confidence)
    accepted = _num_reaching(old, threshold)
    if accepted == 0:
        raise ValueError(
            f"threshold: none of the {len(old)} old scores reaches {threshold:g}, so its "
            f"false-accept rate is below {1 / len(old):.2g} and cannot be told; give more scores"
        )
    # In integers: a rate times a count could fall just short of a whole number.
    allowed = accepted * len(new) // len(old)
    if allowed == 0:
        raise ValueError(
            f"new_scores: expected at least {math.ceil(len(old) / accepted)} scores for a "
            f"false-accept rate of {accepted / len(old):.2g}, got {len(new)}"
        )
    rng = np.random.default_rng(seed)
    counts = rng.binomial(len(old), accepted / len(old), num_bootstrap) * len(new) // len(old)
    # A draw without any accepted score is taken as one with a single one: no further can we see.
    counts = counts.clip(1)
    place = rng.beta(len(new) - counts + 1, counts)
    drawn = new[np.ceil(place * len(new)).astype(np.int64).clip(1) - 1]
    found = _lowest_reached_by(new, allowed)
    return TransferredThreshold(
        threshold=found,
        interval=interval(drawn, confidence),
        false_accept_rate=accepted / len(old),
        kept_rate=_num_reaching(new, threshold) / len(new),
        new_rate=_num_reaching(new, found) / len(new),
        num_old=len(old),
        num_new=len(new),
        confidence=confidence,
    )


def _num_reaching(ordered: Floats, threshold: float) -> int:
    return len(ordered) - int(np.searchsorted(ordered, threshold, side="left"))


def _lowest_reached_by(ordered: Floats, k: int) -> float:
    """The lowest score that at most k scores reach; just above all of them where none is."""
    candidate = float(ordered[-k])
    if _num_reaching(ordered, candidate) <= k:
        return candidate
    above = int(np.searchsorted(ordered, candidate, side="right"))
    return float(ordered[above] if above < len(ordered) else np.nextafter(candidate, np.inf))
