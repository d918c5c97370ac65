# SPDX-License-Identifier: Apache-2.0
"""Verb ``probe``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fclearn.cli.console import JsonFlag, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from fclearn.features import FeatureStore
    from fclearn.probe import ProbeQueries, ProbeResult


def probe(
    old: Annotated[Path, typer.Option(metavar="STORE", help="Old features of some items.")],
    new: Annotated[Path, typer.Option(metavar="STORE", help="New features of the same items.")],
    old_query: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Real queries by the old model.")
    ] = None,
    new_query: Annotated[
        Path | None, typer.Option(metavar="STORE", help="The same queries by the new model.")
    ] = None,
    use_groups: Annotated[
        bool,
        typer.Option("--use-groups", help="Leave out gallery rows of the query's own group."),
    ] = False,
    fit_share: Annotated[float, typer.Option(help="Share of the classes to fit on.")] = 0.6,
    limit: Annotated[int, typer.Option(help="Most items taken, at random.")] = 50_000,
    query_limit: Annotated[int, typer.Option(help="Most queries measured with.")] = 5_000,
    adapters: Annotated[
        str, typer.Option(help="By commas.")
    ] = "procrustes,ridge,low-rank,mean-shift,mlp,compat-head",
    budget: Annotated[
        float, typer.Option(help="Share embedded anew for rank merge and reranking; 0: neither.")
    ] = 0.2,
    shortlist: Annotated[int, typer.Option(help="Rows that two-stage reranking looks at.")] = 100,
    gate: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Exit with 1 unless it holds; may be given again."),
    ] = None,
    num_bootstrap: Annotated[int, typer.Option(help="Resamples behind the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Go or no-go before anyone trains: what do pairs of old and new features allow?

    Fits every post-hoc map between the two spaces, and a head with the compatibility loss, on some
    of the classes and measures them on the others, new queries against the old gallery and the
    other way round, beside the old model, the new one re-indexed, and the ceiling of the old space.
    Beside them, what a share of the gallery embedded anew (--budget) brings without any map: old
    and new index merged, or the old index reranked. Ends with a recommendation and a verdict:

    map (an adapter will do), train (compatibly), reindex (the old space has no room), or stay.

    Rows are matched by id; the old store's labels count. Without --old-query and --new-query every
    held-out item is a query, itself left out.

    Gates: WAY.METRIC with way old/old, new/new, oracle/old, rank-merge, rank-merge-calibrated,
    two-stage-rerank, or an adapter (new queries on the old gallery), and update_gain, the best
    adapter's share of what re-indexing would bring.

    \b
    Examples:
      fcl probe --old sample/old --new sample/new
      fcl probe --old sample/old --new sample/new --gate "update_gain>=0.2"
    """
    import numpy as np
    from rich.console import Console

    from fclearn.cli.alignment import rows_of_ids
    from fclearn.cli.eval_show import say_skipped
    from fclearn.cli.gates import Gate, finish
    from fclearn.features import FeatureStore
    from fclearn.probe import probe as run

    if limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {limit}")
    if (old_query is None) != (new_query is None):
        raise ValueError("--old-query and --new-query: expected both or neither")
    names = [name.strip() for name in adapters.split(",") if name.strip()]
    known = dict.fromkeys([f"{way}.{m}" for way in (*_WAYS, *names) for m in _METRICS], "")
    known["update_gain"] = ""
    if budget == 0:
        known |= dict.fromkeys((f"{way}.{m}" for way in _HALVES for m in _METRICS), "--budget")
    gates = [Gate.parse(text, known) for text in gate or []]
    old_store, new_store = FeatureStore.open(old), FeatureStore.open(new)
    labels = _labels(old_store)
    rows = np.arange(len(old_store.ids))
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
    ids = [old_store.ids[row] for row in rows]
    queries = None
    if old_query is not None and new_query is not None:
        queries = _queries(old_query, new_query, old_store, new_store, use_groups=use_groups)
    own = _own(old_store, use_groups=use_groups)[rows] if use_groups or queries else None
    result = run(
        old=np.asarray(old_store.features[rows]),
        new=np.asarray(new_store.features[rows_of_ids(new_store, ids, str(old))]),
        labels=labels[rows],
        groups=own,
        queries=queries,
        fit_share=fit_share,
        adapters=names,
        budget=budget,
        shortlist=shortlist,
        metrics=_METRICS,
        query_limit=query_limit,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    Console(stderr=True).print(_table(result))
    say_skipped(result.num_skipped)
    say(result.text)
    finish(result.to_dict(), gates, {**dict.fromkeys(known), **_numbers(result)}, json=json)


_METRICS = ("map", "cmc@1")
_HALVES = ("rank-merge", "rank-merge-calibrated", "two-stage-rerank")
_WAYS = ("old/old", "new/new", "oracle/old", *_HALVES)


def _labels(store: FeatureStore) -> NDArray[np.generic]:
    if store.labels is None:
        raise ValueError(f"{store.path}: expected a column 'label' in the manifest")
    return store.labels


def _own(store: FeatureStore, *, use_groups: bool) -> NDArray[np.generic]:
    """What a query and the gallery rows left out for it share: a group, or an id."""
    import numpy as np

    from fclearn.cli.eval_rules import groups_of

    return groups_of(store) if use_groups else np.asarray(store.ids)


def _queries(
    old: Path, new: Path, old_items: FeatureStore, new_items: FeatureStore, *, use_groups: bool
) -> ProbeQueries:
    import numpy as np

    from fclearn.cli.alignment import rows_of_ids
    from fclearn.features import FeatureStore
    from fclearn.probe import ProbeQueries

    old_store, new_store = FeatureStore.open(old), FeatureStore.open(new)
    old_items.fingerprint.check_same(old_store.fingerprint, "--old and --old-query")
    new_items.fingerprint.check_same(new_store.fingerprint, "--new and --new-query")
    rows = rows_of_ids(new_store, old_store.ids, str(old))
    return ProbeQueries(
        np.asarray(old_store.features),
        np.asarray(new_store.features[rows]),
        _labels(old_store),
        _own(old_store, use_groups=use_groups),
    )


def _numbers(result: ProbeResult) -> dict[str, float | None]:
    from fclearn.probe import OLD_TO_NEW

    ways = {way.name: way for way in result.ways if way.direction != OLD_TO_NEW}
    numbers: dict[str, float | None] = {
        f"{name}.{metric}": value
        for name, way in ways.items()
        for metric, value in way.metrics.items()
    }
    numbers["update_gain"] = ways[result.best].update_gain if result.best else None
    return numbers


def _table(result: ProbeResult) -> Table:
    from rich.table import Table

    from fclearn.evaluation import metric_title
    from fclearn.probe import NEW_TO_OLD

    table = Table(
        title="Metrics in %, classes unseen in fitting",
        caption=f"{result.num_queries:,} queries, {result.num_gallery:,} gallery rows, "
        f"{result.num_fit:,} pairs to fit on, 95 % intervals of the difference to old/old; cost: "
        "share of the gallery embedded anew, models that see a query",
    )
    for column in ("way", "what moves", "cost"):
        table.add_column(column, no_wrap=True)
    for metric in _METRICS:
        table.add_column(metric_title(metric), justify="right", no_wrap=True)
    table.add_column("seconds", justify="right")
    for way in result.ways:
        cells = [
            f"{100 * way.metrics[m]:.1f} [dim]\\[{100 * way.gain_intervals[m][0]:+.1f}, "
            f"{100 * way.gain_intervals[m][1]:+.1f}][/dim]"
            for m in _METRICS
        ]
        cost = f"{100 * way.embedded:.0f} %, {way.queries_by}" if way.queries_by else ""
        style = "bold" if way.name == result.best and way.direction == NEW_TO_OLD else None
        table.add_row(way.name, way.direction, cost, *cells, f"{way.seconds:.1f}", style=style)
    return table
