# SPDX-License-Identifier: Apache-2.0
"""Metrics of one query store and one gallery, exact or through an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fclearn.cli.console import say
from fclearn.cli.eval_decisions import decide, names_of, read_junk
from fclearn.cli.eval_rules import Right, Truth, ranking_of
from fclearn.cli.eval_run import ServingIndex
from fclearn.cli.eval_show import Show, say_few, say_one_class, say_skipped, slice_column, worst_of
from fclearn.cli.gates import finish
from fclearn.evaluation import RetrievalResult, evaluate_retrieval, metric_title
from fclearn.features import FeatureStore

if TYPE_CHECKING:
    from fclearn.evaluation.types import RankingOptions


@dataclass(frozen=True)
class Single:
    """What to evaluate.

    Attributes:
        query: Store of the queries.
        gallery: Store of the gallery; None: the query store, each query's own row left out.
        across: Whether the two come from two models.
        index: Of the gallery's rows, to search in place of its features.
        qrels: TREC judgements in place of labels.
        junk: File of rows that are neither right nor wrong.
        verify: Rates of false accepts to verify pairs at.
        identify: Rates of strangers that get a name to identify queries at.
        exclude_self: Leave out the gallery row with the query's id.
        use_groups: Leave out gallery rows of the query's own group.
        metrics: As `evaluate_retrieval`.
    """

    query: Path
    gallery: Path | None
    across: bool
    index: ServingIndex
    qrels: Path | None
    junk: Path | None
    verify: Sequence[float]
    identify: Sequence[float]
    exclude_self: bool
    use_groups: bool
    metrics: Sequence[str]


def run_single(options: Single, show: Show) -> None:
    """Evaluate one query store and print what came out.

    Args:
        options: What to evaluate.
        show: What to print.

    Raises:
        ValueError: Stores, index or judgements that do not agree; as `evaluate_retrieval`.
        typer.Exit: A gate failed.
    """
    gates = show.parse_gates(
        dict.fromkeys([*options.metrics, *names_of(options.verify, options.identify)], "")
    )
    store, rows = _open(options)
    column = slice_column(store, show)
    exclude_self = options.exclude_self or options.gallery is None
    if not exclude_self:
        _say_found_again(store, rows)
    ranking = ranking_of(store, rows, exclude_self=exclude_self, use_groups=options.use_groups)
    right = Truth.of(store, rows, options.qrels).right()
    result = _evaluate(options, store, rows, right, ranking)
    bounds = result.intervals(num_bootstrap=show.num_bootstrap, seed=show.seed)
    for name, value in result.items():
        low, high = bounds[name]
        say(f"{metric_title(name)} {100 * value:.2f}% [{100 * low:.2f}, {100 * high:.2f}]")
    say_skipped(result.num_skipped, result.num_missing)
    say_few(result.num_queries)
    say_one_class(right)
    decisions, rates = decide(
        store,
        rows,
        ranking,
        options.verify,
        options.identify,
        num_bootstrap=show.num_bootstrap,
        seed=show.seed,
    )
    slices = worst_of(store, result.per_query[options.metrics[0]], None, column, show)
    intervals = {name: list(pair) for name, pair in bounds.items()}
    content = {**result.to_dict(), "intervals": intervals, **decisions, **slices}
    finish(content, gates, {**result, **rates}, json=show.json)


def _open(options: Single) -> tuple[FeatureStore, FeatureStore]:
    """Queries and gallery."""
    queries = FeatureStore.open(options.query)
    rows = queries if options.gallery is None else FeatureStore.open(options.gallery)
    if not options.across and rows is not queries:
        queries.fingerprint.check_same(
            rows.fingerprint, "--query and --gallery (of two models? then say --across)"
        )
    return queries, rows


def _say_found_again(queries: FeatureStore, rows: FeatureStore) -> None:
    found = len(set(queries.ids) & set(rows.ids))
    if found:
        say(
            f"{found} of {len(queries)} queries are in the gallery, by their ids, and may find "
            "themselves: --exclude-self leaves that row out"
        )


def _evaluate(
    options: Single,
    queries: FeatureStore,
    rows: FeatureStore,
    right: Right,
    ranking: RankingOptions,
) -> RetrievalResult:
    indexed = options.index.open(rows, across=options.across)
    return evaluate_retrieval(
        queries,
        rows if indexed is None else indexed,
        junk=None if options.junk is None else read_junk(options.junk, queries, rows),
        metrics=options.metrics,
        return_per_query=True,
        **right,
        **ranking,
    )
