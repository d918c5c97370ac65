# SPDX-License-Identifier: Apache-2.0
"""Exact retrieval metrics of any query against any gallery, streaming."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation._rows import Rows, Scorer
from fclearn.evaluation._ways import deepest, exact_ranks, indexed_ranks
from fclearn.evaluation.indexed import IndexedGallery
from fclearn.evaluation.inputs import build_relevance
from fclearn.evaluation.intervals import bootstrap_means, check_bootstrap, interval
from fclearn.evaluation.keys import exclusions
from fclearn.evaluation.metrics import check_metrics, metric_values
from fclearn.evaluation.qrels import Qrels
from fclearn.evaluation.relevance import Judged
from fclearn.evaluation.sharing import Values, values_of
from fclearn.evaluation.types import Interval, Ints, Labels, PerRow, RowSource
from fclearn.features import METRICS


@dataclass(frozen=True, eq=False)
class RetrievalResult(Mapping[str, float]):
    """Metrics of one query and gallery, as fractions: ``result["map"]``.

    Attributes:
        means: Mean over the queries that have a positive.
        num_queries: Queries that counted.
        num_skipped: Queries without a positive in the gallery; they count nowhere.
        num_gallery: Rows of the gallery.
        num_missing: Pairs of a query and a positive that is not in the gallery, so that no ranking
            has it: only with qrels. They count as not found.
        per_query: With ``return_per_query``: each metric as float64 ``(Q,)``, NaN where skipped.
    """

    means: dict[str, float]
    num_queries: int
    num_skipped: int
    num_gallery: int
    num_missing: int = 0
    per_query: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> float:
        """Return the mean of a metric."""
        return self.means[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the metrics."""
        return iter(self.means)

    def __len__(self) -> int:
        """Return the number of metrics."""
        return len(self.means)

    def to_dict(self) -> dict[str, float | int]:
        """Metrics and counts, flat, ready for JSON."""
        return {
            **self.means,
            "num_queries": self.num_queries,
            "num_skipped": self.num_skipped,
            "num_gallery": self.num_gallery,
            "num_missing": self.num_missing,
        }

    def intervals(
        self, *, num_bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
    ) -> dict[str, Interval]:
        """Bootstrap intervals over queries of every metric; needs ``return_per_query``.

        Args:
            num_bootstrap: Resamples of the queries, shared by the metrics.
            confidence: Of the percentile intervals, in (0, 1).
            seed: Of the resamples.

        Raises:
            ValueError: No values per query, or arguments out of range.
        """
        if not self.per_query:
            raise ValueError("intervals: expected return_per_query=True, to have values to draw")
        check_bootstrap(num_bootstrap, confidence)
        values = np.stack(list(self.per_query.values()), axis=1)
        draws = bootstrap_means(values[~np.isnan(values[:, 0])], num_bootstrap, seed)
        return {name: interval(draws[:, at], confidence) for at, name in enumerate(self.per_query)}


def evaluate_retrieval(
    query: RowSource,
    gallery: RowSource | IndexedGallery,
    *,
    query_labels: Labels | None = None,
    gallery_labels: Labels | None = None,
    qrels: Qrels | str | os.PathLike[str] | None = None,
    positives: Sequence[Sequence[int]] | None = None,
    grades: Sequence[Sequence[float]] | None = None,
    junk: Sequence[Sequence[int]] | None = None,
    exclude_self: bool = False,
    query_ids: PerRow | None = None,
    gallery_ids: PerRow | None = None,
    query_groups: PerRow | None = None,
    gallery_groups: PerRow | None = None,
    metrics: Sequence[str] = ("map", "cmc@1", "cmc@5"),
    metric: str = "cosine",
    batch_size: int = 256,
    gallery_batch_size: int = 16384,
    return_per_query: bool = False,
) -> RetrievalResult:
    r"""Rank a gallery for every query and score the rankings, exactly.

    A gallery row is a *positive* of a query if their labels are equal, or if they share one of
    several labels, or if it is named in judgements. Queries without a positive are skipped and
    counted.

    Args:
        query: Features of the queries, shape ``(Q, D')``, floating: a tensor, an array (may be a
            memory map larger than RAM), a path to a ``.npy`` file or feature store, or a store.
        gallery: Features of the gallery, shape ``(G, D)``, of the same kinds. If :math:`D' > D`,
            the first D dims of the query are compared, normalised again for the cosine: that is
            how a wider new model is compatible with a narrower old one. Or an `IndexedGallery`,
            whose ranks are the index's own.
        query_labels: Shape ``(Q,)``, integers or strings; or a list, tuple or set of labels for
            each row, or bools ``(Q, L)``: then the grade of a positive is the number of shared
            labels.
        gallery_labels: Shape ``(G,)``, of the same kind.
        qrels: Instead of labels: graded judgements by ids, or their TREC file. Relevant documents
            that are not in the gallery count as never found (as trec_eval has it); queries without
            a relevant one are skipped.
        positives: Instead of labels: right gallery rows of each query.
        grades: Of the positives, in the same order, above 0; None: all are 1.
        junk: Gallery rows to take out of each query's ranking: neither right nor wrong. See
            `revisited_protocol` for Oxford and Paris.
        exclude_self: Ignore the gallery rows that have the query's id.
        query_ids: Shape ``(Q,)``, integers or strings. Ids default to row numbers if query is the
            gallery itself.
        gallery_ids: Shape ``(G,)``.
        query_groups: Shape ``(Q,)``. Gallery rows of the query's own group are ignored: near-copies
            of one picture, shots of one camera.
        gallery_groups: Shape ``(G,)``.
        metrics: Any of ``map``, ``map@k``, ``map@r``, ``map_trapezoid``, ``cmc@k`` (a positive in
            the top k), ``recall@k`` (share of the positives in the top k), ``precision@k``,
            ``precision@r``, ``ndcg``, ``ndcg@k``, ``mrr``, ``mrr@k``; formulas and sources:
            docs/evaluation.md.
        metric: ``"cosine"``, ``"ip"`` (inner product) or ``"l2"``.
        batch_size: Queries scored at once.
        gallery_batch_size: Gallery rows scored at once.
        return_per_query: Keep the value of every query, for paired comparisons.

    Returns:
        The means over queries, as fractions.

    Raises:
        TypeError: Features that are not floating, labels that are neither integers nor strings.
        ValueError: Shapes that disagree, a query narrower than the gallery, NaN or infinite values,
            rows of norm zero with the cosine, an empty gallery, no query with a positive, an
            unknown metric, a metric of all ranks with an index, ids that repeat with qrels,
            grades that are not those of the positives.

    Note:
        Memory, beyond files that are mapped: at most 1.5 GB, whatever the sizes of query and
        gallery (labels and ids come on top); never Q x G. Metrics of all ranks (those without
        ``@``) cost one product of float64 matrices and a sort of each block's scores. Where all
        metrics look at most 2048 ranks deep and features are on the CPU, a float32 search finds the
        first ranks several times faster, and what float32 cannot decide is computed exactly: the
        results are the same to the last bit.

        Ties and reproducibility: vectors are rounded to a grid on which products are exact
        (:math:`2^{-26}` of the largest norm), scores are rounded to float32, and equal scores are
        ordered by gallery row, lower first. Results are therefore bit for bit the same for every
        block size, number of threads and machine.

    Example:
        >>> import torch
        >>> from fclearn import evaluate_retrieval
        >>> gallery = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> result = evaluate_retrieval(
        ...     torch.tensor([[1.0, 0.1]]), gallery, query_labels=[7], gallery_labels=[7, 3, 7],
        ...     metrics=("map", "cmc@1", "recall@2"))
        >>> result.means
        {'map': 0.8333333333333333, 'cmc@1': 1.0, 'recall@2': 0.5}
    """
    names = check_metrics(metrics)
    for name, size in (("batch_size", batch_size), ("gallery_batch_size", gallery_batch_size)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    query_rows = Rows(query, "query", query_ids)
    is_index = isinstance(gallery, IndexedGallery)
    gallery_rows = (
        gallery if isinstance(gallery, IndexedGallery) else Rows(gallery, "gallery", gallery_ids)
    )
    sizes = query_rows.num_rows, gallery_rows.num_rows
    for name, size in zip(("query", "gallery"), sizes, strict=True):
        if size == 0:
            raise ValueError(f"{name}: expected at least one row, got shape [0, …]")
    relevance = build_relevance(
        (query_labels, gallery_labels), qrels, positives, (query_ids, gallery_ids), sizes, grades
    )
    excluded = exclusions(
        exclude_self,
        (query_ids, gallery_ids),
        (query_groups, gallery_groups),
        sizes,
        same=query is gallery,
        junk=junk,
    )
    depth = deepest(names, relevance, needs_one=is_index)
    scorer = None
    if not isinstance(gallery_rows, IndexedGallery):
        scorer = Scorer(query_rows, gallery_rows, metric)

    def rank(queries: Ints) -> Values:
        if isinstance(gallery_rows, IndexedGallery):
            assert depth is not None
            parts = indexed_ranks(
                query_rows, gallery_rows, relevance, excluded, queries, depth, metric
            )
        else:
            assert scorer is not None
            sizes_at_once = batch_size, gallery_batch_size
            parts = exact_ranks(scorer, relevance, excluded, queries, depth, *sizes_at_once)
        values = {name: np.full(sizes[0], np.nan) for name in names}
        for rows, ranks in parts:
            for name in names:
                values[name][rows] = metric_values(name, ranks)
        return values

    facts = {"metrics": list(names), "metric": metric, "sizes": list(sizes)}
    values = values_of(np.flatnonzero(relevance.totals > 0), rank, facts)
    counted = ~np.isnan(values[names[0]])
    if not counted.any():
        raise ValueError(
            f"query_labels: none of the {sizes[0]} queries has a positive in the gallery "
            "(a row of its label that is not excluded)"
        )
    return RetrievalResult(
        means={name: float(values[name][counted].mean()) for name in names},
        num_queries=int(counted.sum()),
        num_skipped=int((~counted).sum()),
        num_gallery=sizes[1],
        num_missing=relevance.num_missing if isinstance(relevance, Judged) else 0,
        per_query=values if return_per_query else {},
    )
