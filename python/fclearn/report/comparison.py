# SPDX-License-Identifier: Apache-2.0
"""Which runs may stand side by side, and how far apart they are, query by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fclearn.evaluation import PairedTest, paired_test
from fclearn.report._template import Json
from fclearn.report.items import PerQuery, read_per_query

_PAIRED = ("new/old", "new/new")


@dataclass(frozen=True)
class Run:
    """A folder with the numbers of a report.

    Attributes:
        name: What to call it.
        folder: Where it is.
        kind: ``"upgrade"``, ``"chain"``, ``"probe"`` or ``"plan"``.
        data: Its numbers.
    """

    name: str
    folder: Path
    kind: str
    data: Mapping[str, Json]


@dataclass(frozen=True)
class Difference:
    """One run less another, on the same queries.

    Attributes:
        run: Name of the run.
        baseline: Name of the run it is compared with.
        entry: Of the matrix.
        metric: What was measured.
        test: Difference, interval and p-value.
    """

    run: str
    baseline: str
    entry: str
    metric: str
    test: PairedTest


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs whose numbers are not of the same queries and gallery.

    Args:
        runs: Of one kind, upgrades or chains.

    Raises:
        ValueError: The folder that does not say what it measured, or the two that differ, and in
            what.
    """
    first = runs[0]
    for run in runs:
        if not isinstance(run.data.get("items"), Mapping):
            raise ValueError(
                f"{run.folder}: report.json does not say which queries and gallery it measured, so "
                "it cannot stand beside others; write it again, by fcl eval --report or fcl demo"
            )
        different = _differences(first.data, run.data)
        if different:
            raise ValueError(
                f"{first.folder} and {run.folder}: expected the same queries and gallery, but they "
                f"differ in {', '.join(different)}"
            )


def paired_differences(runs: Sequence[Run]) -> tuple[list[Difference], list[str]]:
    """Every run less the first, query by query.

    Args:
        runs: Upgrades that `check_comparable` has let pass.

    Returns:
        The differences, and the names of runs without values per query.

    Raises:
        ValueError: A damaged file of values, or values of other queries than the report's.
    """
    stored: dict[str, tuple[list[str], PerQuery]] = {}
    without = []
    for run in runs:
        values_of = read_per_query(run.folder)
        if values_of is None:
            without.append(run.name)
        else:
            stored[run.name] = values_of
    found: list[Difference] = []
    if runs[0].name not in stored:
        return found, without
    baseline, first = runs[0].name, stored[runs[0].name]
    for run in runs[1:]:
        if run.name not in stored:
            continue
        ids, values = stored[run.name]
        row_of = {name: at for at, name in enumerate(ids)}
        if len(ids) != len(first[0]) or any(name not in row_of for name in first[0]):
            raise ValueError(f"{run.folder}: per_query.npz is not of the queries of report.json")
        order = [row_of[name] for name in first[0]]
        for entry in _PAIRED:
            if entry in values and entry in first[1]:
                for metric in common_metrics([values[entry], first[1][entry]]):
                    test = paired_test(first[1][entry][metric], values[entry][metric][order])
                    found.append(Difference(run.name, baseline, entry, metric, test))
    return found, without


def common_metrics(tables: Sequence[Mapping[str, object]]) -> list[str]:
    """Metrics that all tables have, in the order of the first."""
    return [name for name in tables[0] if all(name in one for one in tables)]


def _differences(one: Mapping[str, Json], other: Mapping[str, Json]) -> list[str]:
    mine, theirs = one["items"], other["items"]
    parts = []
    for key, count, what in (
        ("queries", "num_queries", "queries"),
        ("gallery", "num_gallery", "gallery rows"),
    ):
        if mine[key] != theirs[key]:
            counts = (
                f"{one[count]:,} and {other[count]:,}"
                if one[count] != other[count]
                else f"{one[count]:,} each, other ids, labels or groups"
            )
            parts.append(f"{what} ({counts})")
    left, right = mine["protocol"], theirs["protocol"]
    parts += [
        f"{key} ({left.get(key)} and {right.get(key)})"
        for key in sorted({*left, *right})
        if left.get(key) != right.get(key)
    ]
    return parts
