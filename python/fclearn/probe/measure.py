# SPDX-License-Identifier: Apache-2.0
"""Metrics per query of each way, on one set of queries and one gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fclearn.backfill import MERGED, MigrationSample, ScoreCalibration
from fclearn.backfill.sample import sample_rows
from fclearn.backfill.serving import RERANK as TWO_STAGE
from fclearn.backfill.serving import TWO_CALIBRATED, TWO_RRF, served_values
from fclearn.evaluation import ceiling_means, evaluate_retrieval, judged_oracle_gain, oracle_gain
from fclearn.evaluation.intervals import bootstrap_means, interval
from fclearn.evaluation.types import Interval
from fclearn.probe.held import Held
from fclearn.probe.ways import (
    HALFWAY,
    NEW,
    NEW_TO_OLD,
    OLD,
    ORACLE,
    RANK_MERGE,
    RANK_MERGE_CALIBRATED,
    RERANK,
    Way,
)

_PerQuery = Mapping[str, NDArray[np.float64]]
_QUERIES_BY = {OLD: "old", NEW: "new", ORACLE: ""}
_HALVES = {RANK_MERGE: TWO_RRF, RANK_MERGE_CALIBRATED: TWO_CALIBRATED, RERANK: TWO_STAGE}


class Measure:
    """Collects the ways, the values of every query in each.

    Args:
        held: What to measure on.
        metrics: As `evaluate_retrieval`; ``map`` comes first whatever is given.
    """

    def __init__(self, held: Held, metrics: Sequence[str]) -> None:
        """Measure old/old and new/new."""
        self.held = held
        self.names = tuple(dict.fromkeys(("map", *metrics)))
        self.num_queries = self.num_skipped = 0
        self._found: list[tuple[str, str, float, float, _PerQuery]] = []
        for name, side, embedded in ((OLD, "old", 0.0), (NEW, "new", 1.0)):
            self._add(
                name, "", embedded, 0.0, self._per_query(held.query[side], held.gallery[side])
            )

    def add(self, name: str, direction: str, mapped: Tensor, seconds: float) -> None:
        """An adapter: mapped queries on the old gallery, or new queries on a mapped gallery."""
        if direction == NEW_TO_OLD:
            values = self._per_query(mapped, self.held.gallery["old"])
        else:
            values = self._per_query(self.held.query["new"], mapped)
        self._add(name, direction, 0.0, seconds, values)

    def add_oracle(self, seed: int) -> bool:
        """Queries at the mean of half of what is right, which is then left out of the gallery.

        Returns:
            Whether that can be measured: some query needs two right rows, one of them in either
            half.
        """
        held = self.held
        labels = held.right.get("query_labels"), held.right.get("gallery_labels")
        if labels[0] is not None and labels[1] is not None:
            gain = oracle_gain(
                held.gallery["old"],
                labels[1],
                held.gallery_ids,
                query=held.query["old"],
                query_labels=labels[0],
                query_ids=held.query_ids,
                metrics=self.names,
                seed=seed,
            )
        else:
            gain = judged_oracle_gain(
                held.gallery["old"],
                held.right["positives"],
                held.gallery_ids,
                query=held.query["old"],
                query_ids=held.query_ids,
                grades=held.right["grades"],
                metrics=self.names,
                seed=seed,
            )
        if gain.num_measured == 0:
            return False
        self._add(ORACLE, "", 0.0, 0.0, gain.per_query)
        return True

    def add_halves(
        self, budget: float, calibration: ScoreCalibration, shortlist: int, seed: int
    ) -> None:
        """Ways that need no map but some of the gallery embedded anew, the same rows for each."""
        held = self.held
        sample = MigrationSample.build(
            old_query=held.query["old"],
            new_query=held.query["new"],
            old_gallery=held.gallery["old"],
            new_gallery=held.gallery["new"],
            query_ids=held.query_ids,
            gallery_ids=held.gallery_ids,
            **held.right,
        )
        rows = sample_rows(sample.num_gallery, round(budget * sample.num_gallery), seed)
        found = served_values(
            sample,
            rows,
            {MERGED: calibration},
            shortlist=shortlist,
            metrics=self.names,
            only=_HALVES.values(),
        )
        for name, way in _HALVES.items():
            values = {metric: found[way][:, at] for at, metric in enumerate(self.names)}
            self._add(name, HALFWAY, len(rows) / sample.num_gallery, 0.0, values)

    def ways(self, num_bootstrap: int, confidence: float, seed: int) -> tuple[Way, ...]:
        """All that was measured, old/old first; the resamples are shared by all of them."""
        counted = ~np.isnan(self._found[0][-1]["map"])
        width = len(self.names)
        columns = [
            np.stack([found[-1][n][counted] for n in self.names], 1) for found in self._found
        ]
        values = np.concatenate(columns, axis=1)
        means, draws = values.mean(0), bootstrap_means(values, num_bootstrap, seed)
        for at, found in enumerate(self._found):
            if found[0] == ORACLE:  # its values are gains
                here = slice(at * width, (at + 1) * width)
                for all_means in (means, draws):
                    all_means[..., here] = ceiling_means(
                        all_means[..., :width], all_means[..., here]
                    )
        room = means[width] - means[0]

        def by_name(numbers: NDArray[np.float64]) -> dict[str, float]:
            return dict(zip(self.names, numbers.tolist(), strict=True))

        def bounds(samples: NDArray[np.float64]) -> dict[str, Interval]:
            return {n: interval(samples[:, i], confidence) for i, n in enumerate(self.names)}

        ways = []
        for at, (name, direction, embedded, seconds, _) in enumerate(self._found):
            here = slice(at * width, (at + 1) * width)
            gain = means[here] - means[:width]
            ways.append(
                Way(
                    name=name,
                    direction=direction,
                    embedded=embedded,
                    queries_by=_QUERIES_BY.get(name, "both" if direction == HALFWAY else "new"),
                    metrics=by_name(means[here]),
                    intervals=bounds(draws[:, here]),
                    gain=by_name(gain),
                    gain_intervals=bounds(draws[:, here] - draws[:, :width]),
                    update_gain=float(gain[0] / room) if room > 0 else None,
                    seconds=seconds,
                )
            )
        return tuple(ways)

    def _add(
        self, name: str, direction: str, embedded: float, seconds: float, values: _PerQuery
    ) -> None:
        self._found.append((name, direction, embedded, seconds, values))

    def _per_query(self, query: Tensor, gallery: Tensor) -> _PerQuery:
        held = self.held
        result = evaluate_retrieval(
            query,
            gallery,
            exclude_self=True,
            query_ids=held.query_ids,
            gallery_ids=held.gallery_ids,
            metrics=self.names,
            return_per_query=True,
            **held.right,
        )
        self.num_queries, self.num_skipped = result.num_queries, result.num_skipped
        return result.per_query
