# SPDX-License-Identifier: Apache-2.0
"""Verb ``eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fclearn.cli.console import JsonFlag, emit, say

_Store = Annotated[Path, typer.Option(metavar="STORE", help="Old features of the queries.")]
_MaybeStore = Annotated[Path | None, typer.Option(metavar="STORE")]


def evaluate(
    old_query: _Store,
    new_query: Annotated[Path, typer.Option(metavar="STORE", help="New ones of the same images.")],
    old_gallery: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Old features of the gallery.")
    ] = None,
    new_gallery: _MaybeStore = None,
    independent_query: Annotated[
        Path | None,
        typer.Option(metavar="STORE", help="Of the new model trained without compatibility."),
    ] = None,
    independent_gallery: _MaybeStore = None,
    exclude_self: Annotated[
        bool, typer.Option("--exclude-self", help="Leave out gallery rows with the query's id.")
    ] = False,
    use_groups: Annotated[
        bool,
        typer.Option("--use-groups", help="Leave out gallery rows of the query's own group."),
    ] = False,
    gate: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Exit with 1 unless it holds; may be given again."),
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="Of map, map@K, cmc@K, recall@K and others, by commas.")
    ] = "map,cmc@1,cmc@5",
    num_bootstrap: Annotated[int, typer.Option(help="Resamples behind the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    report_folder: Annotated[
        Path | None,
        typer.Option("--report", metavar="FOLDER", help="Write report.html and report.json here."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Compare an old and a new model on feature stores: is the upgrade compatible?

    Prints the metrics of old and new queries on the old and the new gallery, with intervals, the
    update gain (the share of what re-indexing would bring that arrives without it; needs the
    independent model), and a verdict. Rows of the other stores are matched to the old ones by id.

    Without --old-gallery every query store is its own gallery, each query's own row left out.

    Gates: update_gain, self_test_tax, negative_flip_rate, or ENTRY.METRIC, compared with a number
    or with each other.

    \b
    Examples:
      fcl eval --old-query runs/old-test --new-query runs/new-test
      fcl eval --old-query q/old --old-gallery g/old --new-query q/new \\
        --gate "new/old.map>old/old.map" --gate "negative_flip_rate<=0.05"
    """
    from rich.console import Console

    from fclearn.cli.eval_run import evaluate_stores, numbers_of, numbers_to_come, open_side
    from fclearn.cli.gates import Gate
    from fclearn.evaluation import render_table

    if old_gallery is None:
        if new_gallery is not None or independent_gallery is not None:
            raise ValueError("--old-gallery: expected one, as another gallery is given")
        old_gallery, new_gallery, independent_gallery = old_query, new_query, independent_query
    if (independent_query is None) != (independent_gallery is None):
        raise ValueError("--independent-query and --independent-gallery: expected both or neither")
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    known = numbers_to_come(
        ["map", "cmc@1", *names],
        has_new_gallery=new_gallery is not None,
        has_independent=independent_query is not None,
    )
    gates = [Gate.parse(text, known) for text in gate or []]
    old = open_side("old", old_query, old_gallery)
    new = open_side("new", new_query, new_gallery)
    independent = None
    if independent_query is not None:
        independent = open_side("independent", independent_query, independent_gallery)
    report = evaluate_stores(
        old,
        new,
        independent,
        exclude_self=exclude_self or old.gallery is old.query,
        use_groups=use_groups,
        metrics=names,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    Console(stderr=True).print(render_table(report))
    say(report.verdict.text)
    if report_folder is not None:
        from fclearn.report import write_report

        stores = [str(path) for path in (old_query, old_gallery, new_query, new_gallery) if path]
        facts = {"title": "Upgrade report", "stores": stores, "gates": gate or []}
        write_report(report_folder, report=report, facts=facts)
        say(f"report: {report_folder / 'report.html'}")
    numbers = numbers_of(report)
    outcomes = []
    for item in gates:
        passed = item.passes(numbers)
        outcomes.append({"gate": item.text, "value": numbers[item.left], "passed": passed})
        word = "passed" if passed else "FAILED"
        say(f"gate {word}: {item.text} ({item.left} is {_text(numbers[item.left])})")
    passed = all(outcome["passed"] for outcome in outcomes)
    if json:
        emit({**report.to_dict(), "gates": outcomes, "passed": passed})
    if not passed:
        raise typer.Exit(1)


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
