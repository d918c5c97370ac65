# SPDX-License-Identifier: Apache-2.0
"""Same or not (1:1): the rate of true accepts at a rate of false ones, and thresholds that move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation._keys import PerRow, exclusions, join_keys
from fclearn.evaluation._rows import Rows, RowSource, Scorer
from fclearn.evaluation._thresholds import (
    OperatingPoint,
    ScorePass,
    check_rates,
    count_pairs,
    operating_points,
)


@dataclass(frozen=True)
class VerificationResult:
    """What `evaluate_verification` found.

    Attributes:
        points: One for each rate asked for: ``true_rate`` is TAR at FAR = ``wanted``.
        num_genuine: Pairs of one label.
        num_impostor: Pairs of two labels.
    """

    points: tuple[OperatingPoint, ...]
    num_genuine: int
    num_impostor: int

    def to_dict(self) -> dict[str, object]:
        """All fields, as JSON values."""
        return asdict(self)


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


def evaluate_verification(
    query: RowSource,
    gallery: RowSource,
    *,
    query_labels: PerRow,
    gallery_labels: PerRow,
    false_accept_rates: Sequence[float] = (1e-4, 1e-3, 1e-2),
    exclude_self: bool = False,
    query_ids: PerRow | None = None,
    gallery_ids: PerRow | None = None,
    metric: str = "cosine",
) -> VerificationResult:
    """TAR@FAR of 1:1 verification over all pairs of a query and a gallery row.

    Args:
        query: As in `evaluate_retrieval`.
        gallery: As there.
        query_labels: Shape ``(Q,)``; a pair is genuine if its labels are equal.
        gallery_labels: Shape ``(G,)``.
        false_accept_rates: Each in (0, 1).
        exclude_self: Leave out pairs of a row with itself, by id.
        query_ids: As in `evaluate_retrieval`.
        gallery_ids: As there.
        metric: ``"cosine"``, ``"ip"`` or ``"l2"`` (thresholds are then minus squared distances).

    Returns:
        A point for each rate, in the order asked for.

    Raises:
        TypeError: As `evaluate_retrieval`.
        ValueError: As `evaluate_retrieval`; a rate outside (0, 1); no genuine or no impostor pair.

    Note:
        Exact, in two passes over Q x G scores that are never stored; memory as
        `evaluate_retrieval`.

    References:
        Maze et al., *IARPA Janus Benchmark-C: Face Dataset and Protocol*, ICB 2018.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> labels = [0, 0, 1, 1]
        >>> result = evaluate_verification(
        ...     rows, rows, query_labels=labels, gallery_labels=labels, exclude_self=True,
        ...     false_accept_rates=[0.5])
        >>> result.points[0].true_rate, result.num_impostor
        (1.0, 8)
    """
    check_rates(false_accept_rates, "false_accept_rates")
    pairs, unit = _pairs(
        query, gallery, (query_labels, gallery_labels), exclude_self, (query_ids, gallery_ids),
        metric,
    )  # fmt: skip
    counts = count_pairs(pairs)
    _check_counts(counts.num_genuine, counts.num_impostor)
    allowed = [int(rate * counts.num_impostor) for rate in false_accept_rates]
    points = operating_points(pairs, counts, allowed, false_accept_rates)
    return VerificationResult(
        tuple(_in_units(point, unit) for point in points), counts.num_genuine, counts.num_impostor
    )


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
    old_pairs, old_unit = _pairs(old_query, old_gallery, labels, exclude_self, ids, metric)
    new_pairs, new_unit = _pairs(new_query, new_gallery, labels, exclude_self, ids, metric)
    old, num_accepted, num_impostor = _at(old_pairs, threshold, old_unit, None)
    kept, _, _ = _at(new_pairs, threshold, new_unit, old.false_rate)
    counts = count_pairs(new_pairs)
    # The pairs are the same, but for rows that only one side lacks; then it is the rate that stays.
    allowed = num_accepted * counts.num_impostor // num_impostor
    (new,) = operating_points(new_pairs, counts, [allowed], [old.false_rate])
    return ThresholdTransfer(old, kept, _in_units(new, new_unit))


def _pairs(
    query: RowSource,
    gallery: RowSource,
    labels: tuple[PerRow, PerRow],
    exclude_self: bool,
    ids: tuple[PerRow | None, PerRow | None],
    metric: str,
    batch_size: int = 256,
    gallery_batch_size: int = 16384,
) -> tuple[ScorePass, float]:
    """A pass over all visible pairs, and what a score must be multiplied by."""
    rows = Rows(query, "query"), Rows(gallery, "gallery")
    sizes = rows[0].num_rows, rows[1].num_rows
    for name, size in zip(("query", "gallery"), sizes, strict=True):
        if size == 0:
            raise ValueError(f"{name}: expected at least one row, got shape [0, …]")
    keys = join_keys("labels", *labels, sizes)
    excluded = exclusions(exclude_self, ids, (None, None), sizes, same=query is gallery)
    scorer = Scorer(*rows, metric)

    def pairs() -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        for start in range(0, sizes[1], gallery_batch_size):
            part = slice(start, min(start + gallery_batch_size, sizes[1]))
            block = scorer.gallery(part)
            for first in range(0, sizes[0], batch_size):
                some = np.arange(first, min(first + batch_size, sizes[0]))
                scores = scorer.score(scorer.queries(some), block).cpu().numpy()
                keep = np.ones(scores.shape, dtype=bool)
                for exclusion in excluded:
                    keep &= ~exclusion.hidden(some, part).numpy()
                yield scores[keep], keys.hidden(some, part).numpy()[keep]

    return pairs, scorer.unit


def _at(
    pairs: ScorePass, threshold: float, unit: float, wanted: float | None
) -> tuple[OperatingPoint, int, int]:
    """What a threshold lets through, with the numbers of impostors accepted and in all."""
    accepted, total = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for scores, genuine in pairs():
        # float64, so that a threshold between two float32 stays between them.
        reaches = scores.astype(np.float64) * unit >= threshold
        accepted += np.bincount(genuine[reaches], minlength=2)
        total += np.bincount(genuine, minlength=2)
    _check_counts(int(total[1]), int(total[0]))
    rates = accepted / total
    aim = float(rates[0]) if wanted is None else wanted
    point = OperatingPoint(
        aim, float(threshold), float(rates[0]), float(rates[1]), bool(aim * total[0] >= 1)
    )
    return point, int(accepted[0]), int(total[0])


def _check_counts(num_genuine: int, num_impostor: int) -> None:
    if num_genuine == 0 or num_impostor == 0:
        raise ValueError(
            "query_labels and gallery_labels: expected pairs of one label and pairs of two, got "
            f"{num_genuine} and {num_impostor}"
        )


def _in_units(point: OperatingPoint, unit: float) -> OperatingPoint:
    return OperatingPoint(**{**asdict(point), "threshold": point.threshold * unit})
