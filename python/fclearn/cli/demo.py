# SPDX-License-Identifier: Apache-2.0
"""Verb ``demo``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from fclearn.cli.console import JsonFlag, emit, say


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where everything goes.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Of the split of the classes and all trainings.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds instead of minutes; its numbers mean nothing.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Upgrade a model on real images, end to end, in minutes on two cores.

    Trains an old model on a part of the classes of six icon fonts, stores its features, forgets it,
    trains an independent and a compatible model, and tests on classes nobody has seen. Writes
    report.html (open it), report.json, pictures, stores and checkpoints. Stopped at any instant,
    the same command resumes.

    \b
    Examples:
      fcl demo
      fcl demo --out runs/demo-1 --seed 1
    """
    from fclearn.demo import run_demo

    with redirect_stdout(sys.stderr):
        result = run_demo(out, seed=seed, quick=quick)
    verdict = result.get("verdict")
    if isinstance(verdict, dict):
        say(str(verdict["text"]))
    say(f"report: {out / 'report.html'}")
    if json:
        emit(result)
