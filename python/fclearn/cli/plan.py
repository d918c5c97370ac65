# SPDX-License-Identifier: Apache-2.0
"""Verb ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fclearn.cli.console import JsonFlag, command_of, say

if TYPE_CHECKING:
    from rich.table import Table

    from fclearn.cli.plan_run import Plan

_MaybeStore = Annotated[Path | None, typer.Option(metavar="STORE")]


def plan(
    context: typer.Context,
    old_features: Annotated[
        Path, typer.Option(metavar="STORE", help="Old features of the whole gallery.")
    ],
    new_features: Annotated[
        Path, typer.Option(metavar="STORE", help="New features of all of it, or of a sample.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="For plan.csv, curve.json, curve.png.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Columns id, label; else the old store's labels."),
    ] = None,
    order: Annotated[str, typer.Option(help="What to embed anew first.")] = "margin",
    compare: Annotated[str, typer.Option(help="Other orders to measure, by commas.")] = "",
    budget: Annotated[float, typer.Option(help="Share of the gallery to embed anew.")] = 0.2,
    done: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ids embedded anew already, one a line.")
    ] = None,
    traffic: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Requests per row, in the old manifest.")
    ] = None,
    forward_map: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A saved ForwardMap with uncertainty.")
    ] = None,
    old_query: _MaybeStore = None,
    new_query: _MaybeStore = None,
    use_groups: Annotated[
        bool,
        typer.Option("--use-groups", help="Leave out gallery rows of the query's own group."),
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="In use on old/old cosines; where does it move to?")
    ] = None,
    shortlist: Annotated[int, typer.Option(help="Rows that two-stage reranking looks at.")] = 100,
    gallery_limit: Annotated[int, typer.Option(help="Most gallery rows measured on.")] = 20_000,
    query_limit: Annotated[int, typer.Option(help="Most queries measured with.")] = 2_000,
    num_random: Annotated[int, typer.Option(help="Random orders beside it.")] = 5,
    gate: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Exit with 1 unless it holds; may be given again."),
    ] = None,
    num_bootstrap: Annotated[int, typer.Option(help="Resamples behind the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Plan a partial backfill: which rows to embed anew first, what it gains, how to serve it.

    Orders the whole gallery by what is stored now: random, uncertainty (far from every class
    mean), margin (between the two nearest), class-mean (far from the own one), centrality
    (PageRank), traffic (--traffic), predicted-error (--forward-map). On the rows that both stores
    hold it measures the curve of gain against fraction, beside random orders, and the ways to
    serve a half-migrated gallery: one index or two, scores calibrated or not, reranking.

    Without --old-query and --new-query every measured row is a query, itself left out. Rows of the
    other stores are matched to the old one by id.

    Writes plan.csv (ids, the most urgent first), curve.json, curve.png, report.html, and the
    calibrations of scores. With --done the plan resumes: the same ranks, without those rows.

    Gates: map and cmc@1 (of the curve, at the budget), area_gain (over random order),
    share_of_ideal, gain_share, and old/old, new/old, new/new followed by .map or .cmc@1.

    \b
    Examples:
      fcl plan --old-features g/old --new-features g/new --order uncertainty --out plan
      fcl plan --old-features g/old --new-features sample/new --order traffic --traffic hits \\
        --budget 0.05 --done done.txt --out plan --gate "area_gain>0"
    """
    from rich.console import Console

    from fclearn.cli.eval_show import say_skipped
    from fclearn.cli.gates import Gate, finish
    from fclearn.cli.plan_inputs import PlanOptions
    from fclearn.cli.plan_run import make_plan

    gates = [Gate.parse(text, dict.fromkeys(_GATES, "")) for text in gate or []]
    if not 0 < budget <= 1:
        raise ValueError(f"--budget: expected a share of the gallery in (0, 1], got {budget}")
    for name, value, least in (
        ("--gallery-limit", gallery_limit, 1),
        ("--query-limit", query_limit, 1),
        ("--shortlist", shortlist, 1),
        ("--num-random", num_random, 2),
        ("--num-bootstrap", num_bootstrap, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if (old_query is None) != (new_query is None):
        raise ValueError("--old-query and --new-query: expected both or neither")
    result = make_plan(
        PlanOptions(
            old=old_features,
            new=new_features,
            out=out,
            order=order,
            compare=[name.strip() for name in compare.split(",") if name.strip()],
            budget=budget,
            labels=labels,
            done=done,
            traffic=traffic,
            forward_map=forward_map,
            old_query=old_query,
            new_query=new_query,
            use_groups=use_groups,
            threshold=threshold,
            shortlist=shortlist,
            gallery_limit=gallery_limit,
            query_limit=query_limit,
            num_random=num_random,
            num_bootstrap=num_bootstrap,
            seed=seed,
            command=command_of(context),
        )
    )
    console = Console(stderr=True)
    for table in (_ways_table(result, budget), _orders_table(result)):
        console.print(table)
    say_skipped(result.curve.num_skipped)
    say(result.verdict.text)
    for kind, found in result.thresholds.items():
        say(
            f"threshold {threshold:g} on old/old becomes {found.threshold:.4f} "
            f"[{found.interval[0]:.4f}, {found.interval[1]:.4f}] on {kind}: the same share of "
            f"false accepts, {found.false_accept_rate:.2g}; left alone, {found.kept_rate:.2g}"
        )
    counts = result.counts
    say(
        f"{out / 'plan.csv'}: {counts['left']:,} rows left, {counts['left_in_budget']:,} of them "
        f"in the budget, {counts['done']:,} done"
    )
    say(f"report: {out / 'report.html'}")
    finish(result.to_dict(), gates, _numbers(result, order, budget), json=json)


_METRICS = ("map", "cmc@1")
_SHOWN = (0, 0.05, 0.1, 0.2, 0.5, 1)
_SIDES = ("old/old", "new/old", "new/new")
_GATES = (
    *_METRICS,
    "area_gain",
    "share_of_ideal",
    "gain_share",
    *(f"{side}.{metric}" for side in _SIDES for metric in _METRICS),
)


def _numbers(result: Plan, order: str, budget: float) -> dict[str, float | None]:
    curve, ways = result.curve, result.table.ways
    at = curve.fractions.index(round(budget * curve.num_gallery) / curve.num_gallery)
    found = curve.orders[order]
    return {
        **{metric: found[metric].values[at] for metric in _METRICS},
        "area_gain": found["map"].gain,
        "share_of_ideal": found["map"].share_of_ideal,
        "gain_share": result.verdict.gain_share,
        **{
            f"{side}.{metric}": ways[side].metrics[metric] if side in ways else None
            for side in _SIDES
            for metric in _METRICS
        },
    }


def _ways_table(result: Plan, budget: float) -> Table:
    from rich.table import Table

    from fclearn.evaluation import metric_title

    table = Table(
        title=f"Serving with {100 * budget:g} % embedded anew, metrics in %",
        caption=f"{result.curve.num_queries:,} queries, {result.curve.num_gallery:,} gallery rows; "
        f"95 % intervals of the difference to {result.table.baseline}",
    )
    table.add_column("way", no_wrap=True)
    for metric in _METRICS:
        table.add_column(metric_title(metric), justify="right", no_wrap=True)
    for name, way in result.table.ways.items():
        cells = [
            f"{100 * way.metrics[m]:.1f} [dim]\\[{100 * way.gain_intervals[m][0]:+.1f}, "
            f"{100 * way.gain_intervals[m][1]:+.1f}][/dim]"
            for m in _METRICS
        ]
        table.add_row(name, *cells, style="bold" if name == result.table.best else None)
    return table


def _orders_table(result: Plan) -> Table:
    from rich.table import Table

    curve = result.curve
    calibrated = ", calibrated" if curve.is_calibrated else ""
    table = Table(
        title=f"Orders, mAP in %, {curve.serving}{calibrated}",
        caption=f"random: {curve.num_random} seeds; 95 % intervals of the area's difference to it",
    )
    table.add_column("order", no_wrap=True)
    shares = curve.fractions
    shown = sorted(
        {min(range(len(shares)), key=lambda at: abs(shares[at] - goal)) for goal in _SHOWN}
    )
    for at in shown:
        table.add_column(f"{100 * shares[at]:.3g} %", justify="right", no_wrap=True)
    table.add_column("area", justify="right", no_wrap=True)
    for name, curves in curve.orders.items():
        found = curves["map"]
        low, high = found.gain_interval
        table.add_row(
            name,
            *(f"{100 * found.values[at]:.1f}" for at in shown),
            f"{100 * found.area:.1f} [dim]\\[{100 * low:+.1f}, {100 * high:+.1f}][/dim]",
        )
    return table
