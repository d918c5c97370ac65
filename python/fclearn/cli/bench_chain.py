# SPDX-License-Identifier: Apache-2.0
"""Verb ``bench-chain``."""

from __future__ import annotations

import json as json_module
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fclearn.cli.console import JsonFlag, command_of, draw, emit, say
from fclearn.cli.options import read_integers, read_names

if TYPE_CHECKING:
    from rich.table import Table

    from fclearn.experiments.chain import ChainConfig

_REPORT = "report.json"


def bench_chain(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Results: a report per method and seed.")
    ] = Path("runs/bench-chain"),
    methods: Annotated[
        str, typer.Option(help="Of fcl methods, that need old features at most.")
    ] = "ni-fcl",
    seeds: Annotated[str, typer.Option(help="By commas.")] = "0",
    classes: Annotated[
        str | None, typer.Option(help="Of each model, oldest first, by commas.")
    ] = None,
    encoders: Annotated[str | None, typer.Option(help="Of each model, by commas.")] = None,
    dims: Annotated[str | None, typer.Option(help="Of each model, by commas.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds instead of hours; its numbers mean nothing.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Upgrade several times in a row on the icon fonts: old, v1, v2, v3.

    Each model knows more classes than the one before it, and is trained by a method on that one's
    features alone. Prints, and writes as a page, the matrix of every model's queries in its own
    gallery and in all older ones, on classes nobody has seen. Stopped at any instant, the same
    command resumes. FCL_METHODS=my_module adds the methods that this Python module registers.

    \b
    Examples:
      fcl bench-chain --methods ni-fcl,l2,independent --seeds 0,1,2
      fcl bench-chain --classes 100,400 --encoders tiny-cnn,small-cnn --dims 64,128
    """
    from fclearn.cli.own_methods import load_own_methods
    from fclearn.datasets import load_icons
    from fclearn.experiments.chain import QUICK_CHAIN, ChainConfig, run_chain, with_seed
    from fclearn.methods import get_method
    from fclearn.report import write_chain_report

    load_own_methods()
    config = QUICK_CHAIN if quick else ChainConfig()
    config = replace(
        config,
        classes=config.classes if classes is None else tuple(read_integers(classes, "--classes")),
        encoders=config.encoders if encoders is None else tuple(read_names(encoders)),
        dims=config.dims if dims is None else tuple(read_integers(dims, "--dims")),
    )
    names = [get_method(name).name for name in read_names(methods)]
    numbers = read_integers(seeds, "--seeds")
    for option, values in (("--methods", names), ("--seeds", numbers)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{option}: expected at least one, each once, got {list(values)}")
    reports: list[dict[str, Any]] = []
    for seed in numbers:
        here = with_seed(config, seed)
        for name in names:
            folder = out / f"{name}-seed{seed}"
            found = _finished(folder, here)
            if found is None:
                with redirect_stdout(sys.stderr):
                    report = run_chain(
                        here, load_icons(), name, out / "work" / f"seed{seed}", say=say
                    )
                facts = {
                    "title": f"Chain of models by {name}",
                    "command": command_of(context),
                    "config": asdict(here),
                    "method": name,
                    "seed": seed,
                }
                found = write_chain_report(folder, report=report, facts=facts)
            reports.append(found)
    draw(_table(reports))
    say(f"reports: {out}")
    if json:
        emit({"chains": reports})


def _finished(folder: Path, config: ChainConfig) -> dict[str, Any] | None:
    """The report of an earlier call.

    Raises:
        ValueError: It is of another chain.
    """
    path = folder / _REPORT
    if not path.is_file():
        return None
    report: dict[str, Any] = json_module.loads(path.read_text(encoding="utf-8"))
    wanted = json_module.loads(json_module.dumps(asdict(config)))
    if report.get("config") != wanted:
        raise ValueError(
            f"{path}: made with another configuration; remove it or choose another folder"
        )
    return report


def _table(reports: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    models = reports[0]["models"]
    table = Table(
        *("method", "seed", "queries by", *models, "AC", "BC"),
        caption="mAP in each gallery, percent; AC: share of pairs in which newer queries gain; BC: "
        "what the newest model brings to the older galleries, points",
    )
    for report in reports:
        for number, model in enumerate(models):
            found = report["matrix"][number]
            cells = ["" if value is None else f"{100 * value:.1f}" for value in found]
            head = last = ["", ""]
            if number == 0:
                head = [report["method"], str(report["seed"])]
                names = ("average_compatibility", "backward_compatibility")
                last = [f"{100 * report[name]:.1f}" for name in names]
            table.add_row(*head, model, *cells, *last)
    return table
