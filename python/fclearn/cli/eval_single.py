# SPDX-License-Identifier: Apache-2.0
"""Metrics of one query store and one gallery, exact or through an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fclearn.cli.console import say
from fclearn.cli.eval_run import groups_of, labels_of, open_index
from fclearn.cli.eval_show import Show, finish, say_skipped, worst_of
from fclearn.evaluation import RetrievalResult, evaluate_retrieval, metric_title
from fclearn.features import FeatureStore


def evaluate_single(
    query: Path,
    gallery: Path | None,
    *,
    across: bool,
    index: Path | None,
    parameters: Sequence[str],
    qrels: Path | None,
    exclude_self: bool,
    use_groups: bool,
    metrics: Sequence[str],
) -> tuple[RetrievalResult, FeatureStore]:
    """Evaluate stores; the query store comes back with the result.

    Args:
        query: Store of the queries.
        gallery: Store of the gallery; None: the query store, each query's own row left out.
        across: Whether the two come from two models.
        index: A faiss index of the gallery's rows, to search in place of its features.
        parameters: Of the index, ``NAME=VALUE``.
        qrels: TREC judgements in place of labels.
        exclude_self: Leave out the gallery row with the query's id.
        use_groups: Leave out gallery rows of the query's own group.
        metrics: As `evaluate_retrieval`.

    Raises:
        ValueError: Stores, index or judgements that do not agree; as `evaluate_retrieval`.
    """
    queries = FeatureStore.open(query)
    rows = queries if gallery is None else FeatureStore.open(gallery)
    if not across and rows is not queries:
        queries.fingerprint.check_same(
            rows.fingerprint, "--query and --gallery (of two models? then say --across)"
        )
    indexed = open_index(index, parameters, rows)
    labels = (None, None) if qrels is not None else labels_of(queries, rows)
    result = evaluate_retrieval(
        queries,
        rows if indexed is None else indexed,
        query_labels=labels[0],
        gallery_labels=labels[1],
        qrels=qrels,
        exclude_self=exclude_self or gallery is None,
        query_ids=queries.ids,
        gallery_ids=rows.ids,
        query_groups=groups_of(queries) if use_groups else None,
        gallery_groups=groups_of(rows) if use_groups else None,
        metrics=metrics,
        metric=rows.fingerprint.metric,
        return_per_query=True,
    )
    return result, queries


def run_single(
    query: Path,
    gallery: Path | None,
    *,
    across: bool,
    index: Path | None,
    parameters: Sequence[str],
    qrels: Path | None,
    exclude_self: bool,
    use_groups: bool,
    metrics: Sequence[str],
    show: Show,
) -> None:
    """Evaluate one query store and print what came out.

    Args:
        query: As `evaluate_single`, like all but the last.
        gallery: As there.
        across: As there.
        index: As there.
        parameters: As there.
        qrels: As there.
        exclude_self: As there.
        use_groups: As there.
        metrics: As there.
        show: What to print.

    Raises:
        ValueError: As `evaluate_single`.
        typer.Exit: A gate failed.
    """
    gates = show.parse_gates(dict.fromkeys(metrics, ""))
    result, store = evaluate_single(
        query,
        gallery,
        across=across,
        index=index,
        parameters=parameters,
        qrels=qrels,
        exclude_self=exclude_self,
        use_groups=use_groups,
        metrics=metrics,
    )
    bounds = result.intervals(num_bootstrap=show.num_bootstrap, seed=show.seed)
    for name, value in result.items():
        low, high = bounds[name]
        say(f"{metric_title(name)} {100 * value:.2f}% [{100 * low:.2f}, {100 * high:.2f}]")
    say_skipped(result.num_skipped, result.num_missing)
    slices = worst_of(store, result.per_query[metrics[0]], None, show)
    intervals = {name: list(pair) for name, pair in bounds.items()}
    finish({**result.to_dict(), "intervals": intervals, **slices}, gates, dict(result), show)
