# SPDX-License-Identifier: Apache-2.0
"""The 2x2 matrix as a table in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from fclearn.evaluation._verdict import metric_title, percent
from fclearn.evaluation.matrix import CompatibilityReport

#: What the rows of the matrix are, for people.
ROW_TITLES = {
    "old/old": "old queries, old gallery",
    "new/old": "new queries, old gallery",
    "new/new": "new queries, new gallery",
    "independent/independent": "independent model, re-indexed",
}


def render_table(report: CompatibilityReport) -> Table:
    """Return a table of every entry with its interval; print it with ``rich.print``.

    Args:
        report: From `compatibility_report`.

    Returns:
        One row per entry of the matrix, then the update gain and the self-test tax.
    """
    table = Table(
        title="Metrics in %, query / gallery",
        caption=f"{report.num_queries:,} queries, {report.num_gallery:,} gallery rows, "
        f"{percent(report.confidence, 0)} intervals",
    )
    # What is too wide for a terminal goes on in the next line: no number is cut.
    table.add_column("query/gallery", overflow="fold")
    for name in report.metrics:
        table.add_column(metric_title(name), justify="right", overflow="fold")
    for key, row in report.matrix.items():
        cells = [_cell(row[name], report.intervals[key][name]) for name in report.metrics]
        label = key.replace("independent", "indep.")
        table.add_row(label, *cells, style="bold" if key == "new/old" else None)
    table.add_section()
    rows: tuple[tuple[str, Mapping[str, float | None]], ...] = (
        ("update gain", report.update_gains),
        ("self-test tax", report.self_test_taxes),
    )
    for label, values in rows:
        bounds = report.intervals.get(label.replace(" ", "_").replace("-", "_"))
        if bounds:
            cells = [_cell(values.get(name), bounds[name]) for name in report.metrics]
            table.add_row(label, *cells)
    return table


def _cell(value: float | None, bounds: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    text = f"{100 * value:.1f}"
    if bounds is not None:
        text += f" [dim]\\[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}][/dim]"
    return text.replace("-", "−")
