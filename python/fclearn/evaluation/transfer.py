# SPDX-License-Identifier: Apache-2.0
"""The threshold on a new model's scores that lets through as many impostors as the old one did."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from fclearn.evaluation._pair_scores import PairScores, check_counts
from fclearn.evaluation._thresholds import count_pairs, cut
from fclearn.evaluation.types import Interval, PerRow, RowSource


@dataclass(frozen=True)
class ThresholdRates:
    """What a threshold lets through.

    Attributes:
        threshold: Scores that reach it are accepted.
        false_rate: Share of impostors accepted.
        true_rate: Share of genuine pairs accepted; None where no genuine ones were given.
    """

    threshold: float
    false_rate: float
    true_rate: float | None = None


@dataclass(frozen=True)
class ThresholdTransfer:
    """A threshold moved to the scores of another model.

    Found by `transfer_threshold_by_labels` or `fclearn.backfill.transfer_threshold_by_scores`.

    Attributes:
        old: The old threshold on old scores.
        kept: The old threshold on new scores: what happens if nobody changes it.
        new: The threshold on new scores that keeps the old rate of false accepts.
        num_old: Impostors behind ``old``.
        num_new: Impostors behind ``kept`` and ``new``.
        interval: Bootstrap interval of the new threshold; None by labels.
        confidence: Of the interval.
    """

    old: ThresholdRates
    kept: ThresholdRates
    new: ThresholdRates
    num_old: int
    num_new: int
    interval: Interval | None = None
    confidence: float | None = None

    @property
    def is_resolved(self) -> bool:
        """Whether at least one new impostor may pass.

        Otherwise the new threshold stands above all of them, and says little about such a rate.
        """
        return self.old.false_rate * self.num_new >= 1

    def to_dict(self) -> dict[str, object]:
        """All fields and `is_resolved`, as JSON values."""
        bounds = None if self.interval is None else list(self.interval)
        return {**asdict(self), "interval": bounds, "is_resolved": self.is_resolved}


def transfer_threshold_by_labels(
    threshold: float,
    *,
    old_query: RowSource,
    old_gallery: RowSource,
    new_query: RowSource,
    new_gallery: RowSource,
    query_labels: PerRow,
    gallery_labels: PerRow,
    exclude_self: bool = False,
    query_ids: PerRow | None = None,
    gallery_ids: PerRow | None = None,
    metric: str = "cosine",
) -> ThresholdTransfer:
    """Find the threshold that keeps the old rate of false accepts, from labelled features.

    Scores of another model lie elsewhere: a threshold of 0.7 that let one impostor in a thousand
    through may let through none, or a tenth of them. The new one is the lowest float32 that no
    larger share of the new impostors reaches. Where there are only scores of impostors,
    `fclearn.backfill.transfer_threshold_by_scores` does the same by them.

    Args:
        threshold: On the scores of old queries against the old gallery.
        old_query: Shape ``(Q, D)``, as in `evaluate_retrieval`.
        old_gallery: Shape ``(G, D)``.
        new_query: The same rows by the new model.
        new_gallery: What they will meet: the old gallery, or a new one.
        query_labels: Shape ``(Q,)``; a pair is an impostor if its labels differ.
        gallery_labels: Shape ``(G,)``.
        exclude_self: Leave out pairs of a row with itself, by id.
        query_ids: As in `evaluate_retrieval`.
        gallery_ids: As there.
        metric: Of both.

    Raises:
        TypeError: As `evaluate_retrieval`.
        ValueError: As `evaluate_retrieval`; no genuine or no impostor pair; a NaN threshold.

    Example:
        >>> import numpy as np
        >>> old = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> new = np.array([[1.0, 0.0], [0.9, 0.1], [0.7, 0.7]])
        >>> moved = transfer_threshold_by_labels(
        ...     0.7, old_query=old, old_gallery=old, new_query=new, new_gallery=new,
        ...     query_labels=[0, 0, 1], gallery_labels=[0, 0, 1], exclude_self=True)
        >>> moved.old.false_rate, moved.kept.false_rate, moved.new.false_rate
        (0.0, 1.0, 0.0)
    """
    if np.isnan(threshold):
        raise ValueError("threshold: expected a number, got NaN")
    labels, ids = (query_labels, gallery_labels), (query_ids, gallery_ids)
    old_pairs = PairScores.of(old_query, old_gallery, labels, exclude_self, ids, metric)
    new_pairs = PairScores.of(new_query, new_gallery, labels, exclude_self, ids, metric)
    old, num_accepted, num_old = _at(old_pairs, threshold)
    kept, _, num_new = _at(new_pairs, threshold)
    # The pairs are the same, but for rows that only one side lacks; then it is the rate that stays.
    allowed = num_accepted * num_new // num_old
    return ThresholdTransfer(old, kept, _lowest(new_pairs, allowed), num_old, num_new)


def _lowest(pairs: PairScores, allowed: int) -> ThresholdRates:
    """The lowest threshold that no more than ``allowed`` impostors reach."""
    counts = count_pairs(pairs, np.ones((1, pairs.sizes[0]), dtype=np.uint8))
    num_impostor, num_genuine = counts.totals[:, 0]
    cuts = cut(pairs, counts, np.array([[allowed]]))
    false, true = cuts.accepted[:, 0, 0]
    return ThresholdRates(
        threshold=float(cuts.thresholds[0, 0]) * pairs.unit,
        false_rate=float(false / num_impostor),
        true_rate=float(true / num_genuine),
    )


def _at(pairs: PairScores, threshold: float) -> tuple[ThresholdRates, int, int]:
    """What a threshold lets through, with the numbers of impostors accepted and in all."""
    accepted, total = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for some in pairs():
        # float64, so that a threshold between two float32 stays between them.
        reaches = some.scores.astype(np.float64) * pairs.unit >= threshold
        accepted += np.bincount(some.genuine[reaches], minlength=2)
        total += np.bincount(some.genuine, minlength=2)
    check_counts(int(total[1]), int(total[0]))
    rates = accepted / total
    found = ThresholdRates(float(threshold), float(rates[0]), float(rates[1]))
    return found, int(accepted[0]), int(total[0])
