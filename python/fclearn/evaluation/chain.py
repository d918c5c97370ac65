# SPDX-License-Identifier: Apache-2.0
"""A chain of models, each compatible with those before it, or meant to be: the T x T matrix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation.intervals import bootstrap_means, check_bootstrap, interval
from fclearn.evaluation.qrels import Qrels
from fclearn.evaluation.retrieval import RetrievalResult, evaluate_retrieval
from fclearn.evaluation.types import Interval, Labels, RowSource

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fclearn.evaluation.types import RankingOptions

#: The summaries of a chain, as `ChainReport` names them.
SUMMARIES = (
    "average_compatibility",
    "average_accuracy",
    "backward_compatibility",
    "forward_compatibility",
)


@dataclass(frozen=True, eq=False)
class ChainReport:
    """What `chain_report` found.

    Attributes:
        names: Of the models, oldest first, ``(T,)``.
        matrix: ``matrix[i, j]``: the metric of queries by model i against the gallery of model j,
            shape ``(T, T)``, NaN above the diagonal: old queries never meet a newer gallery.
        average_compatibility: AC, the share of pairs i > j with
            ``matrix[i, j] > matrix[j, j]``. A tie is not compatible.
        average_accuracy: AM, the mean of the lower triangle with its diagonal.
        backward_compatibility: BC, the mean over i < T of ``matrix[T, i] - matrix[i, i]``: what the
            last model brings to each gallery as it lies there.
        forward_compatibility: FC, the mean over i > 1 of ``matrix[i, i - 1] - matrix[i, i]``: what
            not re-indexing for one step costs.
        intervals: Bootstrap intervals over queries of the four summaries, and of the entries as
            ``"name/name"``.
        gain_intervals: Of ``matrix[i, j] - matrix[j, j]`` for i > j, as ``"name/name"``: what newer
            queries bring to an older gallery, paired over queries.
        metric_name: What was measured.
        num_queries: Queries that counted.
        num_skipped: Queries without a positive.
        num_missing: Pairs of a query and a positive that is not in the gallery; they count as not
            found.
        num_gallery: Rows of the gallery.
        confidence: Of the intervals.
        per_query: The metric of every query by entry, float64 ``(Q,)``, NaN where skipped.
    """

    names: tuple[str, ...]
    matrix: NDArray[np.float64]
    average_compatibility: float
    average_accuracy: float
    backward_compatibility: float
    forward_compatibility: float
    intervals: dict[str, Interval]
    gain_intervals: dict[str, Interval]
    metric_name: str
    num_queries: int
    num_skipped: int
    num_gallery: int
    confidence: float
    per_query: dict[str, NDArray[np.float64]] = field(repr=False)
    num_missing: int = 0

    def numbers(self) -> dict[str, float]:
        """Summaries and entries by name."""
        entries = {
            f"{self.names[i]}/{self.names[j]}": float(self.matrix[i, j])
            for i in range(len(self.names))
            for j in range(i + 1)
        }
        return {**{name: float(getattr(self, name)) for name in SUMMARIES}, **entries}

    def to_dict(self) -> dict[str, object]:
        """All numbers but those per query, ready for strict JSON."""
        return {
            "models": list(self.names),
            "metric": self.metric_name,
            "matrix": [
                [None if np.isnan(value) else float(value) for value in row] for row in self.matrix
            ],
            **{name: getattr(self, name) for name in SUMMARIES},
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "gain_intervals": {name: list(bounds) for name, bounds in self.gain_intervals.items()},
            "num_queries": self.num_queries,
            "num_skipped": self.num_skipped,
            "num_missing": self.num_missing,
            "num_gallery": self.num_gallery,
            "confidence": self.confidence,
        }


def chain_report(
    queries: Sequence[RowSource],
    galleries: Sequence[RowSource],
    *,
    query_labels: Labels | None = None,
    gallery_labels: Labels | None = None,
    qrels: Qrels | str | os.PathLike[str] | None = None,
    names: Sequence[str] | None = None,
    metric_name: str = "map",
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    **ranking: Unpack[RankingOptions],
) -> ChainReport:
    r"""Measure every model of a chain against its own gallery and all older ones.

    With :math:`C_{ij}` the metric of queries by model i against the gallery of model j:

    .. math::
        AC = \frac{2}{T(T-1)} \sum_{i>j} 1[C_{ij} > C_{jj}] \qquad
        AM = \frac{2}{T(T+1)} \sum_{i \ge j} C_{ij}

        BC = \frac{1}{T-1} \sum_{i<T} (C_{Ti} - C_{ii}) \qquad
        FC = \frac{1}{T-1} \sum_{i>1} (C_{i,i-1} - C_{ii})

    Args:
        queries: Features of the same queries by each model, oldest first, ``(Q, D_i)`` each, as in
            `evaluate_retrieval`. Dims must not shrink: a wider query is cut to an older gallery.
        galleries: Features of the same gallery by each model, ``(G, D_i)`` each.
        query_labels: As in `evaluate_retrieval`.
        gallery_labels: As there.
        qrels: Instead of labels: judgements by ``query_ids`` and ``gallery_ids``, as there.
        names: Of the models; ``"1"`` to ``"T"`` by default.
        metric_name: What to measure, any of `METRIC_NAMES`.
        num_bootstrap: Resamples of the queries, shared by all entries.
        confidence: Of the percentile intervals, in (0, 1).
        seed: Of the resamples.
        **ranking: ``exclude_self``, ``query_ids``, ``gallery_ids``, ``query_groups``,
            ``gallery_groups`` and ``metric``, as in `evaluate_retrieval`; row numbers serve as ids
            where each model's queries are its gallery.

    Raises:
        TypeError: As `evaluate_retrieval`.
        ValueError: As `evaluate_retrieval`, naming the entry; fewer than two models; not one
            gallery and one name for each.

    Note:
        Published code differs on ties of AC: CoReS and CL²R count one as compatible, iamcl2r does
        not. Here it is not: nothing was gained.

    References:
        Biondi, Pernici, Bruni, Del Bimbo, *CoReS: Compatible Representations via Stationarity*,
        TPAMI 2023. Biondi, Pernici, Bruni, Mugnai, Del Bimbo, *CL²R: Compatible Lifelong Learning
        Representations*, arXiv 2211.09032.

    Example:
        >>> import torch
        >>> labels = torch.arange(40) % 4
        >>> noise = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(0))
        >>> models = [torch.eye(4)[labels] + s * n for s, n in zip((1.0, 0.6, 0.3), noise)]
        >>> report = chain_report(
        ...     models, models, query_labels=labels, gallery_labels=labels, exclude_self=True,
        ...     num_bootstrap=50)
        >>> report.average_compatibility
        1.0
    """
    num_models = len(queries)
    check_bootstrap(num_bootstrap, confidence)
    if num_models < 2:
        raise ValueError(f"queries: expected those of at least two models, got {num_models}")
    if len(galleries) != num_models:
        raise ValueError(
            f"galleries: expected one for each of the {num_models} models, got {len(galleries)}"
        )
    titles = tuple(names) if names is not None else tuple(str(i + 1) for i in range(num_models))
    if len(set(titles)) != num_models:
        raise ValueError(
            f"names: expected {num_models} distinct ones, got {', '.join(map(repr, titles))}"
        )
    ids = ranking.get("query_ids"), ranking.get("gallery_ids")
    if ranking.get("exclude_self") and ids == (None, None) and query_labels is not None:
        if any(mine is not other for mine, other in zip(queries, galleries, strict=True)):
            raise ValueError("exclude_self: expected query_ids and gallery_ids")
        ranking["query_ids"] = ranking["gallery_ids"] = np.arange(len(query_labels))
    results: dict[tuple[int, int], RetrievalResult] = {}
    for i in range(num_models):
        for j in range(i + 1):
            try:
                results[i, j] = evaluate_retrieval(
                    queries[i],
                    galleries[j],
                    query_labels=query_labels,
                    gallery_labels=gallery_labels,
                    qrels=qrels,
                    metrics=(metric_name,),
                    return_per_query=True,
                    **ranking,
                )
            except (TypeError, ValueError) as error:
                raise type(error)(f"{titles[i]}/{titles[j]}: {error}") from error
    places = list(results)
    values = np.stack([results[place].per_query[metric_name] for place in places], axis=1)
    counted = ~np.isnan(values[:, 0])
    draws = bootstrap_means(values[counted], num_bootstrap, seed)
    table = np.full((num_bootstrap + 1, num_models, num_models), np.nan)
    for at, (i, j) in enumerate(places):
        table[0, i, j] = results[i, j][metric_name]
        table[1:, i, j] = draws[:, at]
    summaries = _summaries(table)
    intervals = {name: interval(summaries[name][1:], confidence) for name in SUMMARIES}
    gains: dict[str, Interval] = {}
    for at, (i, j) in enumerate(places):
        intervals[f"{titles[i]}/{titles[j]}"] = interval(draws[:, at], confidence)
        if i > j:
            change = draws[:, at] - draws[:, places.index((j, j))]
            gains[f"{titles[i]}/{titles[j]}"] = interval(change, confidence)
    first = results[0, 0]
    return ChainReport(
        names=titles,
        matrix=table[0],
        **{name: float(summaries[name][0]) for name in SUMMARIES},
        intervals=intervals,
        gain_intervals=gains,
        metric_name=metric_name,
        num_queries=first.num_queries,
        num_skipped=first.num_skipped,
        num_gallery=first.num_gallery,
        confidence=confidence,
        per_query={f"{titles[i]}/{titles[j]}": values[:, at] for at, (i, j) in enumerate(places)},
        num_missing=first.num_missing,
    )


def _summaries(table: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """AC, AM, BC and FC of matrices ``(B, T, T)``, each ``(B,)``."""
    num_models = table.shape[1]
    own = np.diagonal(table, axis1=1, axis2=2)
    newer, older = np.tril_indices(num_models, -1)
    lower = np.tril_indices(num_models)
    steps = np.arange(1, num_models)
    return {
        "average_compatibility": (table[:, newer, older] > own[:, older]).mean(axis=1),
        "average_accuracy": table[:, lower[0], lower[1]].mean(axis=1),
        "backward_compatibility": (table[:, -1, :-1] - own[:, :-1]).mean(axis=1),
        "forward_compatibility": (table[:, steps, steps - 1] - own[:, 1:]).mean(axis=1),
    }
