# SPDX-License-Identifier: Apache-2.0
"""The report of a partial backfill: which rows first, what it gains, how to serve it meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fclearn.backfill import BackfillCurve
from fclearn.backfill.figure import curve_panel
from fclearn.evaluation import metric_title
from fclearn.report._files import damage_said, write_files
from fclearn.report._numbers import Row, Table, cell, number, row, text_cell
from fclearn.report._sections import Section, figures, notes, render_sections, table, text, verdict
from fclearn.report._template import Json

PLAN_FILE = "curve.json"
_HIDDEN = frozenset({"verdict", "counts", "num_missing", "baseline", "ways", "curve", "thresholds"})
_SHOWN = (0, 0.05, 0.1, 0.2, 0.5, 1)
_HEADLINES = {
    "backfill": ("compatible", "The budget is worth spending"),
    "wait": ("unclear", "At this budget nothing clearly beats leaving the gallery alone"),
    "stay": ("incompatible", "The new gallery would be no clear gain"),
}


def write_plan_page(folder: Path, data: Mapping[str, Json]) -> None:
    """Write ``report.html`` beside the ``curve.json`` of a plan.

    Args:
        folder: Of the plan.
        data: Content of ``curve.json``.

    Raises:
        OSError: The folder cannot be written.
        ValueError: Not the content of a plan's file.
    """
    with damage_said(f"{folder / PLAN_FILE}: not the numbers of a plan by this release"):
        page = render_sections(
            [plan_section(data, "What a partial backfill brings")],
            {"title": "Plan of a partial backfill", **data},
            kind="backfill report",
            hidden=_HIDDEN,
            numbers_file=PLAN_FILE,
        )
    write_files(folder, {"report.html": page})


def plan_section(data: Mapping[str, Json], title: str) -> Section:
    """What a plan says, as a section of a page.

    Args:
        data: Content of ``curve.json``.
        title: Its heading.
    """
    curve, counts = BackfillCurve.from_dict(data["curve"]), data["counts"]
    budget, metrics = float(data["budget"]), list(curve.random_band)
    status, headline = _HEADLINES[data["verdict"]["status"]]
    lines = [
        f"{counts['gallery']:,} rows in the gallery, {counts['done']:,} embedded anew already, "
        f"{counts['left_in_budget']:,} of the {counts['left']:,} others in the budget.",
        *_skipped(curve),
        *_missing(data["num_missing"]),
        *_thresholds(data),
    ]
    return {
        "title": title,
        "blocks": [
            verdict(status, headline, data["verdict"]["text"]),
            figures(
                [(curve_panel(curve, name, budget=budget), _alt(curve, name)) for name in metrics],
                f"Gain against the share of the gallery embedded anew, served as {curve.serving}"
                f"{', scores calibrated' if curve.is_calibrated else ''}. Grey: where 95% of "
                f"single random orders fall. Dotted: the budget, {100 * budget:g}%.",
            ),
            table(_orders(curve)),
            table(_ways(data, curve, budget)),
            notes(lines),
            text(
                "Measured on the rows that both stores hold: a sample has fewer rivals than the "
                "gallery, so its numbers are higher; what carries over is the comparison."
            ),
        ],
    }


def _orders(curve: BackfillCurve) -> Table:
    metric, shares = next(iter(curve.random_band)), curve.fractions
    shown = sorted(
        {min(range(len(shares)), key=lambda at: abs(shares[at] - goal)) for goal in _SHOWN}
    )
    rows: list[Row] = []
    for name, curves in curve.orders.items():
        found = curves[metric]
        values = [cell(found.values[at]) for at in shown]
        is_random = name == "random"
        gain = text_cell("–") if is_random else cell(found.gain, found.gain_interval, sign=True)
        rows.append(row(name, [*values, gain]))
    return Table(
        label="Orders",
        caption=f"{metric_title(metric)} in percent by the share embedded anew, and the area under "
        f"the curve beyond that of random order ({curve.num_random} seeds), in points with 95% "
        f"intervals; {curve.num_queries:,} queries, {curve.num_gallery:,} gallery rows.",
        columns=["order", *(f"{100 * shares[at]:.3g}%" for at in shown), "area gained"],
        bodies=[rows],
    )


def _ways(data: Mapping[str, Json], curve: BackfillCurve, budget: float) -> Table:
    metrics, baseline = list(curve.random_band), data["baseline"]
    rows = [
        row(
            name,
            [
                one
                for metric in metrics
                for one in (
                    cell(way["metrics"][metric]),
                    cell(way["gain"][metric], way["gain_intervals"][metric], sign=True),
                )
            ],
            marked=name == data["verdict"]["serving"],
        )
        for name, way in data["ways"].items()
    ]
    columns = [
        text for name in metrics for text in (metric_title(name), f"{metric_title(name)}, gain")
    ]
    return Table(
        label="Ways to serve",
        caption=f"Ways to serve the gallery with {100 * budget:g}% embedded anew in the order "
        f"{data['order']!r}, in percent; gains over {baseline} in points with 95% intervals. "
        "The best way for the half-migrated gallery is marked.",
        columns=["served as", *columns],
        bodies=[rows],
    )


def _thresholds(data: Mapping[str, Json]) -> Sequence[str]:
    return [
        f"A threshold on {kind} that lets in as many impostors as before: "
        f"{found['new']['threshold']:.4f} [{found['interval'][0]:.4f}, {found['interval'][1]:.4f}]."
        for kind, found in data["thresholds"].items()
    ]


def _skipped(curve: BackfillCurve) -> Sequence[str]:
    if not curve.num_skipped:
        return []
    return [f"{curve.num_skipped:,} queries have nothing right in the gallery; they count nowhere."]


def _missing(count: int) -> Sequence[str]:
    if not count:
        return []
    return [f"{count:,} relevant rows are not among the rows measured on; they count nowhere."]


def _alt(curve: BackfillCurve, metric: str) -> str:
    lines = [
        f"{name} from {number(curves[metric].values[0])} to {number(curves[metric].values[-1])}, "
        f"area {number(curves[metric].area)}"
        for name, curves in curve.orders.items()
    ]
    return (
        f"Curves of {metric_title(metric)} in percent over the share of the gallery embedded anew: "
        f"{'; '.join(lines)}."
    )
