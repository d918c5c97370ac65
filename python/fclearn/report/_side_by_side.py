# SPDX-License-Identifier: Apache-2.0
"""Several runs as sections of one page: upgrades in one table, chains in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fclearn.evaluation import metric_title
from fclearn.report._numbers import Cell, Row, Table, cell, number, row, text_cell
from fclearn.report._run_figures import gains_figure, runs_figure
from fclearn.report._sections import Block, Section, figures, notes, table
from fclearn.report._template import SIGNS, Json
from fclearn.report.chains import SUMMARY_TITLES
from fclearn.report.comparison import Difference, Run, common_metrics

_ENTRIES = ("old/old", "new/old", "new/new", "independent/independent")


def upgrades_section(
    runs: Sequence[Run], differences: Sequence[Difference], without: Sequence[str]
) -> Section:
    """Several upgrades side by side, as a section of a page.

    Args:
        runs: Two or more.
        differences: From `paired_differences`, like the last.
        without: As there.
    """
    metrics = common_metrics([run.data["matrix"]["old/old"] for run in runs])
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
