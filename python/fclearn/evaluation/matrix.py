# SPDX-License-Identifier: Apache-2.0
"""The 2x2 matrix of an upgrade as one object, and how it comes from its entries."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation._verdict import Verdict, judge
from fclearn.evaluation.intervals import bootstrap_means, interval
from fclearn.evaluation.paired import paired_test
from fclearn.evaluation.retrieval import RetrievalResult
from fclearn.evaluation.types import Interval

OLD, CROSS, NEW, INDEPENDENT = "old/old", "new/old", "new/new", "independent/independent"
#: Differences of two entries of the matrix that decide about an upgrade.
CROSS_GAIN, SELF_GAIN = f"{CROSS} - {OLD}", f"{NEW} - {INDEPENDENT}"

_Table = dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class CompatibilityReport:
    """What `compatibility_report` found. Metrics are fractions, keys are query/gallery.

    Attributes:
        matrix: ``{"old/old": {"map": …}, "new/old": …, "new/new": …,
            "independent/independent": …}``, as far as features were given.
        differences: ``"new/old - old/old"`` and ``"new/new - independent/independent"``, by metric.
        update_gains: By metric; None where no independent model was given, or where it is not
            better than the old one: then there is no improvement to take a share of.
        self_test_taxes: By metric; empty without both new/new and the independent model.
        negative_flip_rate: Share of the queries whose best hit is right under old/old and wrong
            under new/old.
        intervals: Bootstrap intervals over queries, ``intervals[row][metric]``: the rows of
            ``matrix`` and ``differences``, ``"update_gain"``, ``"self_test_tax"`` and
            ``"negative_flip_rate"`` (on ``cmc@1``). None where an update gain has no bounded one.
        num_queries: Queries with a positive.
        num_skipped: Queries without one.
        num_missing: Pairs of a query and a positive that is not in the gallery; they count as not
            found.
        num_gallery: Rows of the gallery.
        num_bootstrap: Resamples behind the intervals.
        confidence: Of the intervals.
        seed: Of the resamples.
        per_query: Metrics of every query, ``per_query["new/old"]["map"]``, float64 ``(Q,)``, NaN
            where skipped.
        p_values: Of ``"new/old - old/old"`` by metric, two-sided, as `paired_test` has them.
    """

    matrix: _Table
    differences: _Table
    update_gains: dict[str, float | None]
    self_test_taxes: dict[str, float]
    negative_flip_rate: float
    intervals: dict[str, dict[str, Interval | None]]
    num_queries: int
    num_skipped: int
    num_gallery: int
    num_bootstrap: int
    confidence: float
    seed: int
    per_query: dict[str, dict[str, NDArray[np.float64]]] = field(repr=False)
    p_values: dict[str, float] = field(default_factory=dict)
    num_missing: int = 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return tuple(self.matrix[OLD])

    @property
    def primary(self) -> str:
        """The metric that decides: ``map``, or a ``map@k`` where an index has no more ranks."""
        return self.metrics[0]

    @property
    def update_gain(self) -> float | None:
        """On the primary metric: (M(new/old) - M(old/old)) / (M(n*/n*) - M(old/old))."""
        return self.update_gains[self.primary]

    @property
    def self_test_tax(self) -> float | None:
        """On the primary metric: M(n*/n*) - M(new/new)."""
        return self.self_test_taxes.get(self.primary)

    @property
    def verdict(self) -> Verdict:
        """Is the upgrade worthwhile without re-indexing? In words, by the intervals."""
        return judge(self)

    def to_dict(self) -> dict[str, object]:
        """All numbers but those per query, ready for strict JSON."""
        verdict = self.verdict
        return {
            "verdict": {
                "status": verdict.status,
                "headline": verdict.headline,
                "details": verdict.details,
                "text": verdict.text,
            },
            "primary": self.primary,
            "matrix": self.matrix,
            "differences": self.differences,
            "update_gain": self.update_gain,
            "update_gains": self.update_gains,
            "self_test_tax": self.self_test_tax,
            "self_test_taxes": self.self_test_taxes,
            "negative_flip_rate": self.negative_flip_rate,
            "intervals": {
                row: {name: bounds and list(bounds) for name, bounds in entries.items()}
                for row, entries in self.intervals.items()
            },
            "p_values": self.p_values,
            "num_queries": self.num_queries,
            "num_skipped": self.num_skipped,
            "num_missing": self.num_missing,
            "num_gallery": self.num_gallery,
            "num_bootstrap": self.num_bootstrap,
            "confidence": self.confidence,
            "bootstrap_seed": self.seed,
        }


def summarise(
    results: dict[str, RetrievalResult],
    names: tuple[str, ...],
    num_bootstrap: int,
    confidence: float,
    seed: int,
) -> CompatibilityReport:
    """A report of measured entries.

    Args:
        results: By entry, with values per query; old/old and new/old are there.
        names: Of the metrics, the one that decides first.
        num_bootstrap: Resamples of the queries, shared by all entries.
        confidence: Of the intervals.
        seed: Of the resamples.
    """
    old = results[OLD]
    counted = ~np.isnan(old.per_query[names[0]])
    values = {
        key: np.stack([result.per_query[name][counted] for name in names], axis=1)
        for key, result in results.items()
    }
    first = names.index("cmc@1")
    flips = (values[OLD][:, first] == 1) & (values[CROSS][:, first] == 0)
    columns = np.concatenate([*values.values(), flips[:, None]], axis=1)
    draws = bootstrap_means(columns, num_bootstrap, seed)
    samples = {
        key: draws[:, at * len(names) : (at + 1) * len(names)] for at, key in enumerate(values)
    }
    means = {key: np.array([result[name] for name in names]) for key, result in results.items()}

    def by_name(numbers: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(names, numbers.tolist(), strict=True))

    def bounds(numbers: NDArray[np.float64]) -> dict[str, Interval | None]:
        return {name: interval(numbers[:, at], confidence) for at, name in enumerate(names)}

    intervals = {key: bounds(sample) for key, sample in samples.items()}
    differences: _Table = {}
    gains: dict[str, float | None] = dict.fromkeys(names)
    taxes: dict[str, float] = {}
    for key, (left, right) in {CROSS_GAIN: (CROSS, OLD), SELF_GAIN: (NEW, INDEPENDENT)}.items():
        if left in results and right in results:
            differences[key] = by_name(means[left] - means[right])
            intervals[key] = bounds(samples[left] - samples[right])
    if SELF_GAIN in differences:
        taxes = by_name(means[INDEPENDENT] - means[NEW])
        intervals["self_test_tax"] = bounds(samples[INDEPENDENT] - samples[NEW])
    if INDEPENDENT in results:
        intervals["update_gain"] = dict.fromkeys(names)
        for at, name in enumerate(names):
            room = samples[INDEPENDENT][:, at] - samples[OLD][:, at]
            if means[INDEPENDENT][at] > means[OLD][at]:
                gains[name] = differences[CROSS_GAIN][name] / float(
                    means[INDEPENDENT][at] - means[OLD][at]
                )
                # A ratio whose denominator may be zero has no bounded interval.
                if interval(room, confidence)[0] > 0:
                    ratio = (samples[CROSS][:, at] - samples[OLD][:, at])[room > 0] / room[room > 0]
                    intervals["update_gain"][name] = interval(ratio, confidence)
    intervals["negative_flip_rate"] = {"cmc@1": interval(draws[:, -1], confidence)}
    return CompatibilityReport(
        matrix={key: by_name(mean) for key, mean in means.items()},
        differences=differences,
        update_gains=gains,
        self_test_taxes=taxes,
        negative_flip_rate=float(flips.mean()),
        intervals=intervals,
        num_queries=old.num_queries,
        num_skipped=old.num_skipped,
        num_gallery=old.num_gallery,
        num_bootstrap=num_bootstrap,
        confidence=confidence,
        seed=seed,
        per_query={key: result.per_query for key, result in results.items()},
        p_values={
            name: paired_test(
                old.per_query[name],
                results[CROSS].per_query[name],
                num_samples=num_bootstrap,
                confidence=confidence,
                seed=seed,
            ).p_value
            for name in names
        },
        num_missing=old.num_missing,
    )
