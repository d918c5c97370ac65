# SPDX-License-Identifier: Apache-2.0
"""The 2x2 matrix of query and gallery models, and what an upgrade gains, costs and breaks."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from fclearn.evaluation.indexed import IndexedGallery
from fclearn.evaluation.intervals import check_bootstrap
from fclearn.evaluation.matrix import (
    CROSS,
    INDEPENDENT,
    NEW,
    OLD,
    CompatibilityReport,
    summarise,
)
from fclearn.evaluation.metrics import check_metrics
from fclearn.evaluation.qrels import Qrels
from fclearn.evaluation.retrieval import RetrievalResult, evaluate_retrieval
from fclearn.evaluation.types import Labels, PerRow, RowSource


def compatibility_report(
    *,
    old_query: RowSource,
    old_gallery: RowSource | IndexedGallery,
    new_query: RowSource,
    new_gallery: RowSource | IndexedGallery | None = None,
    independent_query: RowSource | None = None,
    independent_gallery: RowSource | None = None,
    query_labels: Labels | None = None,
    gallery_labels: Labels | None = None,
    qrels: Qrels | str | os.PathLike[str] | None = None,
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
        qrels: Instead of labels: judgements by ``query_ids`` and ``gallery_ids``, as there.
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
    has_ids = query_ids is not None or gallery_ids is not None
    if exclude_self and not has_ids and old_query is old_gallery and query_labels is not None:
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
                qrels=qrels,
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
    return summarise(results, names, num_bootstrap, confidence, seed)


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
