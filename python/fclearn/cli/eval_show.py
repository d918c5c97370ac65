# SPDX-License-Identifier: Apache-2.0
"""What every form of ``fcl eval`` prints at its end: slices, counts, gates, JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fclearn.cli.console import say
from fclearn.cli.eval_rules import Right
from fclearn.cli.gates import Gate
from fclearn.evaluation import Slice, worst_slices
from fclearn.features import FeatureStore

#: Of fewer queries, one more or less moves a mean by several points.
_FEW_QUERIES = 20


@dataclass(frozen=True)
class Show:
    """Options of ``fcl eval`` about what it shows.

    Attributes:
        gates: Conditions, as given.
        worst: How many of the worst slices.
        slice_by: Column of the manifest; None: classes.
        num_bootstrap: Resamples behind the intervals.
        seed: Of the resamples.
        json: Whether to print the result on stdout.
        report: Folder for ``report.html``, if any.
        command: To make all of this again.
    """

    gates: Sequence[str]
    worst: int
    slice_by: str | None
    num_bootstrap: int
    seed: int
    json: bool
    report: Path | None = None
    command: str = ""

    def parse_gates(self, names: Mapping[str, str]) -> list[Gate]:
        """The gates, checked against the names of the numbers to come.

        Raises:
            ValueError: As `Gate.parse`.
        """
        return [Gate.parse(text, names) for text in self.gates]


def slice_column(store: FeatureStore, show: Show) -> str | None:
    """The column whose values are the slices; None: no slices are asked for.

    To be asked before anything is evaluated, as a misspelt name costs the whole evaluation.

    Args:
        store: Of the queries.
        show: Whether there are slices, and by which column.

    Raises:
        ValueError: A store without the column.
    """
    if not show.worst:
        return None
    column = show.slice_by or ("class_name" if "class_name" in store.manifest else "label")
    if column not in store.manifest:
        raise ValueError(
            f"{store.path}: expected a column {column!r} in the manifest, found "
            f"{', '.join(store.manifest)}"
        )
    return column


def worst_of(
    store: FeatureStore,
    values: NDArray[np.float64],
    baseline: NDArray[np.float64] | None,
    column: str | None,
    show: Show,
) -> dict[str, object]:
    """Say where queries fare worst, and return that for JSON; nothing unless asked for.

    Args:
        store: Of the queries.
        values: Metric of each query.
        baseline: Of the same queries before; then it is the loss that counts.
        column: From `slice_column`.
        show: How many.
    """
    if column is None:
        return {}
    found = worst_slices(
        values,
        np.asarray(store.manifest[column]),
        baseline=baseline,
        n=show.worst,
        num_bootstrap=show.num_bootstrap,
        seed=show.seed,
    )
    say(f"worst by {column}, of {'new/old less old/old' if baseline is not None else 'queries'}:")
    for one in found:
        say(f"  {_line(one)}")
    return {"worst": {"column": column, "slices": [one.to_dict() for one in found]}}


def say_skipped(num_skipped: int, num_missing: int = 0) -> None:
    """Say which queries and positives count, and how."""
    if num_skipped:
        say(f"{num_skipped} queries have nothing right in the gallery; they count nowhere")
    if num_missing:
        say(f"{num_missing} relevant rows are not in the gallery; they count as not found")


def say_without_class(count: int, store: FeatureStore) -> None:
    """Say how many rows of a store have no class, so that they take no part."""
    if count:
        say(f"{store.path}: {count} of {len(store)} rows have no class; they are left out")


def say_few(num_queries: int) -> None:
    """Say that few queries decide little, if they are few."""
    if num_queries < _FEW_QUERIES:
        say(
            f"note: {num_queries} {'query decides' if num_queries == 1 else 'queries decide'} "
            f"little: other queries may well say otherwise; ask at least {_FEW_QUERIES}, better "
            "hundreds"
        )


def say_one_class(right: Right) -> None:
    """Say that no answer can be wrong, if all rows of the gallery are of one class.

    Args:
        right: What is right.
    """
    labels = right.get("gallery_labels")
    if labels is None or not len(labels):
        return
    first, names = labels[0], set[object]()
    if isinstance(labels, np.ndarray):  # all of its rows have a class
        names = {labels[0].item()} if bool((labels == first).all()) else names
    elif isinstance(first, set) and all(one == first for one in labels):
        names = first
    if len(names) == 1:
        say(
            f"note: all rows of the gallery are of one class, {next(iter(names))!r}: every answer "
            "is right, whatever the model, so that these numbers say nothing of it"
        )


def _line(one: Slice) -> str:
    value = one.mean if one.change is None else one.change
    bounds = ""
    if one.interval is not None:
        bounds = f" [{100 * one.interval[0]:.1f}, {100 * one.interval[1]:.1f}]"
    return f"{100 * value:6.1f}{bounds}  {one.name} ({one.num_queries} queries)"
