# SPDX-License-Identifier: Apache-2.0
"""The threshold on a new model's scores that lets through as many impostors as the old one did."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from fclearn.evaluation._keys import PerRow
from fclearn.evaluation._pair_scores import PairScores, check_counts
from fclearn.evaluation._points import OperatingPoint
from fclearn.evaluation._rows import RowSource
from fclearn.evaluation._thresholds import count_pairs, cut


@dataclass(frozen=True)
class ThresholdTransfer:
    """What `transfer_threshold` found.

    Attributes:
        old: The old threshold on old scores.
        kept: The old threshold on new scores: what happens if nobody changes it.
        new: The threshold on new scores that keeps the old rate of false accepts.
    """

    old: OperatingPoint
    kept: OperatingPoint
    new: OperatingPoint

    def to_dict(self) -> dict[str, object]:
        """All fields, as JSON values."""
        return asdict(self)


def transfer_threshold(
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
    """Find the threshold that keeps the old rate of false accepts after an upgrade.

    Scores of another model lie elsewhere: a threshold of 0.7 that let one impostor in a thousand
    through may let through none, or a tenth of them.

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
        >>> moved = transfer_threshold(
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
    old, num_accepted, num_impostor = _at(old_pairs, threshold, None)
    kept, _, num_new = _at(new_pairs, threshold, old.false_rate)
    # The pairs are the same, but for rows that only one side lacks; then it is the rate that stays.
    allowed = num_accepted * num_new // num_impostor
    return ThresholdTransfer(old, kept, _lowest(new_pairs, allowed, old.false_rate))


def _lowest(pairs: PairScores, allowed: int, wanted: float) -> OperatingPoint:
    """The lowest threshold that no more than ``allowed`` impostors reach."""
    counts = count_pairs(pairs, np.ones((1, pairs.sizes[0]), dtype=np.uint8))
    num_impostor, num_genuine = counts.totals[:, 0]
    cuts = cut(pairs, counts, np.array([[allowed]]))
    false, true = cuts.accepted[:, 0, 0]
    return OperatingPoint(
        wanted=wanted,
        threshold=float(cuts.thresholds[0, 0]) * pairs.unit,
        false_rate=float(false / num_impostor),
        true_rate=float(true / num_genuine),
        is_resolved=bool(wanted * num_impostor >= 1),
    )


def _at(
    pairs: PairScores, threshold: float, wanted: float | None
) -> tuple[OperatingPoint, int, int]:
    """What a threshold lets through, with the numbers of impostors accepted and in all."""
    accepted, total = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for some in pairs():
        # float64, so that a threshold between two float32 stays between them.
        reaches = some.scores.astype(np.float64) * pairs.unit >= threshold
        accepted += np.bincount(some.genuine[reaches], minlength=2)
        total += np.bincount(some.genuine, minlength=2)
    check_counts(int(total[1]), int(total[0]))
    rates = accepted / total
    aim = float(rates[0]) if wanted is None else wanted
    point = OperatingPoint(
        aim, float(threshold), float(rates[0]), float(rates[1]), bool(aim * total[0] >= 1)
    )
    return point, int(accepted[0]), int(total[0])
