# SPDX-License-Identifier: Apache-2.0
"""Verb ``probe``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fclearn.cli.console import JsonFlag, say

if TYPE_CHECKING:
    from rich.table import Table

    from fclearn.probe import ProbeResult


def probe(
    old: Annotated[Path, typer.Option(metavar="STORE", help="Old features of some items.")],
    new: Annotated[Path, typer.Option(metavar="STORE", help="New features of the same items.")],
    use_groups: Annotated[
        bool,
        typer.Option("--use-groups", help="Leave out gallery rows of the query's own group."),
    ] = False,
    fit_share: Annotated[float, typer.Option(help="Share of the classes to fit on.")] = 0.6,
    limit: Annotated[int, typer.Option(help="Most items taken, at random.")] = 50_000,
    adapters: Annotated[
        str, typer.Option(help="By commas.")
    ] = "procrustes,ridge,low-rank,mean-shift,mlp,compat-head",
    gate: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Exit with 1 unless it holds; may be given again."),
    ] = None,
    num_bootstrap: Annotated[int, typer.Option(help="Resamples behind the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Go or no-go before anyone trains: what do pairs of old and new features allow?

    Fits every post-hoc map between the two spaces on some of the classes and measures it on the
    others, new queries against the old gallery and the other way round, beside the old model, the
    new one re-indexed, and the ceiling of the old space. Ends with a recommendation.

    Rows are matched by id; the old store's labels count.

    Gates: WAY.METRIC with way old/old, new/new, oracle/old or an adapter (new queries on the old
    gallery), and update_gain, the best adapter's share of what re-indexing would bring.

    \b
    Examples:
      fcl probe --old sample/old --new sample/new
      fcl probe --old sample/old --new sample/new --gate "update_gain>=0.2"
    """
    import numpy as np
    from rich.console import Console

    from fclearn.cli.alignment import rows_of_ids
    from fclearn.cli.gates import Gate, finish
    from fclearn.features import FeatureStore
    from fclearn.probe import probe as run

    if limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {limit}")
    names = [name.strip() for name in adapters.split(",") if name.strip()]
    known = dict.fromkeys(
        [f"{way}.{m}" for way in ("old/old", "new/new", "oracle/old", *names) for m in _METRICS]
        + ["update_gain"],
        "",
    )
    gates = [Gate.parse(text, known) for text in gate or []]
    old_store, new_store = FeatureStore.open(old), FeatureStore.open(new)
    if old_store.labels is None:
        raise ValueError(f"{old}: expected a column 'label' in the manifest")
    if use_groups and old_store.groups is None:
        raise ValueError(f"{old}: --use-groups needs a column 'group' in the manifest")
    rows = np.arange(len(old_store.ids))
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
    ids = [old_store.ids[row] for row in rows]
    result = run(
        old=np.asarray(old_store.features[rows]),
        new=np.asarray(new_store.features[rows_of_ids(new_store, ids, str(old))]),
        labels=old_store.labels[rows],
        groups=old_store.groups[rows] if use_groups and old_store.groups is not None else None,
        fit_share=fit_share,
        adapters=names,
        metrics=_METRICS,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    Console(stderr=True).print(_table(result))
    say(result.text)
    finish(result.to_dict(), gates, {**dict.fromkeys(known), **_numbers(result)}, json=json)


_METRICS = ("map", "cmc@1")


def _numbers(result: ProbeResult) -> dict[str, float | None]:
    from fclearn.probe import NEW_TO_OLD

    ways = {way.name: way for way in result.ways if way.direction in ("", NEW_TO_OLD)}
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

    table = Table(
        title="Metrics in %, classes unseen in fitting",
        caption=f"{result.num_queries:,} queries, {result.num_fit:,} pairs to fit on, 95 % "
        "intervals of the difference to old/old",
    )
    for column in ("way", "what moves"):
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
        style = "bold" if way.name == result.best and way.direction.startswith("new") else None
        table.add_row(way.name, way.direction, *cells, f"{way.seconds:.1f}", style=style)
    return table
