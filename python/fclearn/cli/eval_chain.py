# SPDX-License-Identifier: Apache-2.0
"""The T x T matrix of a chain of models, by their stores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from fclearn.cli.console import draw
from fclearn.cli.eval_run import groups_of, labels_of, ordered
from fclearn.cli.eval_show import Show, finish, say_skipped
from fclearn.evaluation import ChainReport, chain_report, metric_title
from fclearn.evaluation.chain import SUMMARIES
from fclearn.features import FeatureStore

_TITLES = {
    "average_compatibility": "AC, share of compatible pairs",
    "average_accuracy": "AM, mean of all entries",
    "backward_compatibility": "BC, newest queries less own",
    "forward_compatibility": "FC, one step behind less own",
}


def evaluate_chain(
    queries: Sequence[Path],
    galleries: Sequence[Path],
    *,
    exclude_self: bool,
    use_groups: bool,
    metric_name: str,
    num_bootstrap: int,
    seed: int,
) -> ChainReport:
    """Compare models by their stores, oldest first; rows of the first decide, others follow by id.

    Args:
        queries: Store of the queries by each model.
        galleries: Store of the gallery by each model; none: the query stores.
        exclude_self: Leave out the gallery row with the query's id.
        use_groups: Leave out gallery rows of the query's own group.
        metric_name: What to measure.
        num_bootstrap: As `chain_report`.
        seed: As there.

    Raises:
        ValueError: Stores that do not agree; as `chain_report`.
    """
    if galleries and len(galleries) != len(queries):
        raise ValueError(
            f"--model-gallery: expected one for each of the {len(queries)} models, got "
            f"{len(galleries)}"
        )
    query_stores = [FeatureStore.open(path) for path in queries]
    gallery_stores = [FeatureStore.open(path) for path in galleries] or query_stores
    for query, gallery in zip(query_stores, gallery_stores, strict=True):
        query.fingerprint.check_same(
            gallery.fingerprint, f"--model {query.path} and --model-gallery {gallery.path}"
        )
    first = query_stores[0], gallery_stores[0]
    labels = labels_of(*first)
    return chain_report(
        [ordered(store, first[0]) for store in query_stores],
        [ordered(store, first[1]) for store in gallery_stores],
        query_labels=labels[0],
        gallery_labels=labels[1],
        metric_name=metric_name,
        exclude_self=exclude_self or not galleries,
        query_ids=first[0].ids,
        gallery_ids=first[1].ids,
        query_groups=groups_of(first[0]) if use_groups else None,
        gallery_groups=groups_of(first[1]) if use_groups else None,
        metric=first[0].fingerprint.metric,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )


def run_chain(
    queries: Sequence[Path],
    galleries: Sequence[Path],
    *,
    exclude_self: bool,
    use_groups: bool,
    metric_name: str,
    show: Show,
) -> None:
    """Compare the models of a chain and print what came out.

    Args:
        queries: As `evaluate_chain`, like all but the last.
        galleries: As there.
        exclude_self: As there.
        use_groups: As there.
        metric_name: As there.
        show: What to print.

    Raises:
        ValueError: As `evaluate_chain`; slices, which a chain has not.
        typer.Exit: A gate failed.
    """
    if show.worst:
        raise ValueError("--worst: expected two stores or one, a chain has many entries")
    if len(queries) < 2:
        raise ValueError(f"--model: expected at least two models, got {len(queries)}")
    entries = [f"{i + 1}/{j + 1}" for i in range(len(queries)) for j in range(i + 1)]
    gates = show.parse_gates(dict.fromkeys([*SUMMARIES, *entries], ""))
    report = evaluate_chain(
        queries,
        galleries,
        exclude_self=exclude_self,
        use_groups=use_groups,
        metric_name=metric_name,
        num_bootstrap=show.num_bootstrap,
        seed=show.seed,
    )
    draw(chain_table(report))
    say_skipped(report.num_skipped)
    finish({**report.to_dict(), "stores": [str(path) for path in queries]}, gates,
           report.numbers(), show)  # fmt: skip


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
