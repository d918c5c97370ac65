# SPDX-License-Identifier: Apache-2.0
"""Verb ``bench-methods``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fclearn.cli.console import JsonFlag, emit, say

if TYPE_CHECKING:
    from fclearn.experiments.settings import BenchConfig


def bench_methods(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Results: one JSON file per run, table, plots.")
    ] = Path("runs/bench-methods"),
    methods: Annotated[str, typer.Option(help="By commas; see fcl methods.")] = "all",
    seeds: Annotated[str, typer.Option(help="By commas.")] = "0",
    dataset: Annotated[str, typer.Option(help="icons or fashion-mnist.")] = "icons",
    work: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Features and checkpoints; default OUT/work."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds instead of hours; its numbers mean nothing.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Compare methods: same images, old model, architectures and budget, several seeds.

    Per seed, trains an old model on some classes of the data set, stores its features, forgets it,
    and trains a new model by every method, at the method's defaults, with what the method needs.
    Classes nobody has seen decide. Stopped at any instant, the same command resumes: a run whose
    result is there is not run again.

    \b
    Examples:
      fcl bench-methods --methods ni-fcl,bct,independent
      fcl bench-methods --seeds 0,1,2 --out runs/comparison
    """
    from fclearn.experiments.benchmark import all_methods
    from fclearn.experiments.benchmark import bench_methods as run

    config = _config(dataset, quick)
    names = all_methods() if methods == "all" else _list(methods)
    with redirect_stdout(sys.stderr):
        records = run(config, out, methods=names, seeds=_integers(seeds), work=work, say=say)
    if json:
        emit({"runs": records})


def _config(dataset: str, quick: bool) -> BenchConfig:
    from fclearn.experiments.settings import DEFAULTS
    from fclearn.experiments.upgrade import QUICK
    from fclearn.wording import nearest

    if dataset not in DEFAULTS:
        raise ValueError(f"--dataset: unknown name {dataset!r}; {nearest(dataset, DEFAULTS)}")
    config = DEFAULTS[dataset]
    return replace(config, **vars(QUICK)) if quick else config


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in _list(text)]
    except ValueError:
        raise ValueError(f"--seeds: expected integers by commas, got {text!r}") from None
