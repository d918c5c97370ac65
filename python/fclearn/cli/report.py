# SPDX-License-Identifier: Apache-2.0
"""Verb ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fclearn.cli.console import JsonFlag, emit, say


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of fcl demo, of fcl eval or fcl probe --report, or of fcl plan --out.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For several runs: where their common page goes."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write the page of a run again from its numbers, or put several runs side by side.

    One run: its report.html and pictures, in its own folder. Several, with --out: one page with
    the matrices of all upgrades, their differences query by query (to the first one), the
    matrices of chains, the ways of probes, and the curves of plans. Upgrades, and chains, must have
    measured the same queries and gallery; where they did not, what differs is named.

    Nothing is measured again. With --json, the numbers go to stdout.

    \b
    Examples:
      fcl report runs/demo
      fcl report runs/a runs/b runs/c --out runs/side-by-side
    """
    from fclearn.report import rebuild, write_comparison

    if len(runs) == 1:
        if out is not None:
            raise ValueError("--out: expected several runs; the page of one goes to its own folder")
        result, folder = rebuild(runs[0]), runs[0]
    else:
        if out is None:
            raise ValueError("--out: expected a folder for the common page of several runs")
        result, folder = write_comparison(runs, out), out
    say(f"report: {folder / 'report.html'}")
    if json:
        emit(result)
