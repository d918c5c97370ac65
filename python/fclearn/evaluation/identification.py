# SPDX-License-Identifier: Apache-2.0
"""Who or nobody (open-set 1:N): right names at a rate of strangers that get one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation._pairs import have_positives
from fclearn.evaluation._points import OperatingPoint, check_rates
from fclearn.evaluation._rows import Rows, Scorer
from fclearn.evaluation._thresholds import just_above
from fclearn.evaluation.intervals import check_bootstrap, interval, times_drawn
from fclearn.evaluation.keys import Exclusion, exclusions, join_keys
from fclearn.evaluation.relevance import SameLabel
from fclearn.evaluation.types import Ints, PerRow, RowSource

_BATCH, _GALLERY_BATCH = 256, 16384


@dataclass(frozen=True)
class IdentificationResult:
    """What `evaluate_identification` found.

    Attributes:
        points: One for each rate asked for: ``true_rate`` is TPIR at FPIR = ``wanted``.
        num_mated: Queries whose label is in the gallery.
        num_unmated: Queries whose label is not: strangers.
        confidence: Of the points' intervals.
    """

    points: tuple[OperatingPoint, ...]
    num_mated: int
    num_unmated: int
    confidence: float

    def to_dict(self) -> dict[str, object]:
        """All fields, as JSON values."""
        return asdict(self)


def evaluate_identification(
    query: RowSource,
    gallery: RowSource,
    *,
    query_labels: PerRow,
    gallery_labels: PerRow,
    false_positive_rates: Sequence[float] = (1e-2, 1e-1),
    exclude_self: bool = False,
    query_ids: PerRow | None = None,
    gallery_ids: PerRow | None = None,
    metric: str = "cosine",
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> IdentificationResult:
    """TPIR@FPIR of open-set 1:N identification, at rank 1.

    A query gets the name of its best gallery row if that row's score reaches the threshold. FPIR is
    the share of strangers (labels absent from the gallery) that get a name, TPIR the share of the
    others that get the right one.

    Args:
        query: As in `evaluate_retrieval`; with and without a counterpart in the gallery.
        gallery: As there.
        query_labels: Shape ``(Q,)``.
        gallery_labels: Shape ``(G,)``.
        false_positive_rates: Each in (0, 1).
        exclude_self: Leave out the gallery row with the query's id.
        query_ids: As in `evaluate_retrieval`.
        gallery_ids: As there.
        metric: ``"cosine"``, ``"ip"`` or ``"l2"``.
        num_bootstrap: Resamples behind the intervals, shared by the rates.
        confidence: Of the percentile intervals, in (0, 1).
        seed: Of the resamples.

    Returns:
        A point for each rate, in the order asked for. Of equal scores, the lower gallery row is the
        best.

    Raises:
        TypeError: As `evaluate_retrieval`.
        ValueError: As `evaluate_retrieval`; a rate outside (0, 1); no strangers, or only such;
            num_bootstrap or confidence out of range.

    Note:
        A resample draws the queries with a counterpart and the strangers apart, as many of either
        as there are, and finds its own threshold: an interval says how TPIR at this FPIR could have
        come out with other queries and other strangers, against the same gallery. It needs a byte
        for each query and resample.

    References:
        Maze et al., *IARPA Janus Benchmark-C: Face Dataset and Protocol*, ICB 2018.

    Example:
        >>> import numpy as np
        >>> gallery = np.eye(3)
        >>> query = np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1], [0.6, 0.5, 0.6]])
        >>> result = evaluate_identification(
        ...     query, gallery, query_labels=["ada", "bob", "eve"],
        ...     gallery_labels=["ada", "bob", "cy"])
        >>> result.points[0].true_rate, result.num_unmated
        (1.0, 1)
    """
    check_rates(false_positive_rates, "false_positive_rates")
    check_bootstrap(num_bootstrap, confidence)
    rows = Rows(query, "query", query_ids), Rows(gallery, "gallery", gallery_ids)
    sizes = rows[0].num_rows, rows[1].num_rows
    for name, size in zip(("query", "gallery"), sizes, strict=True):
        if size == 0:
            raise ValueError(f"{name}: expected at least one row, got shape [0, …]")
    labels = join_keys("labels", query_labels, gallery_labels, sizes)
    excluded = exclusions(
        exclude_self, (query_ids, gallery_ids), (None, None), sizes, same=query is gallery
    )
    mated = have_positives(SameLabel(labels), excluded)
    if mated.all() or not mated.any():
        raise ValueError(
            "query_labels: expected queries with and without their label in the gallery, got "
            f"{int(mated.sum())} and {int((~mated).sum())}"
        )
    scorer = Scorer(*rows, metric)
    score, row = _best_hits(scorer, excluded, sizes)
    right = (row >= 0) & (labels.query == labels.gallery[row])
    times = times_drawn(mated, num_bootstrap, seed)
    known = _best_first(score[mated], times[:, mated], right[mated])
    strangers = _best_first(score[~mated], times[:, ~mated])
    points = []
    for rate in false_positive_rates:
        limit = strangers.score[int(rate * len(strangers.score))]
        points.append(
            OperatingPoint(
                wanted=float(rate),
                threshold=float(just_above(limit)) * scorer.unit,
                false_rate=float((strangers.score > limit).mean()),
                true_rate=float((right & (score > limit))[mated].mean()),
                is_resolved=rate * len(strangers.score) >= 1,
                interval=interval(_resampled(known, strangers, rate), confidence),
            )
        )
    return IdentificationResult(tuple(points), int(mated.sum()), int((~mated).sum()), confidence)


@dataclass(frozen=True)
class _Drawn:
    """Queries of one kind, best score first, and how often resamples have them.

    Attributes:
        score: Shape ``(n,)``, descending.
        times: Shape ``(B, n)``; 0 for queries that do not count.
    """

    score: NDArray[np.float32]
    times: NDArray[np.uint8]


def _best_first(
    score: NDArray[np.float32], times: NDArray[np.uint8], counts: NDArray[np.bool_] | bool = True
) -> _Drawn:
    order = np.argsort(-score, kind="stable")
    return _Drawn(score[order], (times * counts)[:, order])


def _resampled(known: _Drawn, strangers: _Drawn, rate: float) -> NDArray[np.float64]:
    """TPIR of each resample, at the threshold that is right for its own strangers, ``(B,)``."""
    allowed = int(rate * len(strangers.score))
    rates = np.empty(len(known.times))
    for at, (times, others) in enumerate(zip(known.times, strangers.times, strict=True)):
        limit = strangers.score[np.argmax(np.cumsum(others, dtype=np.int64) > allowed)]
        passing = np.searchsorted(-known.score, -limit, side="left")
        rates[at] = times[:passing].sum(dtype=np.int64)
    return rates / len(known.score)


def _best_hits(
    scorer: Scorer, excluded: tuple[Exclusion, ...], sizes: tuple[int, int]
) -> tuple[NDArray[np.float32], Ints]:
    """Score and row of each query's best gallery row, ``(Q,)``; -inf and -1 where none exists."""
    score = np.full(sizes[0], -np.inf, dtype=np.float32)
    row = np.full(sizes[0], -1)
    for start in range(0, sizes[1], _GALLERY_BATCH):
        part = slice(start, min(start + _GALLERY_BATCH, sizes[1]))
        block = scorer.gallery(part)
        for first in range(0, sizes[0], _BATCH):
            some = np.arange(first, min(first + _BATCH, sizes[0]))
            scores = scorer.score(scorer.queries(some), block).cpu().numpy()
            for exclusion in excluded:
                scores[exclusion.hidden(some, part).numpy()] = -np.inf
            best = scores.argmax(axis=1)  # the first of equal ones
            value = scores[np.arange(len(some)), best]
            better = value > score[some]
            score[some[better]], row[some[better]] = value[better], best[better] + start
    return score, row
