# SPDX-License-Identifier: Apache-2.0
"""A plan of a partial backfill, from feature stores to files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fclearn._files import replacing
from fclearn.adapters import ForwardMap
from fclearn.backfill import (
    MERGED,
    MIXED,
    BackfillCurve,
    BackfillOrder,
    MigrationSample,
    ScoreCalibration,
    ServingTable,
    TransferredThreshold,
    backfill_curve,
    backfill_order,
    compare_serving,
    fit_calibration,
    impostor_scores,
    transfer_threshold,
)
from fclearn.backfill.curve import DEFAULT_FRACTIONS
from fclearn.backfill.figure import draw_curve
from fclearn.backfill.files import read_done, read_labels, write_plan
from fclearn.backfill.orders import check_traffic
from fclearn.backfill.sample import sample_rows
from fclearn.backfill.serving import CROSS, CURVES, NEW, OLD
from fclearn.backfill.verdict import PlanVerdict, judge_plan
from fclearn.cli.alignment import rows_of_ids
from fclearn.features import FeatureStore, check_rows

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PlanOptions:
    """What `fcl plan` was told; see its help."""

    old: Path
    new: Path
    out: Path
    order: str
    compare: Sequence[str]
    budget: float
    labels: Path | None = None
    done: Path | None = None
    traffic: str | None = None
    forward_map: Path | None = None
    old_query: Path | None = None
    new_query: Path | None = None
    use_groups: bool = False
    threshold: float | None = None
    shortlist: int = 100
    gallery_limit: int = 20_000
    query_limit: int = 2_000
    num_random: int = 5
    num_bootstrap: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """What `make_plan` found and wrote."""

    curve: BackfillCurve
    table: ServingTable
    verdict: PlanVerdict
    counts: dict[str, int]
    thresholds: dict[str, TransferredThreshold] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for strict JSON."""
        return {
            "verdict": asdict(self.verdict),
            "counts": self.counts,
            "baseline": self.table.baseline,
            "ways": {name: dict(vars(way)) for name, way in self.table.ways.items()},
            "curve": self.curve.to_dict(),
            "thresholds": {name: found.to_dict() for name, found in self.thresholds.items()},
        }


def make_plan(options: PlanOptions) -> Plan:
    """Order the gallery, measure on the sample that both stores hold, and write the plan.

    Args:
        options: All there is to know.

    Raises:
        ValueError: Stores, labels, ids or options that do not agree; as `fclearn.backfill`.
        OSError: A file that cannot be read or written.
    """
    old, new = FeatureStore.open(options.old), FeatureStore.open(options.new)
    for store in (old, new):
        _check(store)
    done = set() if options.done is None else read_done(options.done, old.ids)
    labels = _labels(old, options.labels)
    orders = _orders(options, old, labels)
    both = rows_of_ids(old, new.ids, str(options.new))
    chosen = sample_rows(len(both), options.gallery_limit, options.seed)
    sample = _sample(options, old, new, labels, both[chosen], chosen)
    calibrations = _calibrations(sample, options.seed)
    on_sample = {name: _restricted(order.rows, both[chosen]) for name, order in orders.items()}
    affordable = round(options.budget * sample.num_gallery)
    if affordable == 0:
        raise ValueError(
            f"--budget: {options.budget:g} of the {sample.num_gallery} rows measured is none"
        )
    table = compare_serving(
        sample,
        on_sample[options.order][:affordable],
        calibrations,
        shortlist=options.shortlist,
        num_bootstrap=options.num_bootstrap,
        seed=options.seed,
    )
    curve = _curve(options, sample, table, calibrations, on_sample)
    verdict = judge_plan(curve, table, options.order, options.budget)
    written, within = write_plan(
        options.out / "plan.csv",
        orders[options.order],
        old.ids,
        budget=options.budget,
        done=done,
    )
    counts = {"gallery": len(old), "done": len(done), "left": written, "left_in_budget": within}
    plan = Plan(curve, table, verdict, counts, _thresholds(options, sample))
    for serving, calibration in calibrations.items():
        calibration.save(options.out / f"calibration-{serving}.safetensors")
    draw_curve(options.out / "curve.png", curve, budget=options.budget)
    with replacing(options.out / "curve.json") as temporary:
        temporary.write_text(json.dumps(plan.to_dict(), indent=2), encoding="utf-8")
    return plan


def _orders(
    options: PlanOptions, old: FeatureStore, labels: NDArray[np.generic]
) -> dict[str, BackfillOrder]:
    traffic = None
    if options.traffic is not None:
        if options.traffic not in old.manifest:
            raise ValueError(
                f"--traffic: expected a column {options.traffic!r} in the manifest of {old.path}, "
                f"found {', '.join(old.manifest)}"
            )
        name = f"{old.path}: column {options.traffic!r}"
        traffic = check_traffic(old.manifest[options.traffic], len(old), name)
    forward = None if options.forward_map is None else ForwardMap.load(options.forward_map)
    names = dict.fromkeys([options.order, *options.compare])
    for name, given, flag in (
        ("traffic", traffic, "--traffic COLUMN"),
        ("predicted-error", forward, "--forward-map FILE"),
    ):
        if name in names and given is None:
            raise ValueError(f"order {name!r} needs {flag}")
    return {
        name: backfill_order(
            name, old, labels=labels, traffic=traffic, forward_map=forward, seed=options.seed
        )
        for name in names
    }


def _sample(
    options: PlanOptions,
    old: FeatureStore,
    new: FeatureStore,
    labels: NDArray[np.generic],
    old_rows: Ints,
    new_rows: Ints,
) -> MigrationSample:
    """Queries and gallery; without query stores every row is a query, itself left out."""
    gallery_old, gallery_new = (
        np.asarray(old.features[old_rows]),
        np.asarray(new.features[new_rows]),
    )
    gallery_labels, gallery_ids = labels[old_rows], [old.ids[row] for row in old_rows]
    gallery_groups = _groups(old, options)
    groups = None if gallery_groups is None else gallery_groups[old_rows]
    if options.old_query is None or options.new_query is None:
        at = sample_rows(len(old_rows), options.query_limit, options.seed + 1)
        return MigrationSample.build(
            old_query=gallery_old[at],
            new_query=gallery_new[at],
            old_gallery=gallery_old,
            new_gallery=gallery_new,
            query_labels=gallery_labels[at],
            gallery_labels=gallery_labels,
            query_ids=[gallery_ids[row] for row in at],
            gallery_ids=gallery_ids,
            query_groups=None if groups is None else groups[at],
            gallery_groups=groups,
        )
    old_query, new_query = (
        FeatureStore.open(options.old_query),
        FeatureStore.open(options.new_query),
    )
    old_query.fingerprint.check_same(old.fingerprint, "--old-query and --old-features")
    new_query.fingerprint.check_same(new.fingerprint, "--new-query and --new-features")
    rows = sample_rows(len(old_query), options.query_limit, options.seed + 1)
    ids = [old_query.ids[row] for row in rows]
    query_groups = _groups(old_query, options)
    return MigrationSample.build(
        old_query=np.asarray(old_query.features[rows]),
        new_query=np.asarray(
            new_query.features[rows_of_ids(new_query, ids, str(options.old_query))]
        ),
        old_gallery=gallery_old,
        new_gallery=gallery_new,
        query_labels=_labels(old_query, options.labels)[rows],
        gallery_labels=gallery_labels,
        query_ids=ids,
        gallery_ids=gallery_ids,
        query_groups=None if query_groups is None else query_groups[rows],
        gallery_groups=groups,
    )


def _calibrations(sample: MigrationSample, seed: int) -> dict[str, ScoreCalibration]:
    servings = [MIXED, MERGED] if sample.can_mix else [MERGED]
    return {serving: fit_calibration(sample, serving, seed=seed) for serving in servings}


def _curve(
    options: PlanOptions,
    sample: MigrationSample,
    table: ServingTable,
    calibrations: dict[str, ScoreCalibration],
    orders: dict[str, Ints],
) -> BackfillCurve:
    """The curve of the way that serves the budget best, of those that have one."""
    ways = [name for name in table.ways if name in CURVES]
    best = max(ways, key=lambda name: table.ways[name].metrics["map"])
    serving, is_calibrated = CURVES[best]
    return backfill_curve(
        sample,
        {name: rows for name, rows in orders.items() if name != "random"},
        serving=serving,
        calibration=calibrations[serving] if is_calibrated else None,
        fractions=[*DEFAULT_FRACTIONS, options.budget],
        num_random=options.num_random,
        num_bootstrap=options.num_bootstrap,
        seed=options.seed,
    )


def _thresholds(options: PlanOptions, sample: MigrationSample) -> dict[str, TransferredThreshold]:
    """The threshold in use on old/old, moved to each kind of score that new queries meet."""
    if options.threshold is None:
        return {}
    old = impostor_scores(sample, OLD, seed=options.seed)
    return {
        name: transfer_threshold(
            old,
            impostor_scores(sample, name, seed=options.seed),
            options.threshold,
            num_bootstrap=options.num_bootstrap,
            seed=options.seed,
        )
        for name in ([CROSS, NEW] if sample.can_mix else [NEW])
    }


def _restricted(order: Ints, rows: Ints) -> Ints:
    """An order of the whole gallery as one of a sample of its rows: positions in ``rows``."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return np.argsort(place[rows])


def _labels(store: FeatureStore, path: Path | None) -> NDArray[np.generic]:
    if path is not None:
        return read_labels(path, store.ids)
    if store.labels is None:
        raise ValueError(f"{store.path}: expected a column 'label' in the manifest, or --labels")
    return store.labels


def _groups(store: FeatureStore, options: PlanOptions) -> NDArray[np.int64] | None:
    if not options.use_groups:
        return None
    if store.groups is None:
        raise ValueError(f"{store.path}: --use-groups needs a column 'group' in the manifest")
    return store.groups


def _check(store: FeatureStore) -> None:
    if len(store) == 0:
        raise ValueError(f"{store.path}: expected at least one row")
    zeros = check_rows(store, str(store.path))
    if len(zeros):
        raise ValueError(f"{store.path}: row {zeros[0]} has norm zero, so it has no direction")
    # Rows of unit length are ranked alike by all three metrics.
    if store.fingerprint.metric != "cosine" and store.fingerprint.norm != "l2":
        raise ValueError(
            f"{store.path}: expected features compared by the cosine, or of unit length; the "
            f"fingerprint says metric {store.fingerprint.metric!r}, norm "
            f"{store.fingerprint.norm!r}"
        )
