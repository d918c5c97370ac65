# SPDX-License-Identifier: Apache-2.0
"""What a partial backfill gains, by the share of the gallery embedded anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fclearn.backfill._ranks import MovingRanks, Positives, order_keys
from fclearn.backfill.calibration import ScoreCalibration
from fclearn.backfill.sample import MERGED, MIXED, MigrationSample
from fclearn.evaluation.intervals import bootstrap_means, check_bootstrap, interval
from fclearn.evaluation.metrics import check_metrics
from fclearn.evaluation.types import Interval

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
RANDOM = "random"
DEFAULT_FRACTIONS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class OrderCurve:
    r"""A metric along one order.

    Attributes:
        values: At each fraction, as fractions.
        area: Under the curve, :math:`\int_0^1 M(f)\,df`, by trapezoids.
        gain: Area minus that of random order.
        gain_interval: Paired bootstrap interval of it, over queries.
        share_of_ideal: Gain over that of the ideal, by which every query is served by the new
            gallery from the start, :math:`M(1)` minus the area of random order; None where the
            ideal is no better than random order.
    """

    values: tuple[float, ...]
    area: float
    gain: float
    gain_interval: Interval
    share_of_ideal: float | None


@dataclass(frozen=True)
class BackfillCurve:
    """What `backfill_curve` found.

    Attributes:
        fractions: Of the gallery re-embedded, from 0 to 1.
        orders: ``orders[name][metric]``; ``"random"`` is the mean over several random orders.
        random_band: By metric, at each fraction, where 95 % of single random orders fall: mean
            and 1.96 standard deviations over the seeds.
        serving: `MIXED` or `MERGED`.
        is_calibrated: Whether scores of old rows were calibrated.
        num_random: Random orders.
        num_queries: Queries that counted.
        num_skipped: Queries without a positive.
        num_gallery: Rows of the gallery.
    """

    fractions: tuple[float, ...]
    orders: dict[str, dict[str, OrderCurve]]
    random_band: dict[str, tuple[Interval, ...]]
    serving: str
    is_calibrated: bool
    num_random: int
    num_queries: int
    num_skipped: int
    num_gallery: int

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for strict JSON."""
        return {
            **vars(self),
            "orders": {
                name: {metric: dict(vars(curve)) for metric, curve in curves.items()}
                for name, curves in self.orders.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackfillCurve:
        """The curve that `to_dict` described, as it comes back from JSON.

        Raises:
            KeyError: A field is missing.
            TypeError: A field too many, or of another type.
            ValueError: Lines of another length than there are fractions.
        """
        num_steps = len(values["fractions"])
        orders = {
            name: {metric: OrderCurve(**curve) for metric, curve in curves.items()}
            for name, curves in values["orders"].items()
        }
        lines = [curve.values for curves in orders.values() for curve in curves.values()]
        for line in [*lines, *values["random_band"].values()]:
            if len(line) != num_steps:
                raise ValueError(f"expected {num_steps} points in every line, got {len(line)}")
        return cls(**{**values, "orders": orders})


def backfill_curve(
    sample: MigrationSample,
    orders: Mapping[str, Ints],
    *,
    serving: str = MIXED,
    calibration: ScoreCalibration | None = None,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    metrics: Sequence[str] = ("map", "cmc@1"),
    num_random: int = 5,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> BackfillCurve:
    """Measure a gallery re-embedded step by step, along some orders and along random ones.

    Every row is compared in its own dims: at fraction 0 the curve is the cross-test M(new/old)
    (`MIXED`) or M(old/old) (`MERGED`), at 1 the self-test M(new/new).

    Args:
        sample: Queries and gallery in both spaces.
        orders: By name, gallery rows, the first to be re-embedded first, permutations ``(G,)``.
        serving: `MIXED`, for compatible spaces, or `MERGED`.
        calibration: From the scores of old rows to the scale of new/new; None: as they are.
        fractions: In [0, 1]; 0 and 1 are added. Each stands for ``round(f * G)`` rows.
        metrics: As `fclearn.evaluation.evaluate_retrieval`.
        num_random: Random orders beside them, at least 2.
        num_bootstrap: Resamples behind the intervals.
        confidence: Of the intervals, in (0, 1).
        seed: Of random orders and resamples.

    Returns:
        The curves, their areas, and how these compare with random order and with the ideal.

    Raises:
        ValueError: An order that is no permutation or is called ``"random"``, fractions out of
            range, an unknown metric or serving, too few random orders; spaces that cannot be
            mixed, or no old queries to merge by.

    Note:
        Each order costs two sorts of every query's scores, whatever the number of fractions.

    References:
        Jaeckle et al., *FastFill: Efficient compatible model update*, ICLR 2023 (area under the
        backfilling curve).

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(60) % 6
        >>> new = np.eye(6)[labels] + 0.1 * rng.normal(size=(60, 6))
        >>> old = new + 0.5 * rng.normal(size=(60, 6))
        >>> sample = MigrationSample.build(
        ...     new_query=new, old_gallery=old, new_gallery=new, query_labels=labels,
        ...     gallery_labels=labels, query_ids=range(60), gallery_ids=range(60))
        >>> worst_first = np.argsort((old * new).sum(1) / np.linalg.norm(old, axis=1))
        >>> curve = backfill_curve(sample, {"worst first": worst_first}, num_bootstrap=100)
        >>> curve.orders["worst first"]["map"].gain > 0
        True
    """
    names = check_metrics(metrics)
    counts, shares = _steps(fractions, sample.num_gallery)
    if serving not in {MIXED, MERGED}:
        raise ValueError(f"serving: expected {MIXED!r} or {MERGED!r}, got {serving!r}")
    if num_random < 2:
        raise ValueError(f"num_random: expected at least 2, got {num_random}")
    check_bootstrap(num_bootstrap, confidence)
    ways = {name: _permutation(rows, sample.num_gallery, name) for name, rows in orders.items()}
    rng = np.random.default_rng(seed)
    chances = [rng.permutation(sample.num_gallery) for _ in range(num_random)]
    found = _measure(sample, [*ways.values(), *chances], counts, names, serving, calibration)
    counted = ~np.isnan(found[0, 0, 0])
    found = found[..., counted]  # (orders, fractions, metrics, queries)
    weights = _trapezoids(shares)
    areas = np.einsum("ofmq,f->omq", found, weights)
    means, chance = found.mean(-1), found[len(ways) :]
    result: dict[str, dict[str, OrderCurve]] = {name: {} for name in [*ways, RANDOM]}
    band: dict[str, tuple[Interval, ...]] = {}
    for m, metric in enumerate(names):
        random_area = areas[len(ways) :, m].mean(0)
        gains = np.concatenate([areas[: len(ways), m] - random_area, 0 * random_area[None]])
        draws = bootstrap_means(gains.T.copy(), num_bootstrap, seed)
        room = float(means[0, -1, m] - random_area.mean())
        spread = 1.96 * chance[:, :, m].mean(-1).std(axis=0, ddof=1)
        centre = means[len(ways) :, :, m].mean(0)
        band[metric] = tuple(
            (float(c - s), float(c + s)) for c, s in zip(centre, spread, strict=True)
        )
        for at, name in enumerate(result):
            is_random = at == len(ways)
            gain = float(gains[at].mean())
            result[name][metric] = OrderCurve(
                values=tuple((centre if is_random else means[at, :, m]).tolist()),
                area=float(random_area.mean()) + gain,
                gain=gain,
                gain_interval=interval(draws[:, at], confidence),
                share_of_ideal=gain / room if room > 0 else None,
            )
    return BackfillCurve(
        fractions=tuple(shares.tolist()),
        orders=result,
        random_band=band,
        serving=serving,
        is_calibrated=calibration is not None,
        num_random=num_random,
        num_queries=int(counted.sum()),
        num_skipped=int((~counted).sum()),
        num_gallery=sample.num_gallery,
    )


def _measure(
    sample: MigrationSample,
    orders: Sequence[Ints],
    counts: Sequence[int],
    metrics: Sequence[str],
    serving: str,
    calibration: ScoreCalibration | None,
) -> Floats:
    """Metrics of every query, shape ``(orders, steps, metrics, Q)``, NaN without a positive."""
    found = np.empty((len(orders), len(counts), len(metrics), sample.num_queries))
    for part in sample.blocks():
        old = sample.cross_scores(part) if serving == MIXED else sample.old_scores(part)
        if calibration is not None:
            old = calibration.transform(old).astype(np.float32)
        left_out = sample.left_out(part)
        positives = Positives.of(sample.positives(part), sample.grades(part))
        ranks = MovingRanks(
            order_keys(old, left_out), order_keys(sample.new_scores(part), left_out), positives
        )
        for o, order in enumerate(orders):
            for step, rank in enumerate(ranks.along(order, counts)):
                found[o, step, :, part] = positives.metrics(metrics, rank).T
    return found


def _trapezoids(shares: Floats) -> Floats:
    """Weights that integrate values at these points over [0, 1]."""
    steps = np.diff(shares)
    weights = np.zeros(len(shares))
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    return weights


def _steps(fractions: Sequence[float], size: int) -> tuple[list[int], Floats]:
    """Numbers of rows, ascending and distinct from 0 to ``size``, and the shares these are."""
    for value in fractions:
        if not 0 <= value <= 1:
            raise ValueError(f"fractions: expected numbers in [0, 1], got {value}")
    counts = sorted({0, size, *(round(value * size) for value in fractions)})
    return counts, np.array(counts) / size


def _permutation(rows: Ints, size: int, name: str) -> Ints:
    if name == RANDOM:
        raise ValueError(f"orders: the name {RANDOM!r} is taken, random orders are always measured")
    given = np.asarray(rows)
    if given.shape != (size,) or not np.array_equal(np.sort(given), np.arange(size)):
        raise ValueError(
            f"orders[{name!r}]: expected every one of the {size} gallery rows once, got shape "
            f"{list(given.shape)}"
        )
    return given.astype(np.int64)
