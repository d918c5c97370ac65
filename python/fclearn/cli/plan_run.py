# SPDX-License-Identifier: Apache-2.0
"""A plan of a partial backfill, from feature stores to files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from fclearn._files import replacing
from fclearn.backfill import (
    MERGED,
    MIXED,
    BackfillCurve,
    MigrationSample,
    ScoreCalibration,
    ServingTable,
    backfill_curve,
    compare_serving,
    fit_calibration,
    impostor_scores,
    transfer_threshold_by_scores,
)
from fclearn.backfill.curve import DEFAULT_FRACTIONS
from fclearn.backfill.figure import draw_curve
from fclearn.backfill.files import read_done, write_plan
from fclearn.backfill.sample import CROSS, NEW, OLD
from fclearn.backfill.serving import CURVES
from fclearn.backfill.verdict import PlanVerdict, judge_plan
from fclearn.cli.plan_inputs import PlanOptions, load_labels, load_orders, open_store
from fclearn.cli.plan_sample import load_sample
from fclearn.evaluation import ThresholdTransfer
from fclearn.report import rebuild
from fclearn.report.plans import PLAN_FILE

Ints = NDArray[np.int64]
#: Files of a plan, beside its numbers and its page.
PLAN_TABLE, CURVE_PICTURE = "plan.csv", "curve.png"
CALIBRATIONS = "calibration-*.safetensors"
METRICS = ("map", "cmc@1")
#: With judgements, which may be graded.
JUDGED_METRICS = (*METRICS, "ndcg@10")


@dataclass(frozen=True)
class Plan:
    """What `make_plan` found and wrote."""

    curve: BackfillCurve
    table: ServingTable
    verdict: PlanVerdict
    counts: dict[str, int]
    order: str
    budget: float
    command: str
    thresholds: dict[str, ThresholdTransfer] = field(default_factory=dict)
    num_missing: int = 0

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for strict JSON."""
        return {
            "command": self.command,
            "order": self.order,
            "budget": self.budget,
            "verdict": asdict(self.verdict),
            "counts": self.counts,
            "num_missing": self.num_missing,
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
    old, new = open_store(options.old), open_store(options.new)
    done = set() if options.done is None else read_done(options.done, old.ids)
    labels = load_labels(options, old)
    measured = load_sample(options, old, new, labels)
    orders = load_orders(options, old, None if labels is None else labels[0])
    sample, metrics = measured.sample, metrics_of(options)
    calibrations = _calibrations(sample, options.seed)
    on_sample = {name: _restricted(order.rows, measured.rows) for name, order in orders.items()}
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
        metrics=metrics,
        num_bootstrap=options.num_bootstrap,
        seed=options.seed,
    )
    curve = _curve(options, sample, table, calibrations, on_sample)
    verdict = judge_plan(curve, table, options.order, options.budget)
    written, within = write_plan(
        options.out / PLAN_TABLE,
        orders[options.order],
        old.ids,
        budget=options.budget,
        done=done,
    )
    counts = {"gallery": len(old), "done": len(done), "left": written, "left_in_budget": within}
    plan = Plan(
        curve,
        table,
        verdict,
        counts,
        options.order,
        options.budget,
        options.command,
        _thresholds(options, sample),
        measured.num_missing,
    )
    for stale in options.out.glob(CALIBRATIONS):
        stale.unlink()  # of a plan that this one replaces, which may have had another way to serve
    for serving, calibration in calibrations.items():
        calibration.save(options.out / CALIBRATIONS.replace("*", serving))
    draw_curve(options.out / CURVE_PICTURE, curve, budget=options.budget)
    with replacing(options.out / PLAN_FILE) as temporary:
        temporary.write_text(json.dumps(plan.to_dict(), indent=2), encoding="utf-8")
    rebuild(options.out)
    return plan


def metrics_of(options: PlanOptions) -> tuple[str, ...]:
    """What is measured."""
    return METRICS if options.qrels is None else JUDGED_METRICS


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
        metrics=metrics_of(options),
        num_random=options.num_random,
        num_bootstrap=options.num_bootstrap,
        seed=options.seed,
    )


def _thresholds(options: PlanOptions, sample: MigrationSample) -> dict[str, ThresholdTransfer]:
    """The threshold in use on old/old, moved to each kind of score that new queries meet."""
    if options.threshold is None:
        return {}
    old = impostor_scores(sample, OLD, seed=options.seed)
    return {
        name: transfer_threshold_by_scores(
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
