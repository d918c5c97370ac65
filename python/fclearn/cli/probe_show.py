# SPDX-License-Identifier: Apache-2.0
"""What ``fcl probe`` prints: its table, what counted and what was left out, numbers for gates."""

from __future__ import annotations

from rich.table import Table

from fclearn.cli.console import draw, say
from fclearn.cli.splits import other_split
from fclearn.evaluation import metric_title
from fclearn.probe import HALFWAY, NEW_TO_OLD, OLD_TO_NEW, ProbeResult

METRICS = ("map", "cmc@1")
#: With judgements, which may be graded.
JUDGED_METRICS = (*METRICS, "ndcg@10")
#: What moves, above the ways of a table.
_HEADINGS = {
    "": "",
    NEW_TO_OLD: "queries mapped",
    OLD_TO_NEW: "gallery mapped",
    HALFWAY: "partly embedded anew",
}


def show(result: ProbeResult) -> None:
    """Print a result for people."""
    draw(_table(result))
    say(result.split_text)
    for line in notes_of(result):
        say(line)
    say(f"{result.verdict}: {result.text}")


def notes_of(result: ProbeResult) -> list[str]:
    """What counts, what does not, and what was not measured, a line each."""
    lines = [other_split(result.split)] if result.judgements is None else []
    if result.num_skipped:
        lines.append(
            f"{result.num_skipped:,} queries have nothing right in the gallery; they count nowhere"
        )
    counts = result.judgements
    if counts is not None:
        for count, what in (
            (
                counts.queries_without_features,
                "queries of the judgements have no features; they are not asked",
            ),
            (
                counts.queries_not_asked,
                "queries are not asked: beyond the most to measure with, or what they judge is "
                "needed to fit on",
            ),
            (
                counts.relevant_not_among_items,
                "relevant rows are not among the items, which are a sample; they count nowhere",
            ),
        ):
            if count:
                lines.append(f"{count:,} {what}")
    if result.pseudo_labels is not None:
        lines.append(
            f"compat-head: {result.pseudo_labels:,} clusters of old features in place of classes"
        )
    lines += [f"{name} left out: {reason}" for name, reason in result.left_out.items()]
    return lines


def numbers_of(result: ProbeResult) -> dict[str, float | None]:
    """Numbers that gates may use; of adapters, those of new queries on the old gallery."""
    ways = {way.name: way for way in result.ways if way.direction != OLD_TO_NEW}
    numbers: dict[str, float | None] = {
        f"{name}.{metric}": value
        for name, way in ways.items()
        for metric, value in way.metrics.items()
    }
    numbers["update_gain"] = ways[result.best].update_gain if result.best else None
    return numbers


def _table(result: ProbeResult) -> Table:
    table = Table(
        title=f"Metrics in %, {result.split} unseen in fitting",
        caption=f"{result.num_queries:,} queries, {result.num_gallery:,} gallery rows, "
        f"{result.num_fit:,} pairs to fit on, {100 * result.confidence:g} % intervals of the "
        "difference to old/old; cost: share of the gallery embedded anew, models that see a query",
    )
    metrics = list(result.ways[0].metrics)
    # 80 columns wide, so that no terminal cuts a number: three metrics need a line for intervals.
    is_wide = len(metrics) > 2
    table.show_edge, table.pad_edge = not is_wide, not is_wide
    table.add_column("way")
    table.add_column("cost")
    for metric in metrics:
        table.add_column(metric_title(metric), justify="right")
    direction = ""
    for way in sorted(result.ways, key=lambda way: list(_HEADINGS).index(way.direction)):
        if way.direction != direction:
            direction = way.direction
            table.add_section()
            table.add_row(f"[italic]{_HEADINGS[direction]}[/italic]")
        apart = "\n" if is_wide else " "
        cells = [
            f"{100 * way.metrics[m]:.1f}{apart}[dim]\\[{_points(way.gain_intervals[m][0])},"
            f"{_points(way.gain_intervals[m][1])}][/dim]"
            for m in metrics
        ]
        cost = f"{100 * way.embedded:.0f}% {way.queries_by}" if way.queries_by else ""
        style = "bold" if way.name == result.best and way.direction == NEW_TO_OLD else None
        table.add_row(way.name, cost, *cells, style=style)
    return table


def _points(value: float) -> str:
    # Rounded first, so that no "-0.0" appears.
    return f"{round(100 * value, 1) + 0.0:+.1f}"
