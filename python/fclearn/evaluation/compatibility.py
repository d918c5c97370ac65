# SPDX-License-Identifier: Apache-2.0
"""The 2x2 matrix of query and gallery models, and what an upgrade gains, costs and breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation._bootstrap import Interval, bootstrap_means, check_bootstrap, interval
from fclearn.evaluation._inputs import Labels
from fclearn.evaluation._keys import PerRow
from fclearn.evaluation._metrics import check_metrics
from fclearn.evaluation._rows import RowSource
from fclearn.evaluation._verdict import Verdict, judge
from fclearn.evaluation.indexed import IndexedGallery
from fclearn.evaluation.retrieval import RetrievalResult, evaluate_retrieval

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
        num_gallery: Rows of the gallery.
        num_bootstrap: Resamples behind the intervals.
        confidence: Of the intervals.
        seed: Of the resamples.
        per_query: Metrics of every query, ``per_query["new/old"]["map"]``, float64 ``(Q,)``, NaN
            where skipped.
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
            "num_queries": self.num_queries,
            "num_skipped": self.num_skipped,
            "num_gallery": self.num_gallery,
            "num_bootstrap": self.num_bootstrap,
            "confidence": self.confidence,
            "bootstrap_seed": self.seed,
        }


def compatibility_report(
    *,
    old_query: RowSource,
    old_gallery: RowSource | IndexedGallery,
    new_query: RowSource,
    new_gallery: RowSource | IndexedGallery | None = None,
    independent_query: RowSource | None = None,
    independent_gallery: RowSource | None = None,
    query_labels: Labels,
    gallery_labels: Labels,
    exclude_self: bool = False,
    query_ids: PerRow | None = None,
    gallery_ids: PerRow | None = None,
    query_groups: PerRow | None = None,
    gallery_groups: PerRow | None = None,
    metrics: Sequence[str] | None = None,
    metric: str = "cosine",
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> CompatibilityReport:
    r"""Compare an old and a new model as query and gallery side of one retrieval system.

    The number that decides is the cross-test M(new/old): new queries against the old gallery. The
    upgrade is compatible if it beats the self-test M(old/old). With an *independent* model (the new
    one trained without compatibility, the paragon :math:`n^*`), the update gain

    .. math:: \Gamma = \frac{M(new/old) - M(old/old)}{M(n^*/n^*) - M(old/old)}

    is the share of the possible improvement that arrives without touching the gallery, and the
    self-test tax :math:`M(n^*/n^*) - M(new/new)` what compatibility costs the new model.

    Args:
        old_query: Old features of the queries, shape ``(Q, D_old)``; as in `evaluate_retrieval`.
        old_gallery: Old features of the gallery, shape ``(G, D_old)``, or the index that serves
            them.
        new_query: New features of the queries, shape ``(Q, D_new)``, :math:`D_{new} ≥ D_{old}`;
            the first ``D_old`` dims meet the old gallery.
        new_gallery: New features of the gallery, shape ``(G, D_new)``; None leaves new/new out.
        independent_query: Features of the independent model, shape ``(Q, D)`` with any D.
        independent_gallery: Shape ``(G, D)``. Both or neither.
        query_labels: As in `evaluate_retrieval`, one or several for each row, ``(Q,)``.
        gallery_labels: Shape ``(G,)``.
        exclude_self: Ignore the gallery rows that have the query's id.
        query_ids: Shape ``(Q,)``. Row numbers if old_query is old_gallery.
        gallery_ids: Shape ``(G,)``.
        query_groups: Shape ``(Q,)``; gallery rows of the query's own group are ignored.
        gallery_groups: Shape ``(G,)``.
        metrics: As in `evaluate_retrieval`, by default ``map``, ``cmc@1`` and ``cmc@5``. Always
            among them are ``cmc@1`` and what decides: ``map``, or with an index the first ``map@k``
            (``map@100`` if there is none).
        metric: ``"cosine"``, ``"ip"`` or ``"l2"``.
        num_bootstrap: Resamples of the queries. All entries share them: differences are paired.
        confidence: Of the percentile intervals, in (0, 1).
        seed: Of the resamples.

    Returns:
        The report; ``report.verdict.text`` says it in words.

    Raises:
        TypeError: As `evaluate_retrieval`.
        ValueError: As `evaluate_retrieval`, naming the entry of the matrix; one independent side
            without the other; num_bootstrap or confidence out of range.

    Note:
        Intervals cover the choice of queries only, not that of training seeds or classes. The
        interval of the update gain is None where that of its denominator includes zero.

    References:
        Shen, Xiong, Xia, Soatto, *Towards Backward-Compatible Representation Learning*, CVPR 2020
        (update gain). Yan et al., *Positive-Congruent Training*, CVPR 2021 (negative flips).

    Example:
        >>> import torch
        >>> from fclearn import compatibility_report
        >>> labels = torch.arange(40) % 4
        >>> noise = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(0))
        >>> signal = torch.eye(4)[labels]
        >>> report = compatibility_report(
        ...     old_query=signal + noise[0], old_gallery=signal + noise[1],
        ...     new_query=signal + 0.2 * noise[2], query_labels=labels, gallery_labels=labels)
        >>> sorted(report.matrix)
        ['new/old', 'old/old']
        >>> report.verdict.status
        'compatible'
    """
    check_bootstrap(num_bootstrap, confidence)
    if (independent_query is None) != (independent_gallery is None):
        raise ValueError("independent_query and independent_gallery: expected both or neither")
    if exclude_self and query_ids is None and gallery_ids is None and old_query is old_gallery:
        query_ids = gallery_ids = np.arange(len(query_labels))
    has_index = any(isinstance(side, IndexedGallery) for side in (old_gallery, new_gallery))
    names = report_metrics(metrics, has_index=has_index)

    sides = {OLD: (old_query, old_gallery), CROSS: (new_query, old_gallery)}
    if new_gallery is not None:
        sides[NEW] = (new_query, new_gallery)
    if independent_query is not None and independent_gallery is not None:
        sides[INDEPENDENT] = (independent_query, independent_gallery)
    results: dict[str, RetrievalResult] = {}
    for key, (query, gallery) in sides.items():
        try:
            results[key] = evaluate_retrieval(
                query,
                gallery,
                query_labels=query_labels,
                gallery_labels=gallery_labels,
                exclude_self=exclude_self,
                query_ids=query_ids,
                gallery_ids=gallery_ids,
                query_groups=query_groups,
                gallery_groups=gallery_groups,
                metrics=names,
                metric=metric,
                return_per_query=True,
            )
        except (ValueError, TypeError) as error:
            raise type(error)(f"{key} (query/gallery): {error}") from error
    return _summarise(results, names, num_bootstrap, confidence, seed)


def report_metrics(metrics: Sequence[str] | None, *, has_index: bool) -> tuple[str, ...]:
    """The metrics of a report, the one that decides first.

    Args:
        metrics: As asked for; None: the usual ones.
        has_index: Whether a gallery is behind an index, which has no ``map``.

    Raises:
        TypeError: A single string.
        ValueError: An unknown name.

    Example:
        >>> report_metrics(["ndcg@10"], has_index=True)
        ('map@100', 'ndcg@10', 'cmc@1')
    """
    names = () if metrics is None else check_metrics(metrics)
    primary = "map"
    if has_index:
        primary = next((name for name in names if name.startswith("map@")), "map@100")
    usual = ("cmc@1", "cmc@5") if metrics is None else ("cmc@1",)
    return tuple(dict.fromkeys((primary, *names, *usual)))


def _summarise(
    results: dict[str, RetrievalResult],
    names: tuple[str, ...],
    num_bootstrap: int,
    confidence: float,
    seed: int,
) -> CompatibilityReport:
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
    )
