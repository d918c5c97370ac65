# SPDX-License-Identifier: Apache-2.0
"""The ratios to peers over the commits that changed the committed results, as table and plot.

    python bench/history.py --match "compat_loss frozen float32" --plot build/history.png

Ratios of different machines, instruction sets or numbers of threads are not drawn as one line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Point:
    """A ratio at a commit.

    Attributes:
        commit: Short hash.
        date: Of the measurement.
        machine: What ratios may be compared on.
        ratio: Time of the peer over ours.
    """

    commit: str
    date: str
    machine: str
    ratio: float


def versions(path: str, root: Path = ROOT) -> Iterator[tuple[str, dict[str, Any]]]:
    """Commits that changed a file of results, oldest first, with the file as it was."""
    log = ["git", "-C", str(root), "log", "--reverse", "--format=%h", "--", path]
    for commit in subprocess.check_output(log, text=True).split():
        show = ["git", "-C", str(root), "show", f"{commit}:{path}"]
        found = subprocess.run(show, capture_output=True, text=True, check=False)
        if found.returncode == 0:  # not where the commit removed it
            yield commit, json.loads(found.stdout)


def series(results: Iterator[tuple[str, dict[str, Any]]]) -> dict[tuple[str, str], list[Point]]:
    """Points by benchmark group and peer."""
    found: dict[tuple[str, str], list[Point]] = {}
    for commit, summary in results:
        machine = f"{summary['cpu']}, {summary['threads']} threads, {summary['fcl_isa']}"
        for row in summary["benchmarks"]:
            if "ratio" in row and row["peer"] != "ours":
                point = Point(commit, summary["date"], machine, row["ratio"])
                found.setdefault((row["group"], row["peer"]), []).append(point)
    return found


def draw(found: dict[tuple[str, str], list[Point]]) -> Figure:
    """A line per group, peer and machine."""
    commits = list(dict.fromkeys(point.commit for points in found.values() for point in points))
    figure = Figure(figsize=(8, 0.5 + 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (group, peer), points in found.items():
        for machine in dict.fromkeys(point.machine for point in points):
            own = [point for point in points if point.machine == machine]
            places = [commits.index(point.commit) for point in own]
            axes.plot(places, [point.ratio for point in own], "o-", label=f"{group}, {peer}")
    axes.set(ylabel="time of the peer / ours", xticks=range(len(commits)), xticklabels=commits)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.legend(fontsize=6)
    return figure


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="bench/results/cpu.json", help="as in the repository")
    parser.add_argument("--match", default="", help="part of a group's name")
    parser.add_argument("--plot", type=Path, help="where to draw them")
    arguments = parser.parse_args()
    found = {
        key: points
        for key, points in series(versions(arguments.results)).items()
        if arguments.match in key[0]
    }
    table = Table("group", "peer", "commit", "date", "x ours", "machine")
    for (group, peer), points in found.items():
        for point in points:
            row = (point.commit, point.date, f"{point.ratio:.2f}", point.machine)
            table.add_row(group, peer, *row)
    Console(width=140).print(table)
    if arguments.plot is not None:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(found).savefig(arguments.plot, dpi=110)


if __name__ == "__main__":
    main()
