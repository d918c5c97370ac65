# SPDX-License-Identifier: Apache-2.0
"""Same or not (1:1): the rate of true accepts at a rate of false ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fclearn.evaluation._pair_scores import PairScores, check_counts
from fclearn.evaluation._points import OperatingPoint, check_rates
from fclearn.evaluation._thresholds import count_pairs, cut
from fclearn.evaluation.intervals import check_bootstrap, interval, times_drawn
from fclearn.evaluation.types import PerRow, RowSource


@dataclass(frozen=True)
class VerificationResult:
    """What `evaluate_verification` found.

    Attributes:
        points: One for each rate asked for: ``true_rate`` is TAR at FAR = ``wanted``.
        num_genuine: Pairs of one label.
        num_impostor: Pairs of two labels.
        confidence: Of the points' intervals.
    """

    points: tuple[OperatingPoint, ...]
    num_genuine: int
    num_impostor: int
    confidence: float

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
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
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
        num_bootstrap: Resamples of the queries behind the intervals, shared by the rates.
        confidence: Of the percentile intervals, in (0, 1).
        seed: Of the resamples.

    Returns:
        A point for each rate, in the order asked for.

    Raises:
        TypeError: As `evaluate_retrieval`.
        ValueError: As `evaluate_retrieval`; a rate outside (0, 1); no genuine or no impostor pair;
            num_bootstrap or confidence out of range.

    Note:
        A resample draws queries, each with all of its pairs: pairs that share a query are not
        independent. Queries with and without a genuine pair are drawn apart, as many of either as
        there are. Each resample finds its own threshold, the lowest that no more than the wanted
        share of its impostors reach, so an interval says how TAR at this FAR could have come out
        with other queries against the same gallery; a threshold held fast would leave out that
        few impostors do not tell where it belongs. Like the point itself, all of that is exact.

        Three passes over Q x G scores that are never stored; memory as `evaluate_retrieval`, and a
        byte for each query and resample, 64 kB for each resample, 16 kB for each rate and resample.

    References:
        Maze et al., *IARPA Janus Benchmark-C: Face Dataset and Protocol*, ICB 2018. Pairs drawn
        together: Bolle, Ratha and Pankanti, *Error analysis of pattern recognition systems: the
        subsets bootstrap*, CVIU 2004.

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
    check_bootstrap(num_bootstrap, confidence)
    labels, ids = (query_labels, gallery_labels), (query_ids, gallery_ids)
    pairs = PairScores.of(query, gallery, labels, exclude_self, ids, metric)
    times = times_drawn(pairs.have_genuine(), num_bootstrap, seed)
    # The queries as they are come first.
    counts = count_pairs(pairs, np.concatenate([np.ones_like(times[:1]), times]))
    num_impostor, num_genuine = counts.totals
    check_counts(int(num_genuine[0]), int(num_impostor[0]))
    allowed = (np.asarray(false_accept_rates)[:, None] * num_impostor).astype(np.int64)
    cuts = cut(pairs, counts, allowed)
    points = [
        OperatingPoint(
            wanted=float(rate),
            threshold=float(thresholds[0]) * pairs.unit,
            false_rate=float(false[0] / num_impostor[0]),
            true_rate=float(true[0] / num_genuine[0]),
            is_resolved=bool(rate * num_impostor[0] >= 1),
            interval=interval(true[1:] / num_genuine[1:], confidence),
        )
        for rate, thresholds, false, true in zip(
            false_accept_rates, cuts.thresholds, *cuts.accepted, strict=True
        )
    ]
    return VerificationResult(
        tuple(points), int(num_genuine[0]), int(num_impostor[0]), float(confidence)
    )
