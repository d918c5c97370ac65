# SPDX-License-Identifier: Apache-2.0
"""The report of a probe: every way to serve an upgrade without training, and what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fclearn.evaluation import metric_title
from fclearn.report._files import damage_said, dump, with_facts, write_files
from fclearn.report._numbers import Table, cell, number, row, text_cell
from fclearn.report._run_figures import ways_figure
from fclearn.report._sections import Section, figures, notes, render_sections, table, verdict
from fclearn.report._template import Json

if TYPE_CHECKING:
    from fclearn.probe import ProbeResult

PROBE = "probe"
#: Look and headline of each verdict.
_HEADLINES = {
    "map": ("compatible", "Go: a map of new queries beats the old model on the gallery as it is"),
    "train": ("unclear", "No map is enough, but the old space has room: train compatibly"),
    "reindex": ("incompatible", "The old space has no room: only embedding anew helps"),
    "stay": ("incompatible", "No go: the new model is no better than the old one"),
    "unclear": ("unclear", "Not decided: these queries cannot tell"),
}
_HIDDEN = frozenset(
    {
        "ways", "verdict", "best", "map_suffices", "text", "num_queries", "num_skipped",
        "num_gallery", "num_fit", "num_fit_classes", "num_test_classes", "num_shared_classes",
        "left_out", "split", "split_text", "pseudo_labels", "judgements", "confidence", "notes",
    }
)  # fmt: skip


def write_probe_report(
    output_dir: str | os.PathLike[str],
    *,
    result: ProbeResult,
    notes: Sequence[str] = (),
    facts: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Write ``report.html`` (one file that needs nothing else) and ``report.json`` of a probe.

    Args:
        output_dir: Folder; made if needed. Files of an earlier report are replaced.
        result: The numbers.
        notes: What counted and what did not, a sentence each.
        facts: As in `write_report`.

    Returns:
        The content of ``report.json``.

    Raises:
        OSError: The folder cannot be written.
        ValueError: A fact under a name the report uses itself.
        TypeError: A fact that JSON cannot hold.

    Example:
        >>> import numpy as np
        >>> from fclearn.probe import probe
        >>> labels = np.arange(60) % 6
        >>> old = np.eye(6)[labels] + 0.3 * np.random.default_rng(0).standard_normal((60, 6))
        >>> result = probe(old=old, new=old, labels=labels, adapters=["ridge"], num_bootstrap=10)
        >>> write_probe_report("runs/probe", result=result)["verdict"]
        'stay'
    """
    data = with_facts({"kind": PROBE, **result.to_dict(), "notes": list(notes)}, facts)
    _write(Path(output_dir), data)
    return data


def rebuild_probe(folder: Path, data: Mapping[str, Json]) -> None:
    """Write the page again from the content of ``report.json``.

    Raises:
        ValueError: Not that of a probe.
    """
    with damage_said(f"{folder}: report.json is not that of a probe"):
        _write(folder, data)


def probe_section(data: Mapping[str, Json], title: str) -> Section:
    """What a probe says, as a section of a page.

    Args:
        data: Content of ``report.json``.
        title: Its heading.
    """
    status, headline = _HEADLINES[data["verdict"]]
    ways = data["ways"]
    labels = [_label(way) for way in ways]
    values = [(way["metrics"]["map"], way["intervals"]["map"]) for way in ways]
    return {
        "title": title,
        "blocks": [
            verdict(status, headline, data["text"]),
            figures(
                [(ways_figure(labels, values), _alt(labels, ways))],
                "mAP of every way with its interval; dashed: old queries on the old gallery.",
            ),
            table(_table(data)),
            notes(
                [
                    f"Split by {data['split']}, {data['split_text']}.",
                    *data["notes"],
                    "Nothing is judged by what it was fitted on.",
                    "Intervals are percentile bootstrap intervals over the queries, of the "
                    "difference paired by query. They do not cover other items or seeds.",
                ]
            ),
        ],
    }


def _table(data: Mapping[str, Json]) -> Table:
    metrics = list(data["ways"][0]["metrics"])
    rows = [
        row(
            way["name"],
            [
                text_cell(f"{100 * way['embedded']:.0f}%" if way["queries_by"] else "–"),
                text_cell(way["queries_by"] or "–"),
                *(
                    one
                    for metric in metrics
                    for one in (
                        cell(way["metrics"][metric], way["intervals"][metric]),
                        cell(way["gain"][metric], way["gain_intervals"][metric], sign=True),
                    )
                ),
            ],
            way["direction"],
            marked=way["name"] == data["best"] and way["direction"].startswith("new query"),
        )
        for way in data["ways"]
    ]
    columns = [
        text for name in metrics for text in (metric_title(name), f"{metric_title(name)}, gain")
    ]
    return Table(
        label="Ways to serve the upgrade",
        caption=f"In percent, gains over old/old in points, with {100 * data['confidence']:g}% "
        f"intervals; {data['num_queries']:,} queries, {data['num_gallery']:,} gallery rows, "
        f"{data['num_fit']:,} pairs fitted on. The best adapter of new queries is marked.",
        columns=["way", "gallery embedded anew", "models that see a query", *columns],
        bodies=[rows],
    )


def _label(way: Mapping[str, Json]) -> str:
    """The way's name, and of two that share it, what moves."""
    return f"{way['name']}, gallery" if way["direction"].startswith("old gallery") else way["name"]


def _alt(labels: Sequence[str], ways: Sequence[Mapping[str, Json]]) -> str:
    parts = [
        f"{label} {number(way['metrics']['map'])}" for label, way in zip(labels, ways, strict=True)
    ]
    return f"mAP in percent of every way: {', '.join(parts)}."


def _write(folder: Path, data: Mapping[str, Json]) -> None:
    page = render_sections(
        [probe_section(data, "What needs no training")],
        {"title": "Go or no-go before anyone trains", **data},
        kind="probe report",
        hidden=_HIDDEN,
        numbers_file="report.json",
    )
    write_files(folder, {"report.json": dump(data), "report.html": page})
