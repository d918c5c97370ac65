# SPDX-License-Identifier: Apache-2.0
"""A threshold moved from old to new scores by samples of impostor scores alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fclearn.backfill._samples import Floats, sorted_scores
from fclearn.evaluation import ThresholdRates, ThresholdTransfer
from fclearn.evaluation.intervals import check_bootstrap, interval


def transfer_threshold_by_scores(
    old_scores: ArrayLike,
    new_scores: ArrayLike,
    threshold: float,
    *,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ThresholdTransfer:
    r"""Find the threshold that keeps the old rate of false accepts, from samples of scores.

    With :math:`\mathrm{FAR} = \frac1n \#\{s_{old} \ge t_{old}\}` over impostor pairs, the new
    threshold is the lowest of the m new impostor scores that at most
    :math:`\lfloor \mathrm{FAR} \cdot m \rfloor` of them reach. No labels or features are needed,
    only a sample of scores of pairs that should *not* match on either side; they need not be the
    same pairs. Where there are labels and features of both sides,
    `fclearn.evaluation.transfer_threshold_by_labels` looks at every pair, genuine ones too.

    Args:
        old_scores: Impostor scores of the old system, any shape, larger is nearer.
        new_scores: Of the new one.
        threshold: In use on old scores.
        num_bootstrap: Resamples behind the interval.
        confidence: Of the interval, in (0, 1).
        seed: Of the resamples.

    Returns:
        The new threshold and its interval; ``true_rate`` is None.

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
        >>> moved = transfer_threshold_by_scores(old, 0.5 * old + 0.2, 0.9)
        >>> round(moved.new.threshold, 3), round(moved.new.false_rate, 3), moved.kept.false_rate
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
    return ThresholdTransfer(
        old=ThresholdRates(float(threshold), accepted / len(old)),
        kept=ThresholdRates(float(threshold), _num_reaching(new, threshold) / len(new)),
        new=ThresholdRates(found, _num_reaching(new, found) / len(new)),
        num_old=len(old),
        num_new=len(new),
        interval=interval(drawn, confidence),
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
