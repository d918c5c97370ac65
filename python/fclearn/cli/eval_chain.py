# SPDX-License-Identifier: Apache-2.0
"""The T x T matrix of a chain of models, by their stores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from fclearn._launch import own_rank
from fclearn.cli.console import draw, say
from fclearn.cli.eval_rules import Right, Truth, ranking_of
from fclearn.cli.eval_run import ordered
from fclearn.cli.eval_show import Show, say_few, say_one_class, say_skipped
from fclearn.cli.gates import finish
from fclearn.evaluation import ChainReport, chain_report, metric_title
from fclearn.evaluation.chain import SUMMARIES
from fclearn.features import FeatureStore
from fclearn.report import Items, describe_items, write_chain_report

_TITLES = {
    "average_compatibility": "AC, share of compatible pairs",
    "average_accuracy": "AM, mean of all entries",
    "backward_compatibility": "BC, newest queries less own",
    "forward_compatibility": "FC, one step behind less own",
}


@dataclass(frozen=True)
class Chain:
    """Models to compare, oldest first; rows of the first decide, others follow by id.

    Attributes:
        queries: Store of the queries by each model.
        galleries: Store of the gallery by each model; none: the query stores.
        qrels: TREC judgements in place of labels.
        exclude_self: Leave out the gallery row with the query's id.
        use_groups: Leave out gallery rows of the query's own group.
        metric_name: What to measure.
    """

    queries: Sequence[Path]
    galleries: Sequence[Path]
    qrels: Path | None
    exclude_self: bool
    use_groups: bool
    metric_name: str


def run_chain(options: Chain, show: Show) -> None:
    """Compare the models of a chain, print what came out, and maybe write its report.

    Args:
        options: What to compare.
        show: What to print.

    Raises:
        ValueError: Stores that do not agree; slices, which a chain has not; as `chain_report`.
        typer.Exit: A gate failed.
    """
    queries = options.queries
    if show.worst:
        raise ValueError("--worst: expected two stores or one, a chain has many entries")
    if len(queries) < 2:
        raise ValueError(f"--model: expected at least two models, got {len(queries)}")
    entries = [f"{i + 1}/{j + 1}" for i in range(len(queries)) for j in range(i + 1)]
    gates = show.parse_gates(dict.fromkeys([*SUMMARIES, *entries], ""))
    report, right, describe = _evaluate(options, show)
    draw(chain_table(report))
    say_skipped(report.num_skipped, report.num_missing)
    say_few(report.num_queries)
    say_one_class(right)
    stores = [str(path) for path in queries]
    if show.report is not None and own_rank() == 0:
        write_chain_report(
            show.report,
            report=report,
            facts={"title": "Chain of models", "command": show.command, "stores": stores},
            items=describe(),
        )
        say(f"report: {show.report / 'report.html'}")
    finish({**report.to_dict(), "stores": stores}, gates, report.numbers(), json=show.json)


def _evaluate(options: Chain, show: Show) -> tuple[ChainReport, Right, Callable[[], Items]]:
    """The report, what is right, and what describes the items, which takes memory for them."""
    if options.galleries and len(options.galleries) != len(options.queries):
        raise ValueError(
            f"--model-gallery: expected one for each of the {len(options.queries)} models, got "
            f"{len(options.galleries)}"
        )
    queries = [FeatureStore.open(path) for path in options.queries]
    galleries = [FeatureStore.open(path) for path in options.galleries] or queries
    for query, gallery in zip(queries, galleries, strict=True):
        query.fingerprint.check_same(
            gallery.fingerprint, f"--model {query.path} and --model-gallery {gallery.path}"
        )
    first = queries[0], galleries[0]
    truth = Truth.of(*first, options.qrels)
    ranking = ranking_of(
        *first,
        exclude_self=options.exclude_self or not options.galleries,
        use_groups=options.use_groups,
    )
    right = truth.right()
    report = chain_report(
        [ordered(store, first[0]) for store in queries],
        [ordered(store, first[1]) for store in galleries],
        metric_name=options.metric_name,
        num_bootstrap=show.num_bootstrap,
        seed=show.seed,
        **right,
        **ranking,
    )
    return report, right, lambda: describe_items(*truth.labels(), **ranking)


def chain_table(report: ChainReport) -> Table:
    """The matrix and its summaries, for a terminal."""
    table = Table(
        title=f"{metric_title(report.metric_name)} in %, query model by row, gallery by column",
        caption=f"{report.num_queries:,} queries, {report.num_gallery:,} gallery rows",
    )
    table.add_column("")
    for name in report.names:
        table.add_column(name, justify="right")
    for name, row in zip(report.names, report.matrix, strict=True):
        table.add_row(name, *("" if math.isnan(one) else f"{100 * one:.1f}" for one in row))
    table.add_section()
    for name in SUMMARIES:
        low, high = (100 * bound for bound in report.intervals[name])
        text = f"{100 * getattr(report, name):.1f} \\[{low:.1f}, {high:.1f}]"
        table.add_row(_TITLES[name], text.replace("-", "−"))
    return table
