# SPDX-License-Identifier: Apache-2.0
"""The report of a chain of models: who finds what in whose gallery."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fclearn.evaluation import ChainReport, metric_title
from fclearn.report._files import damage_said, dump, with_facts, write_files
from fclearn.report._numbers import Row, Table, bounds, cell, number, row, text_cell
from fclearn.report._run_figures import chain_figure
from fclearn.report._sections import Block, Section, figures, notes, render_sections, table, verdict
from fclearn.report._template import Json
from fclearn.report.items import Items, replace_per_query

CHAIN = "chain"
#: The summaries of a chain, in words.
SUMMARY_TITLES = {
    "average_compatibility": ("AC", "share of pairs in which the newer model brings a gain"),
    "average_accuracy": ("AM", "mean of all entries"),
    "backward_compatibility": ("BC", "newest queries less each older model at home"),
    "forward_compatibility": ("FC", "queries one step ahead of the gallery less their own"),
}
_HIDDEN = frozenset(
    {
        "models", "metric", "matrix", *SUMMARY_TITLES, "intervals", "gain_intervals",
        "num_queries", "num_skipped", "num_missing", "num_gallery", "confidence", "stores",
    }
)  # fmt: skip


def write_chain_report(
    output_dir: str | os.PathLike[str],
    *,
    report: ChainReport,
    facts: Mapping[str, object] | None = None,
    items: Items | None = None,
) -> dict[str, object]:
    """Write ``report.html`` (one file that needs nothing else) and ``report.json`` of a chain.

    Args:
        output_dir: Folder; made if needed. Files of an earlier report are replaced.
        report: The numbers.
        facts: As in `write_report`.
        items: As there.

    Returns:
        The content of ``report.json``.

    Raises:
        OSError: The folder cannot be written.
        ValueError: As `write_report`.
        TypeError: A fact that JSON cannot hold.

    Example:
        >>> import numpy as np
        >>> from fclearn.evaluation import chain_report
        >>> models = [np.random.default_rng(i).standard_normal((30, 8)) for i in range(3)]
        >>> labels = np.arange(30) % 3
        >>> chain = chain_report(models, models, query_labels=labels, gallery_labels=labels,
        ...                      exclude_self=True, num_bootstrap=10)
        >>> write_chain_report("runs/chain", report=chain)["models"]
        ['1', '2', '3']
    """
    numbers = {"kind": CHAIN, **report.to_dict()}
    if items is not None:
        numbers["items"] = items.to_dict()
    data = with_facts(numbers, facts)
    folder = Path(output_dir)
    values = {entry: {report.metric_name: column} for entry, column in report.per_query.items()}
    replace_per_query(folder, items, values)
    _write(folder, data)
    return data


def rebuild_chain(folder: Path, data: Mapping[str, Json]) -> None:
    """Write the page again from the content of ``report.json``.

    Raises:
        ValueError: Not that of a chain.
    """
    with damage_said(f"{folder}: report.json is not that of a chain"):
        _write(folder, data)


def chain_section(data: Mapping[str, Json], title: str) -> Section:
    """What a chain's report says, as a section of a page.

    Args:
        data: Content of ``report.json``.
        title: Its heading.
    """
    models, matrix, intervals = data["models"], data["matrix"], data["intervals"]
    stores = data.get("stores", [""] * len(models))
    metric = metric_title(data["metric"])
    caption = (
        f"{metric} in percent with {100 * data['confidence']:.0f}% intervals over "
        f"{data['num_queries']:,} queries ({data['num_gallery']:,} gallery rows). Older queries "
        "never meet a newer gallery."
    )
    columns = ["queries of", *(f"gallery of {name}" for name in models)]
    entries = [
        row(
            newer,
            [
                cell(matrix[i][j], intervals[f"{newer}/{older}"]) if j <= i else text_cell("")
                for j, older in enumerate(models)
            ],
            str(stores[i]),
        )
        for i, newer in enumerate(models)
    ]
    return {
        "title": title,
        "blocks": [
            _verdict(data),
            table(Table(label="Chain", caption=caption, columns=columns, bodies=[entries])),
            figures(
                [(chain_figure(models, matrix, intervals, metric), _alt(models, matrix, metric))],
                "One line per gallery, from its own model at the left. A line that falls is a "
                "newer model that finds less in that gallery than its own model did.",
            ),
            table(
                Table(
                    label="Gains",
                    caption=f"What newer queries bring to an older gallery, points of {metric}; "
                    "intervals are paired over queries.",
                    columns=columns[:-1],
                    bodies=[_gains(data)],
                )
            ),
            table(
                Table(
                    label="Summaries",
                    caption="Summaries of the chain, in percent and points.",
                    columns=["summary", "value"],
                    bodies=[summary_rows(data)],
                )
            ),
            notes(
                [
                    "AC counts a pair as compatible only where the newer queries beat the older "
                    "model on its own gallery: a tie is no gain.",
                    "Intervals are percentile bootstrap intervals over the queries. They do not "
                    "cover other training seeds, classes or data.",
                ]
            ),
        ],
    }


def summary_rows(data: Mapping[str, Json]) -> list[Row]:
    """AC, AM, BC and FC of a chain."""
    return [
        row(
            short,
            [cell(data[name], data["intervals"][name], sign=short in {"BC", "FC"})],
            meaning,
        )
        for name, (short, meaning) in SUMMARY_TITLES.items()
    ]


def _write(folder: Path, data: Mapping[str, Json]) -> None:
    page = render_sections(
        [chain_section(data, "Which query meets which gallery")],
        data,
        kind="chain report",
        hidden=_HIDDEN,
        numbers_file="report.json",
    )
    write_files(folder, {"report.json": dump(data), "report.html": page})


def _verdict(data: Mapping[str, Json]) -> Block:
    gains = data["gain_intervals"]
    worse = [name for name, (_, high) in gains.items() if high < 0]
    unclear = [name for name, (low, high) in gains.items() if low <= 0 <= high]
    share = number(data["average_compatibility"])
    details = (
        f"In {share}% of the {len(gains)} pairs the newer model beats the older one on the older "
        f"one's gallery, AC {bounds(data['intervals']['average_compatibility'])}."
    )
    if worse:
        return verdict(
            "incompatible",
            "Not compatible throughout: some galleries have to be embedded anew",
            f"{details} Newer queries find less than the gallery's own in {', '.join(worse)}.",
        )
    if unclear:
        return verdict(
            "unclear",
            "No step is clearly worse, not every step is clearly better",
            f"{details} These queries cannot decide about {', '.join(unclear)}.",
        )
    return verdict("compatible", "Every newer model improves every older gallery", details)


def _gains(data: Mapping[str, Json]) -> list[Row]:
    models, matrix, rows = data["models"], data["matrix"], []
    for i in range(1, len(models)):
        cells = []
        for j in range(len(models) - 1):
            if j >= i:
                cells.append(text_cell(""))
                continue
            low, high = data["gain_intervals"][f"{models[i]}/{models[j]}"]
            mark = "good" if low > 0 else "bad" if high < 0 else ""
            gain = matrix[i][j] - matrix[j][j]
            cells.append(cell(gain, (low, high), sign=True, mark=mark))
        rows.append(row(models[i], cells))
    return rows


def _alt(models: list[str], matrix: list[list[float | None]], metric: str) -> str:
    lines = [
        f"gallery of {older}: "
        + ", ".join(
            f"{number(value)} by {models[i]}"
            for i in range(j, len(models))
            if (value := matrix[i][j]) is not None
        )
        for j, older in enumerate(models)
    ]
    return f"Lines of {metric} in percent by query model. {'; '.join(lines)}."
