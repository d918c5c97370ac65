# SPDX-License-Identifier: Apache-2.0
"""Measure every post-hoc way from an old to a new model.

Some classes are for fitting, the others for testing: a gallery's classes are not those a map was
fitted on. Every way to serve an upgrade is measured on the same queries and gallery, so that
differences are paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.adapters import Adapter, CompatHead, LowRank, MeanShift, MlpMap, Procrustes, Ridge
from fclearn.backfill import MERGED, MigrationSample, ScoreCalibration, fit_calibration
from fclearn.backfill.sample import sample_rows
from fclearn.evaluation._keys import PerRow
from fclearn.features import FeatureSource
from fclearn.probe.held import ProbeQueries, held_items, real_queries, unit_ready
from fclearn.probe.measure import Measure
from fclearn.probe.verdict import judge
from fclearn.probe.ways import NEW_TO_OLD, OLD_TO_NEW, ProbeResult

#: Maps and heads by name; each takes the seed of its training.
ADAPTERS: dict[str, Callable[[int], Adapter]] = {
    "procrustes": lambda _: Procrustes(),
    "ridge": lambda _: Ridge(),
    "low-rank": lambda _: LowRank(),
    "mean-shift": lambda _: MeanShift(),
    "mlp": lambda seed: MlpMap(seed=seed),
    "compat-head": lambda seed: CompatHead(seed=seed),
}
_CALIBRATION_ROWS = 10_000


def probe(
    *,
    old: FeatureSource,
    new: FeatureSource,
    labels: PerRow,
    groups: PerRow | None = None,
    queries: ProbeQueries | None = None,
    fit_share: float = 0.6,
    adapters: Sequence[str] = tuple(ADAPTERS),
    budget: float = 0.2,
    shortlist: int = 100,
    metrics: Sequence[str] = ("map", "cmc@1"),
    query_limit: int = 5000,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ProbeResult:
    """Measure every post-hoc way from an old to a new model on classes unseen in fitting.

    Args:
        old: Old features of a sample of items, shape ``(N, D_old)``; some 50,000 are plenty.
        new: New features of the same items, shape ``(N, D_new)``.
        labels: Class per item, shape ``(N,)``, integers or strings.
        groups: Shape ``(N,)``; items of a query's own group are not in its gallery.
        queries: Real ones; None: the items are queries, each left out of its own gallery.
        fit_share: Share of the classes that adapters are fitted on, in (0, 1).
        adapters: Of ``procrustes``, ``ridge``, ``low-rank``, ``mean-shift`` (left out where the
            dims differ), ``mlp``, ``compat-head``.
        budget: Share of the gallery embedded anew, random rows, for the ways that have no map but
            queries by both models: rankings of an old and a new index merged by reciprocal ranks,
            or by scores calibrated on the fitting classes, and two-stage reranking; in [0, 1], 0
            leaves them out.
        shortlist: Hits of the old index that two-stage reranking looks at.
        metrics: ``map`` and ``cmc@k``; ``map`` is always among them.
        query_limit: Most queries measured with, drawn at random.
        num_bootstrap: Resamples of the queries behind the intervals.
        confidence: Of the intervals, in (0, 1).
        seed: Of the choice of classes, of training, and of the resamples.

    Returns:
        Ways and verdict. ``oracle/old`` is the ceiling of the old space: queries at the mean old
        feature of half of their class, chosen by a coin, searching for the other half. Its gain is
        over old queries that search for that same half; its values per query are those of old/old
        plus it, at most 1.

    Raises:
        TypeError: Features that are not floating.
        ValueError: Features and labels that are not aligned, rows that are zero or not finite,
            fewer than 2 classes on either side, an unknown adapter, an option out of range, no
            query with a positive.

    Example:
        >>> labels = torch.arange(80) % 8
        >>> old = torch.eye(8)[labels] + 0.3 * torch.randn(80, 8)
        >>> result = probe(old=old, new=old, labels=labels, adapters=["procrustes"], budget=0)
        >>> [way.name for way in result.ways]
        ['old/old', 'new/new', 'oracle/old', 'procrustes', 'procrustes']
    """
    _check(fit_share, adapters, budget, query_limit)
    sides = {"old": unit_ready(old, "old"), "new": unit_ready(new, "new")}
    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    classes = classes.reshape(-1)
    for side, rows in sides.items():
        if len(rows) != len(classes):
            raise ValueError(
                f"{side}: expected one row per label ({len(classes)}), got {len(rows)}"
            )
    is_fit = _choose_classes(classes, fit_share, seed)
    fit = torch.from_numpy(is_fit)
    own = np.arange(len(classes)) if groups is None else np.asarray(groups)
    if queries is None:
        held = held_items(sides, classes, own, ~is_fit, query_limit, seed)
    else:
        held = real_queries(sides, classes, own, ~is_fit, query_limit, seed, queries, names)
    measure = Measure(held, metrics)
    measure.add_oracle(seed)
    pairs = {side: rows[fit] for side, rows in sides.items()}
    fit_labels = torch.from_numpy(classes[is_fit])
    for name in adapters:
        if name == "mean-shift" and pairs["old"].shape[1] != pairs["new"].shape[1]:
            continue
        for direction, source, target, moved in (
            (NEW_TO_OLD, "new", "old", held.query["new"]),
            (OLD_TO_NEW, "old", "new", held.gallery["old"]),
        ):
            start = time.perf_counter()
            adapter = ADAPTERS[name](seed).fit(
                source=pairs[source], target=pairs[target], labels=fit_labels
            )
            mapped = adapter.transform(moved)
            measure.add(name, direction, mapped, time.perf_counter() - start)
    if budget > 0:
        calibration = _calibration(pairs, classes[is_fit], own[is_fit], seed)
        measure.add_halves(budget, calibration, shortlist, seed)
    ways = measure.ways(num_bootstrap, confidence, seed)
    advice = judge(ways)
    return ProbeResult(
        ways=ways,
        verdict=advice.verdict,
        best=advice.best,
        text=advice.text,
        num_queries=measure.num_queries,
        num_skipped=measure.num_skipped,
        num_gallery=len(held.gallery_labels),
        num_fit=int(is_fit.sum()),
    )


def _check(fit_share: float, adapters: Sequence[str], budget: float, query_limit: int) -> None:
    if not 0 < fit_share < 1:
        raise ValueError(f"fit_share: expected a number in (0, 1), got {fit_share}")
    if not 0 <= budget <= 1:
        raise ValueError(f"budget: expected a share of the gallery in [0, 1], got {budget}")
    if query_limit < 1:
        raise ValueError(f"query_limit: expected at least 1, got {query_limit}")
    for name in adapters:
        if name not in ADAPTERS:
            raise ValueError(f"adapters: expected some of {list(ADAPTERS)}, got {name!r}")


def _calibration(
    pairs: dict[str, Tensor], classes: NDArray[np.int64], own: NDArray[np.generic], seed: int
) -> ScoreCalibration:
    """From old to new scores, on the classes for fitting."""
    rows = sample_rows(len(classes), _CALIBRATION_ROWS, seed)
    old, new = pairs["old"][rows], pairs["new"][rows]
    sample = MigrationSample.build(
        old_query=old,
        new_query=new,
        old_gallery=old,
        new_gallery=new,
        query_labels=classes[rows],
        gallery_labels=classes[rows],
        query_ids=own[rows],
        gallery_ids=own[rows],
    )
    return fit_calibration(sample, MERGED, seed=seed)


def _choose_classes(classes: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    count = int(classes.max()) + 1 if len(classes) else 0
    chosen = round(share * count)
    if chosen < 2 or count - chosen < 2:
        raise ValueError(
            f"labels: expected at least 2 classes to fit and 2 to test, got {count} in all"
        )
    return np.asarray(np.random.default_rng(seed).permutation(count)[classes] < chosen)
