# SPDX-License-Identifier: Apache-2.0
"""What ``fcl plan`` prints: its tables, what does not count, numbers for gates."""

from __future__ import annotations

from rich.table import Table

from fclearn.cli.plan_run import JUDGED_METRICS, METRICS, Plan
from fclearn.evaluation import metric_title

_SHOWN = (0, 0.05, 0.1, 0.2, 0.5, 1)
_SIDES = ("old/old", "new/old", "new/new")


def gate_names(*, has_grades: bool) -> dict[str, str]:
    """Names for gates, each with the option it lacks, or ``""``.

    Example:
        >>> gate_names(has_grades=False)["new/new.ndcg@10"]
        '--qrels'
    """
    names = dict.fromkeys(("area_gain", "share_of_ideal", "gain_share"), "")
    for metric in JUDGED_METRICS:
        lacks = "" if has_grades or metric in METRICS else "--qrels"
        names |= dict.fromkeys([metric, *(f"{side}.{metric}" for side in _SIDES)], lacks)
    return names


def tables(result: Plan, budget: float) -> tuple[Table, Table]:
    """Ways to serve, and orders."""
    return _ways_table(result, budget), _orders_table(result)


def numbers_of(result: Plan, order: str, budget: float) -> dict[str, float | None]:
    """Numbers that gates may use."""
    curve, ways = result.curve, result.table.ways
    at = curve.fractions.index(round(budget * curve.num_gallery) / curve.num_gallery)
    found = curve.orders[order]
    return {
        **{metric: found[metric].values[at] for metric in curve.random_band},
        "area_gain": found["map"].gain,
        "share_of_ideal": found["map"].share_of_ideal,
        "gain_share": result.verdict.gain_share,
        **{
            f"{side}.{metric}": ways[side].metrics[metric] if side in ways else None
            for side in _SIDES
            for metric in curve.random_band
        },
    }


def _ways_table(result: Plan, budget: float) -> Table:
    table = Table(
        title=f"Serving with {100 * budget:g} % embedded anew, metrics in %",
        caption=f"{result.curve.num_queries:,} queries, {result.curve.num_gallery:,} gallery rows; "
        f"95 % intervals of the difference to {result.table.baseline}",
    )
    metrics = list(result.curve.random_band)
    # 80 columns wide: three metrics need a line for intervals.
    apart = "\n" if len(metrics) > 2 else " "
    table.add_column("way")
    for metric in metrics:
        table.add_column(metric_title(metric), justify="right")
    for name, way in result.table.ways.items():
        cells = [
            f"{100 * way.metrics[m]:.1f}{apart}[dim]\\[{100 * way.gain_intervals[m][0]:+.1f}, "
            f"{100 * way.gain_intervals[m][1]:+.1f}][/dim]"
            for m in metrics
        ]
        table.add_row(name, *cells, style="bold" if name == result.table.best else None)
    return table


def _orders_table(result: Plan) -> Table:
    curve = result.curve
    calibrated = ", calibrated" if curve.is_calibrated else ""
    table = Table(
        title=f"Orders, mAP in %, {curve.serving}{calibrated}",
        caption=f"random: {curve.num_random} seeds; 95 % intervals of the area's difference to it",
    )
    table.add_column("order")
    shares = curve.fractions
    shown = sorted(
        {min(range(len(shares)), key=lambda at: abs(shares[at] - goal)) for goal in _SHOWN}
    )
    for at in shown:
        table.add_column(f"{100 * shares[at]:.3g} %", justify="right")
    table.add_column("area", justify="right")
    for name, curves in curve.orders.items():
        found = curves["map"]
        low, high = found.gain_interval
        table.add_row(
            name,
            *(f"{100 * found.values[at]:.1f}" for at in shown),
            f"{100 * found.area:.1f} [dim]\\[{100 * low:+.1f}, {100 * high:+.1f}][/dim]",
        )
    return table
