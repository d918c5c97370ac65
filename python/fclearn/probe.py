# SPDX-License-Identifier: Apache-2.0
"""Go or no-go before anyone trains an encoder: what pairs of old and new features can tell.

Some classes are for fitting, the others for testing: a gallery's classes are not those a map was
fitted on. Every way to serve an upgrade is measured on the same queries and gallery, so that
differences are paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.adapters import Adapter, CompatHead, LowRank, MeanShift, MlpMap, Procrustes, Ridge
from fclearn.evaluation import evaluate_retrieval, oracle_gain
from fclearn.evaluation._bootstrap import Interval, bootstrap_means, interval
from fclearn.evaluation._keys import PerRow
from fclearn.features import FeatureSource, as_tensor

OLD, NEW, ORACLE = "old/old", "new/new", "oracle/old"
#: What an adapter moves, and therefore what stays as it is.
NEW_TO_OLD, OLD_TO_NEW = "new query -> old space", "old gallery -> new space"

#: Maps and heads by name; each takes the seed of its training.
ADAPTERS: dict[str, Callable[[int], Adapter]] = {
    "procrustes": lambda _: Procrustes(),
    "ridge": lambda _: Ridge(),
    "low-rank": lambda _: LowRank(),
    "mean-shift": lambda _: MeanShift(),
    "mlp": lambda seed: MlpMap(seed=seed),
    "compat-head": lambda seed: CompatHead(seed=seed),
}


@dataclass(frozen=True)
class Way:
    """One way to serve queries, measured.

    Attributes:
        name: ``"old/old"``, ``"new/new"``, ``"oracle/old"`` or that of an adapter.
        direction: `NEW_TO_OLD`, `OLD_TO_NEW`, or ``""`` without an adapter.
        metrics: As fractions.
        intervals: Bootstrap intervals of the metrics.
        gain: Difference to old/old, by metric.
        gain_intervals: Paired bootstrap intervals of the differences.
        update_gain: Share of what re-indexing would bring, on mAP; None where the new model is no
            better than the old one.
        seconds: What fitting and mapping took.
    """

    name: str
    direction: str
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    gain: dict[str, float]
    gain_intervals: dict[str, Interval]
    update_gain: float | None
    seconds: float


@dataclass(frozen=True)
class ProbeResult:
    """All ways, old/old first, and what to do.

    Attributes:
        ways: Measured ways.
        verdict: ``"map"``: an adapter of new queries beats the old model on the gallery as it is;
            ``"train"``: none does, though the new model is better and the old space has room;
            ``"stay"``: the new model is not better than the old one.
        best: Name of the best adapter of new queries.
        text: The verdict in words.
        num_queries: Queries that counted.
        num_fit: Rows the adapters were fitted on.
    """

    ways: tuple[Way, ...]
    verdict: str
    best: str
    text: str
    num_queries: int
    num_fit: int

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for strict JSON."""
        return {
            "verdict": self.verdict,
            "best": self.best,
            "text": self.text,
            "num_queries": self.num_queries,
            "num_fit": self.num_fit,
            "ways": [vars(way) for way in self.ways],
        }


def probe(
    *,
    old: FeatureSource,
    new: FeatureSource,
    labels: PerRow,
    groups: PerRow | None = None,
    fit_share: float = 0.6,
    adapters: Sequence[str] = tuple(ADAPTERS),
    metrics: Sequence[str] = ("map", "cmc@1"),
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ProbeResult:
    """Measure every post-hoc way from an old to a new model on classes unseen in fitting.

    Args:
        old: Old features of a sample of items, shape ``(N, D_old)``; some 50,000 are plenty.
        new: New features of the same items, shape ``(N, D_new)``.
        labels: Class per item, shape ``(N,)``, integers or strings; clusters where there are none.
        groups: Shape ``(N,)``; items of a query's own group are not in its gallery.
        fit_share: Share of the classes that adapters are fitted on, in (0, 1).
        adapters: Of ``procrustes``, ``ridge``, ``low-rank``, ``mean-shift`` (left out where the
            dims differ), ``mlp``, ``compat-head``.
        metrics: As `evaluate_retrieval`; ``map`` is always among them.
        num_bootstrap: Resamples of the queries behind the intervals.
        confidence: Of the intervals, in (0, 1).
        seed: Of the choice of classes, of training, and of the resamples.

    Returns:
        Ways and verdict. ``oracle/old`` is the ceiling of the old space: queries at the mean old
        feature of half of their class, chosen by a coin, searching for the other half. Its gain is
        over old queries that search for that same half; its metrics are those of old/old plus it.

    Raises:
        TypeError: Features that are not floating.
        ValueError: Features and labels that are not aligned, fewer than 2 classes on either side,
            an unknown adapter, an option out of range, no query with a positive.

    Example:
        >>> labels = torch.arange(80) % 8
        >>> old = torch.eye(8)[labels] + 0.3 * torch.randn(80, 8)
        >>> result = probe(old=old, new=old, labels=labels, adapters=["procrustes"])
        >>> [way.name for way in result.ways]
        ['old/old', 'new/new', 'oracle/old', 'procrustes', 'procrustes']
    """
    if not 0 < fit_share < 1:
        raise ValueError(f"fit_share: expected a number in (0, 1), got {fit_share}")
    for name in adapters:
        if name not in ADAPTERS:
            raise ValueError(f"adapters: expected some of {list(ADAPTERS)}, got {name!r}")
    sides = {"old": as_tensor(old), "new": as_tensor(new)}
    classes = np.unique(np.asarray(labels), return_inverse=True)[1].reshape(-1)
    for side, rows in sides.items():
        if len(rows) != len(classes):
            raise ValueError(
                f"{side}: expected one row per label ({len(classes)}), got {len(rows)}"
            )
    is_fit = _choose_classes(classes, fit_share, seed)
    test = torch.from_numpy(~is_fit)
    old_test, new_test = sides["old"][test], sides["new"][test]
    measure = _Measure(
        classes[~is_fit], None if groups is None else np.asarray(groups)[~is_fit], metrics
    )
    measure.add(OLD, "", old_test, old_test)
    measure.add(NEW, "", new_test, new_test)
    measure.add_oracle(old_test, seed)
    pairs = {side: rows[~test] for side, rows in sides.items()}
    fit_labels = torch.from_numpy(classes[is_fit])
    for name in adapters:
        if name == "mean-shift" and old_test.shape[1] != new_test.shape[1]:
            continue
        for direction, (source, target) in (
            (NEW_TO_OLD, ("new", "old")),
            (OLD_TO_NEW, ("old", "new")),
        ):
            start = time.perf_counter()
            adapter = ADAPTERS[name](seed).fit(
                source=pairs[source], target=pairs[target], labels=fit_labels
            )
            mapped = adapter.transform(new_test if source == "new" else old_test)
            seconds = time.perf_counter() - start
            query, gallery = (mapped, old_test) if direction == NEW_TO_OLD else (new_test, mapped)
            measure.add(name, direction, query, gallery, seconds)
    ways = measure.ways(num_bootstrap, confidence, seed)
    return _judge(ways, measure.num_queries, int(is_fit.sum()))


class _Measure:
    """Metrics per query of each way, on one set of test items that is query and gallery."""

    def __init__(
        self, classes: NDArray[np.int64], groups: NDArray[np.generic] | None, metrics: Sequence[str]
    ) -> None:
        self.classes, self.groups = classes, groups
        self.names = tuple(dict.fromkeys(("map", *metrics)))
        self.num_queries = 0
        self._found: list[tuple[str, str, float, Mapping[str, NDArray[np.float64]]]] = []

    def add(
        self, name: str, direction: str, query: Tensor, gallery: Tensor, seconds: float = 0.0
    ) -> None:
        self._found.append((name, direction, seconds, self._per_query(query, gallery)))

    def add_oracle(self, features: Tensor, seed: int) -> None:
        """Queries at the mean of the half of their class that is then left out of the gallery."""
        gain = oracle_gain(features, self.classes, self._ids, metrics=self.names, seed=seed)
        values = {name: self._found[0][3][name] + gain[name] for name in self.names}
        self._found.append((ORACLE, "", 0.0, values))

    @property
    def _ids(self) -> NDArray[np.generic]:
        # A group holds its own items, so a group as id leaves out the query itself, too.
        return np.arange(len(self.classes)) if self.groups is None else self.groups

    def _per_query(self, query: Tensor, gallery: Tensor) -> Mapping[str, NDArray[np.float64]]:
        result = evaluate_retrieval(
            query,
            gallery,
            query_labels=self.classes,
            gallery_labels=self.classes,
            exclude_self=True,
            query_ids=self._ids,
            gallery_ids=self._ids,
            metrics=self.names,
            return_per_query=True,
        )
        self.num_queries = self.num_queries or result.num_queries
        return result.per_query

    def ways(self, num_bootstrap: int, confidence: float, seed: int) -> tuple[Way, ...]:
        counted = ~np.isnan(self._found[0][3]["map"])
        width = len(self.names)
        values = np.concatenate(
            [np.stack([found[3][n][counted] for n in self.names], axis=1) for found in self._found],
            axis=1,
        )
        means, draws = values.mean(0), bootstrap_means(values, num_bootstrap, seed)
        room = means[width] - means[0]
        ways = []
        for at, (name, direction, seconds, _) in enumerate(self._found):
            here = slice(at * width, (at + 1) * width)
            change = draws[:, here] - draws[:, :width]
            gain = means[here] - means[:width]

            def by_name(numbers: NDArray[np.float64]) -> dict[str, float]:
                return dict(zip(self.names, numbers.tolist(), strict=True))

            def bounds(samples: NDArray[np.float64]) -> dict[str, Interval]:
                return {n: interval(samples[:, i], confidence) for i, n in enumerate(self.names)}

            ways.append(
                Way(
                    name,
                    direction,
                    by_name(means[here]),
                    bounds(draws[:, here]),
                    by_name(gain),
                    bounds(change),
                    float(gain[0] / room) if room > 0 else None,
                    seconds,
                )
            )
        return tuple(ways)


def _choose_classes(classes: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    count = int(classes.max()) + 1 if len(classes) else 0
    chosen = round(share * count)
    if chosen < 2 or count - chosen < 2:
        raise ValueError(
            f"labels: expected at least 2 classes to fit and 2 to test, got {count} in all"
        )
    return np.asarray(np.random.default_rng(seed).permutation(count)[classes] < chosen)


def _judge(ways: tuple[Way, ...], num_queries: int, num_fit: int) -> ProbeResult:
    by_name = {way.name: way for way in ways if not way.direction}
    old, new, oracle = by_name[OLD], by_name[NEW], by_name[ORACLE]
    queries = [way for way in ways if way.direction == NEW_TO_OLD]
    best = max(queries, key=lambda way: way.metrics["map"], default=None)
    text = (
        f"The new model re-indexed reaches mAP {_percent(new.metrics['map'])}, the old one "
        f"{_percent(old.metrics['map'])}. "
    )
    if new.gain_intervals["map"][1] <= 0 or new.gain["map"] <= 0:
        verdict = "stay"
        text += "It is no better than the old one: there is nothing to gain."
    elif best is not None and best.gain_intervals["map"][0] > 0:
        verdict = "map"
        text += (
            f"{best.name} brings new queries on the old gallery to "
            f"{_percent(best.metrics['map'])}, more than old queries reach: it can be used as "
            "it is."
        )
        first = best.gain_intervals.get("cmc@1")
        if first is not None and first[1] < 0:
            text += (
                " The first hit, however, gets worse: CMC@1 "
                f"{100 * best.gain['cmc@1']:+.1f} points."
            )
    else:
        verdict = "train"
        reached = (
            "No adapter was tried. "
            if best is None
            else f"The best adapter of new queries, {best.name}, stops at "
            f"{_percent(best.metrics['map'])}. "
        )
        text += reached + (
            "A query at its class's own mean would reach "
            f"{_percent(oracle.metrics['map'])} in the old space: train the new model compatibly."
        )
    return ProbeResult(ways, verdict, "" if best is None else best.name, text, num_queries, num_fit)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
