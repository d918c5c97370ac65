# SPDX-License-Identifier: Apache-2.0
"""Ways to serve a gallery of which some rows have been embedded anew, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fclearn.backfill._ranks import Positives, order_keys, ranks_of
from fclearn.backfill.calibration import ScoreCalibration
from fclearn.backfill.merging import merge_rankings
from fclearn.backfill.rerank import rerank_shortlist
from fclearn.backfill.sample import CROSS, MERGED, MIXED, NEW, OLD, MigrationSample, Scores
from fclearn.evaluation.intervals import bootstrap_means, check_bootstrap, interval
from fclearn.evaluation.metrics import check_metrics
from fclearn.evaluation.types import Interval

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ONE, ONE_CALIBRATED = "one index", "one index, calibrated"
TWO_RRF, TWO_CALIBRATED = "two indexes, RRF", "two indexes, calibrated"
RERANK = "two-stage rerank"
#: Ways that serve the rows embedded anew; the others are what lies before and after a migration.
HALFWAY = (ONE, ONE_CALIBRATED, TWO_RRF, TWO_CALIBRATED, RERANK)
#: Those for which `backfill_curve` gives a curve: its serving, and whether it is calibrated.
CURVES = {
    ONE: (MIXED, False),
    ONE_CALIBRATED: (MIXED, True),
    TWO_CALIBRATED: (MERGED, True),
}


@dataclass(frozen=True)
class ServedWay:
    """One way, measured.

    Attributes:
        metrics: As fractions.
        gain: Difference to the better way of those that leave the gallery alone, by metric.
        gain_intervals: Paired bootstrap intervals of it, over queries.
    """

    metrics: dict[str, float]
    gain: dict[str, float]
    gain_intervals: dict[str, Interval]


@dataclass(frozen=True)
class ServingTable:
    """What `compare_serving` found.

    Attributes:
        ways: By name: old/old if there are old queries, new/old if spaces can be mixed, the ways of
            `HALFWAY` that are possible, and new/new.
        baseline: The better of old/old and new/old, by the first metric: what leaving the gallery
            alone reaches.
    """

    ways: dict[str, ServedWay]
    baseline: str

    @property
    def best(self) -> str:
        """The best way of `HALFWAY`, by the first metric."""
        return max(
            (name for name in self.ways if name in HALFWAY),
            key=lambda name: next(iter(self.ways[name].metrics.values())),
        )


def compare_serving(
    sample: MigrationSample,
    migrated: ArrayLike,
    calibrations: Mapping[str, ScoreCalibration],
    *,
    shortlist: int = 100,
    metrics: Sequence[str] = ("map", "cmc@1"),
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ServingTable:
    """Measure every way to serve a half-migrated gallery that the sample allows.

    One index: new queries on old and new rows, scores as they are or those of old rows calibrated.
    Two indexes, rows in either: the rankings merged by reciprocal ranks or by calibrated scores.
    Rerank: the old index, its shortlist reordered by the new vectors there are, old scores
    calibrated if they can be.

    Args:
        sample: Queries and gallery in both spaces.
        migrated: Gallery rows embedded anew, each once, shape ``(M,)``.
        calibrations: As `fit_calibration` makes them, by serving, ``"mixed"`` or ``"merged"``;
            what would need a missing one is left out.
        shortlist: Rows reranked.
        metrics: As `fclearn.evaluation.evaluate_retrieval`.
        num_bootstrap: Resamples behind the intervals.
        confidence: Of the intervals, in (0, 1).
        seed: Of the resamples.

    Returns:
        The ways, each with its difference to leaving the gallery alone.

    Raises:
        ValueError: A sample that can be served in no way: no old queries, and new features too
            narrow for the old gallery; rows out of range or twice; an unknown metric; an option
            out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(60) % 6
        >>> new = np.eye(6)[labels] + 0.2 * rng.normal(size=(60, 6))
        >>> old = (new + 0.4 * rng.normal(size=(60, 6))) @ np.eye(6)[::-1]  # another basis
        >>> sample = MigrationSample.build(
        ...     old_query=old, new_query=new, old_gallery=old, new_gallery=new,
        ...     query_labels=labels, gallery_labels=labels, query_ids=range(60),
        ...     gallery_ids=range(60))
        >>> from fclearn.backfill import fit_calibration
        >>> calibrations = {"merged": fit_calibration(sample, "merged")}
        >>> table = compare_serving(sample, np.arange(30), calibrations, num_bootstrap=100)
        >>> table.baseline, table.best
        ('old/old', 'two indexes, calibrated')
    """
    names = check_metrics(metrics)
    check_bootstrap(num_bootstrap, confidence)
    if sample.old_query is None and not sample.can_mix:
        raise ValueError(
            "old_query: expected features by the old model, as new queries of "
            f"{sample.new_query.shape[1]} dims cannot meet old rows of "
            f"{sample.old_gallery.shape[1]}"
        )
    table = served_values(sample, migrated, calibrations, shortlist=shortlist, metrics=names)
    counted = ~np.isnan(table[NEW][:, 0])
    untouched = [name for name in (OLD, CROSS) if name in table]
    baseline = max(untouched, key=lambda name: float(table[name][counted, 0].mean()))
    ways = {}
    for name, values in table.items():
        change = (values - table[baseline])[counted]
        draws = bootstrap_means(change, num_bootstrap, seed)
        ways[name] = ServedWay(
            dict(zip(names, values[counted].mean(0).tolist(), strict=True)),
            dict(zip(names, change.mean(0).tolist(), strict=True)),
            {metric: interval(draws[:, m], confidence) for m, metric in enumerate(names)},
        )
    return ServingTable(ways, baseline)


def served_values(
    sample: MigrationSample,
    migrated: ArrayLike,
    calibrations: Mapping[str, ScoreCalibration],
    *,
    shortlist: int,
    metrics: Sequence[str],
    only: Collection[str] | None = None,
) -> dict[str, Floats]:
    """Metrics of every query by every way that the sample allows.

    Args:
        sample: As `compare_serving`, like the next four.
        migrated: As there.
        calibrations: As there.
        shortlist: As there.
        metrics: As there.
        only: Ways to measure; None: all.

    Returns:
        By way, shape ``(Q, M)`` for M metrics, NaN for queries without a positive.

    Raises:
        ValueError: Rows out of range or twice; a shortlist below 1; an unknown metric.
    """
    names = check_metrics(metrics)
    if shortlist < 1:
        raise ValueError(f"shortlist: expected at least 1, got {shortlist}")
    is_new = _mask(migrated, sample.num_gallery)
    found: dict[str, list[Floats]] = {}
    for part in sample.blocks():
        positives = Positives.of(sample.positives(part), sample.grades(part))
        for name, way in _ways(sample, part, is_new, calibrations, shortlist, positives).items():
            if only is None or name in only:
                found.setdefault(name, []).append(positives.metrics(names, way()))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _ways(
    sample: MigrationSample,
    part: slice,
    is_new: Mask,
    calibrations: Mapping[str, ScoreCalibration],
    shortlist: int,
    positives: Positives,
) -> dict[str, Callable[[], Ints]]:
    """What gives the ranks of the positives, from 1, by every way."""
    left_out, new = sample.left_out(part), sample.new_scores(part)

    def by_score(scores: Scores) -> Ints:
        return ranks_of(order_keys(scores, left_out), positives)

    def halves(old: Scores, calibration: ScoreCalibration | None) -> Ints:
        if calibration is not None:
            old = calibration.transform(old).astype(np.float32)
        return by_score(np.where(is_new, new, old))

    def reranked(old: Scores) -> Ints:
        ranking = _ranking(old, left_out)
        top = ranking[:, :shortlist]
        at = top.clip(0)
        top = rerank_shortlist(
            top,
            np.take_along_axis(old, at, axis=1),
            np.where(is_new[at], np.take_along_axis(new, at, axis=1), np.nan),
            calibration=calibrations.get(MERGED),
        )
        return np.concatenate([top, ranking[:, shortlist:]], axis=1)

    ways: dict[str, Callable[[], Ints]] = {}
    old = cross = None
    if sample.old_query is not None:
        old = sample.old_scores(part)
        ways[OLD] = lambda: by_score(old)
    if sample.can_mix:
        cross = sample.cross_scores(part)
        ways[CROSS] = lambda: by_score(cross)
        ways[ONE] = lambda: halves(cross, None)
        if MIXED in calibrations:
            ways[ONE_CALIBRATED] = lambda: halves(cross, calibrations[MIXED])
    if old is not None:
        ways[TWO_RRF] = lambda: _places(_fused(old, new, is_new, left_out), positives)
        if MERGED in calibrations:
            ways[TWO_CALIBRATED] = lambda: halves(old, calibrations[MERGED])
        ways[RERANK] = lambda: _places(reranked(old), positives)
    ways[NEW] = lambda: by_score(new)
    return ways


def _ranking(scores: Scores, left_out: Mask) -> Ints:
    """Rows by score, best first, ties by row; -1, last, where left out. Shape ``(n, G)``."""
    keys = order_keys(scores, left_out)
    # ~k = -k - 1 turns the order round and cannot overflow. Left-out rows alone share a key.
    order = np.argsort(~keys, axis=1)
    return np.where(np.take_along_axis(left_out, order, axis=1), -1, order)


def _fused(old: Scores, new: Scores, is_new: Mask, left_out: Mask) -> Ints:
    lists = [_ranking(old, left_out | is_new), _ranking(new, left_out | ~is_new)]
    return merge_rankings(lists, limit=old.shape[1])[0]


def _places(ranking: Ints, positives: Positives) -> Ints:
    """Ranks of the positives in complete rankings ``(n, G)``."""
    rank = np.zeros((len(ranking), ranking.shape[1] + 1), dtype=np.int64)
    # Padding, -1, writes into the last column, which no row has.
    np.put_along_axis(rank, ranking, np.arange(1, ranking.shape[1] + 1)[None], axis=1)
    return np.take_along_axis(rank, positives.column, axis=1)


def _mask(migrated: ArrayLike, size: int) -> Mask:
    rows = np.asarray(migrated)
    rows = rows if rows.size else rows.astype(np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(
            f"migrated: expected row numbers of shape [M], got {rows.dtype} {list(rows.shape)}"
        )
    if rows.size and not 0 <= rows.min() <= rows.max() < size:
        raise ValueError(
            f"migrated: expected rows in [0, {size}), got {rows.min()} to {rows.max()}"
        )
    mask = np.zeros(size, dtype=bool)
    mask[rows] = True
    if mask.sum() != len(rows):
        raise ValueError(f"migrated: expected each row once, got {len(rows) - mask.sum()} repeats")
    return mask
