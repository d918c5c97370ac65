# SPDX-License-Identifier: Apache-2.0
"""Records of a comparison, drawn together: means over seeds, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fclearn.evaluation.intervals import bootstrap_means, interval
from fclearn.evaluation.types import Interval
from fclearn.experiments.records import PAIRED_METRICS, PAIRED_ROWS, Record, per_query

CONFIDENCE = 0.95
#: What is compared, as (row of a report's matrix or name of a quantity, metric).
QUANTITIES = (
    ("new/old", "map"),
    ("new/old", "cmc@1"),
    ("new/new", "map"),
    ("new/new", "cmc@1"),
    ("update_gain", "map"),
    ("self_test_tax", "map"),
    ("negative_flip_rate", "cmc@1"),
)
Quantity = tuple[str, str]
#: Of these, those known for every query.
PAIRED = tuple((row, metric) for row in PAIRED_ROWS for metric in PAIRED_METRICS)
_NUM_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        value: The mean; None where a seed has no value.
        interval: At 95 %, None if it has no bounded one.
        values: Of each seed.
    """

    value: float | None
    interval: Interval | None
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class MethodSummary:
    """A method's numbers.

    Attributes:
        name: As on the command line.
        title: In a table.
        given: Needs that were met.
        seeds: Those it was run with.
        estimates: By `QUANTITIES`, as `over_seeds` makes them.
        gains: Difference to the reference method by `PAIRED`, on the seeds both have, with a
            bootstrap interval over the queries of these seeds; empty for the reference itself, and
            where they share none.
    """

    name: str
    title: str
    given: tuple[str, ...]
    seeds: tuple[int, ...]
    estimates: dict[Quantity, Estimate]
    gains: dict[Quantity, Estimate]


@dataclass(frozen=True)
class Summary:
    """A comparison.

    Attributes:
        methods: By update gain, best first; those without one last.
        baselines: ``"old/old"``, ``"independent/independent"`` and ``"ceiling"`` by metric.
        reference: The method others are compared with.
        seeds: All that occur.
    """

    methods: tuple[MethodSummary, ...]
    baselines: dict[Quantity, Estimate]
    reference: str
    seeds: tuple[int, ...]


def summarise(records: Sequence[Record], reference: str = "ni-fcl") -> Summary:
    """Draw records together.

    Args:
        records: From `fclearn.experiments.records.load_records`.
        reference: The method others are compared with, seed by seed.
    """
    runs: dict[str, dict[int, Record]] = {}
    for record in records:
        runs.setdefault(record["config"]["method"], {})[_seed(record)] = record
    methods = [_method(name, found, runs.get(reference, {})) for name, found in runs.items()]
    # Old and independent model are the same for all methods of a seed.
    of_seed = {_seed(record): record for record in reversed(records)}
    seeds = tuple(sorted(of_seed))
    shared = [of_seed[seed] for seed in seeds]
    baselines = {
        (row, metric): over_seeds([_read(record, (row, metric)) for record in shared])
        for row in ("old/old", "independent/independent", "ceiling")
        for metric in ("map", "cmc@1")
    }
    return Summary(tuple(sorted(methods, key=_rank)), baselines, reference, seeds)


def over_seeds(found: Sequence[tuple[float | None, Interval | None]]) -> Estimate:
    """Mean over seeds of values, each with its own interval.

    Args:
        found: Value and bootstrap interval of each seed.

    Returns:
        With the interval of Student's t over the seeds, each of which has its own classes, own old
        model and own start; of a single seed, with that seed's.

    Example:
        >>> over_seeds([(0.5, (0.4, 0.6))]).interval
        (0.4, 0.6)
        >>> low, high = over_seeds([(0.5, None), (0.7, None), (0.6, None)]).interval
        >>> round(low, 3), round(high, 3)
        (0.352, 0.848)
    """
    values = tuple(value for value, _ in found)
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Estimate(None, None, values)
    mean = float(np.mean(known))
    if len(known) == 1:
        return Estimate(mean, found[0][1], values)
    reach = student_t(len(known) - 1, CONFIDENCE) * float(np.std(known, ddof=1))
    half = reach / math.sqrt(len(known))
    return Estimate(mean, (mean - half, mean + half), values)


def student_t(degrees: int, confidence: float) -> float:
    """Two-sided quantile of Student's t.

    Example:
        >>> round(student_t(2, 0.95), 3), round(student_t(9, 0.95), 3)
        (4.303, 2.262)
    """
    # With t = sqrt(degrees) tan(angle), the density of the angle is cos(angle)^(degrees - 1).
    angle = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angle) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(degrees) * math.tan(float(np.interp(confidence, mass / mass[-1], angle)))


def _method(name: str, runs: dict[int, Record], reference: dict[int, Record]) -> MethodSummary:
    seeds = tuple(sorted(runs))
    shared = [seed for seed in seeds if seed in reference]
    first = runs[seeds[0]]
    gains = {}
    if shared and runs is not reference:
        pairs = [(runs[seed], reference[seed]) for seed in shared]
        gains = {quantity: _paired(pairs, quantity) for quantity in PAIRED}
    return MethodSummary(
        name,
        first["title"],
        tuple(first["given"]),
        seeds,
        {q: over_seeds([_read(runs[seed], q) for seed in seeds]) for q in QUANTITIES},
        gains,
    )


def _paired(pairs: Sequence[tuple[Record, Record]], quantity: Quantity) -> Estimate:
    """Mean difference of two runs per seed, query by query."""
    means: list[float] = []
    draws = np.zeros(_NUM_BOOTSTRAP)
    for one, other in pairs:
        left, right = per_query(one, *quantity), per_query(other, *quantity)
        if left is None or right is None:
            return Estimate(None, None, (None,) * len(pairs))
        difference = left - right
        means.append(float(difference.mean()))
        draws += bootstrap_means(difference[:, None], _NUM_BOOTSTRAP, seed=_seed(one))[:, 0]
    bounds = interval(draws / len(pairs), CONFIDENCE)
    return Estimate(float(np.mean(means)), bounds, tuple(means))


def _read(record: Record, quantity: Quantity) -> tuple[float | None, Interval | None]:
    row, metric = quantity
    report = record["report"]
    if row == "ceiling":
        entry = record["ceiling"][metric]
        return entry["value"], tuple(entry["interval"])
    if row == "new/new" and row not in report["matrix"]:
        return None, None  # a map: the new model itself stays as it is
    value = report["matrix"][row][metric] if row in report["matrix"] else report[row]
    bounds = report["intervals"].get(row, {}).get(metric)
    return value, None if bounds is None else (bounds[0], bounds[1])


def _seed(record: Record) -> int:
    return int(record["config"]["train"]["seed"])


def _rank(method: MethodSummary) -> tuple[float, str]:
    gain = method.estimates["update_gain", "map"].value
    return (math.inf if gain is None else -gain, method.name)
