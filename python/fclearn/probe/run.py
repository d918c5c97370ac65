# SPDX-License-Identifier: Apache-2.0
"""Measure every post-hoc way from an old to a new model.

Some items are for fitting, the others for testing: a map is not judged by what it was fitted on.
Every way to serve an upgrade is measured on the same queries and gallery, so that differences are
paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from fclearn.adapters import Adapter, CompatHead, LowRank, MeanShift, MlpMap, Procrustes, Ridge
from fclearn.evaluation.intervals import check_bootstrap
from fclearn.evaluation.types import PerRow
from fclearn.features import FeatureSource
from fclearn.probe.fitting import FitPairs, calibrate
from fclearn.probe.held import Draw, Split
from fclearn.probe.items import Items, Judgements, ProbeQueries
from fclearn.probe.judged import split_by_judgement
from fclearn.probe.labelled import split_by_class, split_by_item
from fclearn.probe.measure import Measure
from fclearn.probe.verdict import judge, split_in_words
from fclearn.probe.ways import (
    BY_CLASSES,
    BY_ITEMS,
    NEW_TO_OLD,
    OLD_TO_NEW,
    ORACLE,
    SPLITS,
    ProbeResult,
)

#: Maps and heads by name; each takes the seed of its training.
ADAPTERS: dict[str, Callable[[int], Adapter]] = {
    "procrustes": lambda _: Procrustes(),
    "ridge": lambda _: Ridge(),
    "low-rank": lambda _: LowRank(),
    "mean-shift": lambda _: MeanShift(),
    "mlp": lambda seed: MlpMap(seed=seed),
    "compat-head": lambda seed: CompatHead(seed=seed),
}


def probe(
    *,
    old: FeatureSource,
    new: FeatureSource,
    labels: PerRow | None = None,
    groups: PerRow | None = None,
    queries: ProbeQueries | None = None,
    judgements: Judgements | None = None,
    split: str | None = None,
    clusters: int | None = None,
    fit_share: float = 0.6,
    adapters: Sequence[str] | Mapping[str, Callable[[int], Adapter]] = tuple(ADAPTERS),
    budget: float = 0.2,
    shortlist: int = 100,
    metrics: Sequence[str] = ("map", "cmc@1"),
    query_limit: int = 5000,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ProbeResult:
    """Measure every post-hoc way from an old to a new model on items unseen in fitting.

    What is right is said by labels, or by judgements of real queries.

    Args:
        old: Old features of a sample of items, shape ``(N, D_old)``; some 50,000 are plenty.
        new: New features of the same items, shape ``(N, D_new)``.
        labels: Class per item, shape ``(N,)``, integers or strings.
        groups: Shape ``(N,)``; items of a query's own group are not in its gallery.
        queries: Real ones; None: the items measured on are queries, each left out of its own
            gallery. Which are asked, ``split`` says.
        judgements: Instead of labels: which items are right for which real query. Adapters are
            fitted on items that no asked query judges, right or wrong; all others are the gallery.
            Where judgements are so many that fewer than ``fit_share`` of the items are left, some
            queries are not asked.
        split: With labels, what keeps the items measured on apart from those fitted on; the former
            are the gallery. ``"classes"`` (None means it): fitted on the items of some classes,
            measured on those of the others, and by real queries of these. Right where classes are
            to come that the sample does not have: new products, new people. ``"items"``: fitted on
            some items of every class, drawn at random, groups as a whole, and measured on the
            others, by real queries of any class but those of ids or groups fitted on. Right where
            the gallery keeps the classes of the sample: adapters may know where these lie, and do
            better. Of a class of three items or more (of as many groups), one at least is fitted on
            and two are measured on; one of two has one on either side, for real queries alone to
            find. Judgements always split by items.
        clusters: With judgements: clusters of the old features in place of classes, for the head
            trained by the compatibility loss; None: one for 20 items to fit on.
        fit_share: Share of the classes, or of the items where they are split, that adapters are
            fitted on, in (0, 1).
        adapters: Of ``procrustes``, ``ridge``, ``low-rank``, ``mean-shift`` (left out where the
            dims differ), ``mlp``, ``compat-head``; or what makes them, given a seed, by name.
        budget: Share of the gallery embedded anew, random rows, for the ways that have no map but
            queries by both models: rankings of an old and a new index merged by reciprocal ranks,
            or by scores calibrated on the items to fit on, and two-stage reranking; in [0, 1], 0
            leaves them out.
        shortlist: Hits of the old index that two-stage reranking looks at.
        metrics: As `fclearn.evaluation.evaluate_retrieval`, with judgements nDCG of their grades;
            ``map`` is always among them.
        query_limit: Most queries measured with, drawn at random.
        num_bootstrap: Resamples of the queries behind the intervals.
        confidence: Of the intervals, in (0, 1).
        seed: Of the choice of what to fit on, of training, and of the resamples.

    Returns:
        Ways and verdict. ``oracle/old`` is the ceiling of the old space: queries at the mean old
        feature of half of what is right for them, chosen at random, searching for the other half.
        Its gain is over old queries that search for that same half, and 0 where one row alone is
        right; its metrics are those of old/old plus the mean gain, at most 1, as in
        `fclearn.experiments.benchmark`. Split by items, adapters know more of a class than the few
        of its items that are held out say, and may pass it.

    Raises:
        TypeError: Features that are not floating.
        ValueError: Features, labels or ids that are not aligned, rows that are zero or not finite,
            fewer than 2 classes on either side, or in all if items are split, an unknown adapter
            or split, an option out of range, no query with a positive; not one of labels and
            judgements; judgements as `Qrels.relevance`, split by classes, or that leave too little
            to fit on.

    Example:
        >>> import torch
        >>> labels = torch.arange(80) % 8
        >>> old = torch.eye(8)[labels] + 0.3 * torch.randn(80, 8)
        >>> result = probe(old=old, new=old, labels=labels, adapters=["procrustes"], budget=0)
        >>> [way.name for way in result.ways]
        ['old/old', 'new/new', 'oracle/old', 'procrustes', 'procrustes']
    """
    makers = _makers(adapters)
    check_bootstrap(num_bootstrap, confidence)
    _check(fit_share, budget, query_limit, split)
    items = Items.build(old, new, groups)
    parts = _split(items, labels, queries, judgements, split, Draw(fit_share, query_limit, seed))
    held = parts.held
    pairs = FitPairs.of(items, parts, clusters, seed)
    measure = Measure(held, metrics)
    left_out = {} if measure.add_oracle(seed) else {ORACLE: "no query has two right rows"}
    for name, make in makers.items():
        reason = _impossible(make(seed), pairs)
        if reason:
            left_out[name] = reason
            continue
        for direction, source, target, moved in (
            (NEW_TO_OLD, "new", "old", held.query["new"]),
            (OLD_TO_NEW, "old", "new", held.gallery["old"]),
        ):
            start = time.perf_counter()
            adapter = make(seed)
            adapter.fit(
                source=pairs.sides[source],
                target=pairs.sides[target],
                labels=pairs.classes if adapter.needs_labels else None,
            )
            mapped = adapter.transform(moved)
            measure.add(name, direction, mapped, time.perf_counter() - start)
    if budget > 0:
        real = None if parts.fit_labels is not None else held.query
        measure.add_halves(budget, calibrate(pairs, real), shortlist, seed)
    ways = measure.ways(num_bootstrap, confidence, seed)
    dim = max(rows.shape[1] for rows in pairs.sides.values())
    counts, classes = parts.counts, parts.classes
    num_test = None if classes is None else classes.test
    advice = judge(ways, measure.num_queries, len(pairs.own), dim, num_test, parts.by)
    has_clusters = parts.fit_labels is None and any(
        make(seed).needs_labels and name not in left_out for name, make in makers.items()
    )
    return ProbeResult(
        ways=ways,
        verdict=advice.verdict,
        best=advice.best,
        map_suffices=advice.map_suffices,
        text=advice.text,
        num_queries=measure.num_queries,
        num_skipped=measure.num_skipped + (counts.queries_without_relevant if counts else 0),
        num_gallery=len(held.gallery_ids),
        num_fit=len(pairs.own),
        num_fit_classes=None if classes is None else classes.fit,
        num_test_classes=num_test,
        num_shared_classes=None if classes is None else classes.shared,
        confidence=confidence,
        left_out=left_out,
        split=parts.by,
        split_text=split_in_words(parts.by, classes),
        pseudo_labels=int(pairs.classes.max()) + 1 if has_clusters else None,
        judgements=counts,
    )


def _split(
    items: Items,
    labels: PerRow | None,
    queries: ProbeQueries | None,
    judgements: Judgements | None,
    by: str | None,
    draw: Draw,
) -> Split:
    if (labels is None) == (judgements is None):
        raise ValueError("labels, judgements: expected exactly one of the two")
    if judgements is None:
        assert labels is not None
        split = split_by_item if by == BY_ITEMS else split_by_class
        return split(items, labels, queries, draw)
    if by == BY_CLASSES:
        raise ValueError(
            f"split: expected {BY_ITEMS!r} or none with judgements, which know no classes, got "
            f"{by!r}"
        )
    if queries is None:
        raise ValueError("queries: expected real ones, which the judgements are of")
    return split_by_judgement(items, judgements, queries, draw)


def _impossible(adapter: Adapter, pairs: FitPairs) -> str:
    """Why an adapter cannot be fitted; empty if it can."""
    dims = [pairs.sides[side].shape[1] for side in ("old", "new")]
    if isinstance(adapter, MeanShift) and dims[0] != dims[1]:
        return f"needs models of one dim, these have {dims[0]} and {dims[1]}"
    if adapter.needs_labels:
        try:
            _ = pairs.classes
        except ModuleNotFoundError as error:
            return f"needs clusters in place of classes: {error}"
    return ""


def _makers(
    adapters: Sequence[str] | Mapping[str, Callable[[int], Adapter]],
) -> Mapping[str, Callable[[int], Adapter]]:
    if isinstance(adapters, Mapping):
        return adapters
    for name in adapters:
        if name not in ADAPTERS:
            raise ValueError(f"adapters: expected some of {list(ADAPTERS)}, got {name!r}")
    return {name: ADAPTERS[name] for name in adapters}


def _check(fit_share: float, budget: float, query_limit: int, split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: expected one of {list(SPLITS)}, got {split!r}")
    if not 0 < fit_share < 1:
        raise ValueError(f"fit_share: expected a number in (0, 1), got {fit_share}")
    if not 0 <= budget <= 1:
        raise ValueError(f"budget: expected a share of the gallery in [0, 1], got {budget}")
    if query_limit < 1:
        raise ValueError(f"query_limit: expected at least 1, got {query_limit}")
