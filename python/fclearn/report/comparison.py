# SPDX-License-Identifier: Apache-2.0
"""Several reports side by side: only such as measured the same queries and gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fclearn.evaluation import PairedTest, metric_title, paired_test
from fclearn.report._figures import gains_figure, runs_figure
from fclearn.report._numbers import Cell, Row, Table, cell, number, row, text_cell
from fclearn.report._sections import SIGNS, Block, Section, figures, notes, table
from fclearn.report._template import Json
from fclearn.report.chains import SUMMARY_TITLES
from fclearn.report.items import PerQuery, read_per_query

_ENTRIES = ("old/old", "new/old", "new/new", "independent/independent")
_PAIRED = ("new/old", "new/new")


@dataclass(frozen=True)
class Run:
    """A folder with the numbers of a report.

    Attributes:
        name: What to call it.
        folder: Where it is.
        kind: ``"upgrade"``, ``"chain"`` or ``"plan"``.
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
                for metric in _common([values[entry], first[1][entry]]):
                    test = paired_test(first[1][entry][metric], values[entry][metric][order])
                    found.append(Difference(run.name, baseline, entry, metric, test))
    return found, without


def upgrades_section(
    runs: Sequence[Run], differences: Sequence[Difference], without: Sequence[str]
) -> Section:
    """Several upgrades side by side, as a section of a page.

    Args:
        runs: Two or more.
        differences: From `paired_differences`, like the last.
        without: As there.
    """
    metrics = _common([run.data["matrix"]["old/old"] for run in runs])
    if not metrics:
        raise ValueError("expected runs with a metric in common, found none")
    names, primary = [run.name for run in runs], metrics[0]
    first = runs[0].data
    title = metric_title(primary)
    blocks: list[Block] = [
        table(
            Table(
                label="Verdicts",
                caption=f"The same {first['num_queries']:,} queries and {first['num_gallery']:,} "
                "gallery rows in every run.",
                columns=["run", "verdict"],
                bodies=[[row(run.name, [_verdict(run)]) for run in runs]],
            )
        ),
        figures(
            [
                (
                    runs_figure(names, _by_entry(runs, primary), title),
                    f"Dot plot of {title} with intervals, one line per run. All values are in the "
                    "table below.",
                )
            ]
        ),
        *(table(_matrix(runs, metric)) for metric in metrics),
    ]
    gains = [_number(run.data, "update_gains", "update_gain", primary) for run in runs]
    if any(gains):
        alt = ", ".join(
            f"{name} {number(found[0]) + '%' if found else 'undefined'}"
            for name, found in zip(names, gains, strict=True)
        )
        blocks.append(figures([(gains_figure(names, gains), f"Bars of update gain: {alt}.")]))
    for entry in dict.fromkeys(one.entry for one in differences):
        of_entry = [one for one in differences if one.entry == entry]
        blocks.append(table(_differences_table(of_entry, entry, len(differences))))
    lines = [
        "Intervals of one run are bootstrap intervals over its queries. Two runs differ where the "
        "interval of their paired difference leaves out zero; intervals of single runs that "
        "overlap say nothing about it."
    ]
    if without:
        lines.append(
            f"Without values per query, and so without paired differences: {', '.join(without)}."
        )
    if len({f"{run.data['matrix']['old/old'][primary]:.9f}" for run in runs}) > 1:
        lines.append("The runs differ in old/old: their old models or old features are not alike.")
    blocks.append(notes(lines))
    return {"title": "Upgrades side by side", "blocks": blocks}


def chains_section(runs: Sequence[Run]) -> Section:
    """The summaries of several chains, as a section of a page.

    Args:
        runs: Two or more.
    """
    metrics = {run.data["metric"] for run in runs}
    if len(metrics) > 1:
        raise ValueError(f"expected chains of one metric, got {', '.join(sorted(metrics))}")
    shorts = [short for short, _ in SUMMARY_TITLES.values()]
    rows = [
        row(
            run.name,
            [
                cell(run.data[name], run.data["intervals"][name], sign=short in {"BC", "FC"})
                for name, (short, _) in SUMMARY_TITLES.items()
            ],
            f"{len(run.data['models'])} models",
        )
        for run in runs
    ]
    first = runs[0].data
    caption = (
        f"{metric_title(metrics.pop())} in percent and points with intervals, the same "
        f"{first['num_queries']:,} queries and {first['num_gallery']:,} gallery rows. "
        + "; ".join(f"{short}: {meaning}" for short, meaning in SUMMARY_TITLES.values())
        + "."
    )
    content = Table(label="Chains", caption=caption, columns=["run", *shorts], bodies=[rows])
    return {"title": "Chains side by side", "blocks": [table(content)]}


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


def _common(tables: Sequence[Mapping[str, object]]) -> list[str]:
    return [name for name in tables[0] if all(name in one for one in tables)]


def _verdict(run: Run) -> Cell:
    verdict = run.data["verdict"]
    return text_cell(f"{SIGNS[verdict['status']]} {verdict['headline']}", "words")


def _number(
    data: Mapping[str, Json], values: str, key: str, metric: str
) -> tuple[float, list[float] | None] | None:
    value = data[values].get(metric)
    return None if value is None else (value, data["intervals"].get(key, {}).get(metric))


def _by_entry(
    runs: Sequence[Run], metric: str
) -> dict[str, list[tuple[float, Sequence[float] | None] | None]]:
    def of(run: Run, entry: str) -> tuple[float, Sequence[float] | None] | None:
        matrix = run.data["matrix"]
        if entry not in matrix:
            return None
        return matrix[entry][metric], run.data["intervals"][entry][metric]

    return {entry: [of(run, entry) for run in runs] for entry in _ENTRIES}


def _matrix(runs: Sequence[Run], metric: str) -> Table:
    entries = _by_entry(runs, metric)
    shown = [entry for entry, column in entries.items() if any(column)]
    rows: list[Row] = []
    for at, run in enumerate(runs):
        cells = [_optional(entries[entry][at]) for entry in shown]
        change = "new/old - old/old"
        gain = run.data["differences"][change][metric], run.data["intervals"][change][metric]
        cells.append(cell(*gain, sign=True))
        cells.append(_optional(_number(run.data, "update_gains", "update_gain", metric)))
        tax = _number(run.data, "self_test_taxes", "self_test_tax", metric)
        cells.append(_optional(tax, sign=True))
        rows.append(row(run.name, cells))
    shorter = {"independent/independent": "indep./indep."}
    return Table(
        label=f"{metric_title(metric)} by run",
        caption=f"{metric_title(metric)} in percent, differences in points, with intervals.",
        columns=[
            "run",
            *(shorter.get(entry, entry) for entry in shown),
            "new/old − old/old",
            "update gain",
            "self-test tax",
        ],
        bodies=[rows],
    )


def _optional(found: tuple[float, Sequence[float] | None] | None, *, sign: bool = False) -> Cell:
    return cell(None) if found is None else cell(*found, sign=sign)


def _differences_table(differences: Sequence[Difference], entry: str, count: int) -> Table:
    tests = {(one.run, one.metric): one.test for one in differences}
    metrics = list(dict.fromkeys(one.metric for one in differences))
    rows = []
    for run in dict.fromkeys(one.run for one in differences):
        cells = []
        for test in (tests.get((run, metric)) for metric in metrics):
            if test is None:
                cells += [cell(None), text_cell("")]
                continue
            low, high = test.interval
            mark = "good" if low > 0 else "bad" if high < 0 else ""
            cells.append(cell(test.difference, test.interval, sign=True, mark=mark))
            cells.append(text_cell(f"{test.p_value:.2g}"))
        rows.append(row(run, cells))
    titles = [metric_title(metric) for metric in metrics]
    return Table(
        label=f"Paired differences of {entry}",
        caption=f"{entry} of each run less that of {differences[0].baseline}, query by query: "
        "points with 95% intervals, and the p-value of a paired randomisation test (one of "
        f"{count} on this page: as many chances to be wrong).",
        columns=["run", *(text for title in titles for text in (title, "p"))],
        bodies=[rows],
    )
