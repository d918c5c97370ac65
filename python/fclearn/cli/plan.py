# SPDX-License-Identifier: Apache-2.0
"""Verb ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fclearn.cli.console import JsonFlag, command_of, draw, say
from fclearn.cli.gates import GATE_HELP
from fclearn.cli.options import read_names
from fclearn.cli.targets import ReplaceFlag, check_plan_target

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
        typer.Option(
            metavar="CSV",
            help="Columns id, label (empty, or a number below 0: none); else the old store's "
            "classes.",
        ),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(help="For orders: this many clusters of old features in place of labels."),
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
    qrels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TREC judgements of these queries, in place of labels."),
    ] = None,
    exclude_self: Annotated[
        bool,
        typer.Option(
            "--exclude-self", help="With --qrels: leave out gallery rows with the query's id."
        ),
    ] = False,
    use_groups: Annotated[
        bool,
        typer.Option("--use-groups", help="Leave out gallery rows of the query's own group."),
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="In use on old/old cosines; where does it move to?")
    ] = None,
    shortlist: Annotated[int, typer.Option(help="Rows that two-stage reranking looks at.")] = 100,
    gallery_limit: Annotated[
        int, typer.Option(help="Most gallery rows measured on; judged ones come first.")
    ] = 20_000,
    query_limit: Annotated[int, typer.Option(help="Most queries measured with.")] = 2_000,
    num_random: Annotated[int, typer.Option(help="Random orders beside it.")] = 5,
    gate: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help=GATE_HELP),
    ] = None,
    num_bootstrap: Annotated[int, typer.Option(help="Resamples behind the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    replace: ReplaceFlag = False,
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

    What is right is said by labels, or by --qrels, lines "query-id 0 item-id grade" of the real
    queries: then only the orders uncertainty, margin and class-mean need labels, or --clusters.

    Writes plan.csv (ids, the most urgent first), curve.json, curve.png, report.html, and the
    calibrations of scores. With --done the plan resumes: the same ranks, without those rows. A plan
    that is there is replaced with --replace alone.

    Gates: map and cmc@1 (of the curve, at the budget), area_gain (over random order, of map),
    share_of_ideal, gain_share, and old/old, new/old, new/new followed by .map or .cmc@1; with
    --qrels also ndcg@10, of their grades.

    \b
    Examples:
      fcl plan --old-features g/old --new-features g/new --order uncertainty --out plan
      fcl plan --old-features g/old --new-features sample/new --order traffic --traffic hits \\
        --budget 0.05 --done done.txt --out plan --replace --gate "area_gain>0"
      fcl plan --old-features docs/old --new-features docs/new --old-query q/old \\
        --new-query q/new --qrels judgements.txt --clusters 300 --order uncertainty --out plan
    """
    from fclearn.cli.eval_show import say_skipped
    from fclearn.cli.gates import Gate, finish
    from fclearn.cli.plan_inputs import PlanOptions
    from fclearn.cli.plan_run import make_plan
    from fclearn.cli.plan_show import gate_names, numbers_of, tables

    known = gate_names(has_grades=qrels is not None)
    gates = [Gate.parse(text, known) for text in gate or []]
    options = PlanOptions(
        old=old_features,
        new=new_features,
        out=out,
        order=order,
        compare=read_names(compare),
        budget=budget,
        labels=labels,
        clusters=clusters,
        done=done,
        traffic=traffic,
        forward_map=forward_map,
        old_query=old_query,
        new_query=new_query,
        qrels=qrels,
        exclude_self=exclude_self,
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
    options.check()
    check_plan_target(out, replace=replace)
    result = make_plan(options)
    for table in tables(result, budget):
        draw(table)
    say_skipped(result.curve.num_skipped)
    if result.num_missing:
        say(
            f"{result.num_missing:,} relevant rows are not among the rows measured on; they count "
            "nowhere"
        )
    say(result.verdict.text)
    for kind, found in result.thresholds.items():
        low, high = found.interval or (found.new.threshold, found.new.threshold)
        say(
            f"threshold {threshold:g} on old/old becomes {found.new.threshold:.4f} "
            f"[{low:.4f}, {high:.4f}] on {kind}: the same share of false accepts, "
            f"{found.old.false_rate:.2g}; left alone, {found.kept.false_rate:.2g}"
        )
    counts = result.counts
    say(
        f"{out / 'plan.csv'}: {counts['left']:,} rows left, {counts['left_in_budget']:,} of them "
        f"in the budget, {counts['done']:,} done"
    )
    say(f"report: {out / 'report.html'}")
    numbers = {**dict.fromkeys(known), **numbers_of(result, order, budget)}
    finish(result.to_dict(), gates, numbers, json=json)
