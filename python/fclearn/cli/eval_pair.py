# SPDX-License-Identifier: Apache-2.0
"""Old against new: the 2x2 matrix of stores, printed, reported and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fclearn._launch import own_rank
from fclearn.cli.console import draw, say
from fclearn.cli.eval_examples import examples_of
from fclearn.cli.eval_rules import Truth, ranking_of
from fclearn.cli.eval_run import (
    ServingIndex,
    evaluate_stores,
    numbers_of,
    numbers_to_come,
    open_side,
)
from fclearn.cli.eval_show import Show, say_few, say_one_class, say_skipped, slice_column, worst_of
from fclearn.cli.gates import finish
from fclearn.evaluation import render_table
from fclearn.evaluation.compatibility import report_metrics
from fclearn.evaluation.matrix import CROSS, OLD
from fclearn.report import describe_items, write_report


def run_pair(
    stores: Mapping[str, tuple[Path | None, Path | None]],
    *,
    qrels: Path | None,
    exclude_self: bool,
    use_groups: bool,
    metrics: Sequence[str] | None,
    index: ServingIndex,
    show: Show,
) -> None:
    """Compare two models, and maybe an independent one, and print what came out.

    Args:
        stores: Queries and gallery of ``"old"``, ``"new"`` and ``"independent"``; the queries of
            the first two are there. Without an old gallery, queries are their own galleries.
        qrels: TREC judgements in place of labels.
        exclude_self: Leave out the gallery row with the query's id.
        use_groups: Leave out gallery rows of the query's own group.
        metrics: As `compatibility_report`.
        index: Of the old gallery's rows, to search in place of its features.
        show: What to print.

    Raises:
        ValueError: Stores that do not agree; as `compatibility_report`.
        typer.Exit: A gate failed.
    """
    (old_query, old_gallery), (new_query, new_gallery) = stores["old"], stores["new"]
    independent_query, independent_gallery = stores["independent"]
    if old_gallery is None:
        if new_gallery is not None or independent_gallery is not None:
            raise ValueError("--old-gallery: expected one, as another gallery is given")
        old_gallery, new_gallery, independent_gallery = old_query, new_query, independent_query
    if (independent_query is None) != (independent_gallery is None):
        raise ValueError("--independent-query and --independent-gallery: expected both or neither")
    known = numbers_to_come(
        report_metrics(metrics, has_index=index.path is not None),
        has_new_gallery=new_gallery is not None,
        has_independent=independent_query is not None,
    )
    gates = show.parse_gates(known)
    assert old_query is not None
    assert new_query is not None
    old = open_side("old", old_query, old_gallery)
    new = open_side("new", new_query, new_gallery)
    column = slice_column(old.query, show)
    independent = None
    if independent_query is not None:
        independent = open_side("independent", independent_query, independent_gallery)
    assert old.gallery is not None
    ranking = ranking_of(
        old.query,
        old.gallery,
        exclude_self=exclude_self or old.gallery is old.query,
        use_groups=use_groups,
    )
    truth = Truth.of(old.query, old.gallery, qrels)
    right = truth.right()
    report = evaluate_stores(
        old,
        new,
        independent,
        right=right,
        ranking=ranking,
        metrics=metrics,
        index=index.open(old.gallery, across=False),
        num_bootstrap=show.num_bootstrap,
        seed=show.seed,
    )
    draw(render_table(report))
    say_skipped(report.num_skipped, report.num_missing)
    say(report.verdict.text)
    say_few(report.num_queries)
    say_one_class(right)
    before, after = (report.per_query[entry][report.primary] for entry in (OLD, CROSS))
    slices = worst_of(old.query, after, before, column, show)
    if show.report is not None and own_rank() == 0:
        labels = truth.labels()
        paths = [str(path) for path in (old_query, old_gallery, new_query, new_gallery) if path]
        write_report(
            show.report,
            report=report,
            # An index ranks in its own way, and these are ranked exactly.
            retrieval_examples=()
            if index.path
            else examples_of(report, old, new, labels, ranking),
            facts={"title": "Upgrade report", "command": show.command, "stores": paths,
                   "gates": list(show.gates)},
            items=describe_items(*labels, **ranking),
        )  # fmt: skip
        say(f"report: {show.report / 'report.html'}")
    finish({**report.to_dict(), **slices}, gates, numbers_of(report), json=show.json)
