# SPDX-License-Identifier: Apache-2.0
"""Verb ``upgrade``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fclearn._launch import under_torchrun
from fclearn.cli.console import JsonFlag, draw, emit, say

if TYPE_CHECKING:
    from rich.table import Table

    from fclearn.cli.upgrade_config import UpgradeRunConfig

_METRICS = ("cmc@1", "cmc@5", "map")


def upgrade(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, as in data.path=/data/imagenet."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings as yaml; overrides win.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Of each training and embedding; one per GPU, by torchrun.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands, run none of them.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Play an upgrade through on a folder of images: old, independent and compatible models.

    The folder has two others, train and val, with one folder per class each. Trains an old model on
    a share of the classes, stores its features, trains the new network on its own and by each
    method on all classes, embeds the test images by all of them, and compares: every test image is
    a query, the others are its gallery.

    FCL_METHODS=my_module adds the methods that this Python module registers.

    Everything is done by other verbs; their commands are printed, so that they can be given by
    hand, on several machines, too. Stopped at any instant, the same command resumes; once it has
    ended, it runs nothing and shows the table again. Other settings than those of what is in the
    output folder, and files of others there, are refused.

    \b
    Keys (and defaults):
      data.path, data.train (train), data.test (val), data.size (224), data.short_side (256),
        data.augmentation (photos)
      old.encoder.name, old.encoder.dim, old.train.KEY as of fcl train, old.class_share (0.5)
      new.encoder.name, new.encoder.dim, new.train.KEY, new.class_share (1)
      methods ([ni-fcl]), published, output (runs/upgrade), device (auto)

    \b
    Examples:
      fcl upgrade --config configs/imagenet.yaml data.path=/data/imagenet --processes 8
      fcl upgrade --config configs/places365.yaml data.path=/data/places365 --dry-run
      fcl upgrade data.path=photos data.size=64 data.short_side=null "methods=[ni-fcl, bct]"
    """
    from fclearn.cli import main
    from fclearn.cli.own_methods import load_own_methods
    from fclearn.cli.upgrade_config import UpgradeRunConfig
    from fclearn.cli.upgrade_run import read_reports, run_steps, write_steps
    from fclearn.config import load_config

    if under_torchrun():
        raise ValueError("upgrade: expected no torchrun around it; give --processes instead")
    load_own_methods()
    wanted = load_config(UpgradeRunConfig, config, overrides or [])
    steps = write_steps(wanted)
    if dry_run:
        for step in steps:
            say(f"fcl {shlex.join(step.arguments)}")
        return
    code = run_steps(steps, processes, main)
    if code != 0:
        raise typer.Exit(code)
    reports = read_reports(wanted)
    draw(_table(wanted, reports))
    if json:
        emit({"output": wanted.output, "reports": reports})


def _table(config: UpgradeRunConfig, reports: dict[str, dict[str, Any]]) -> Table:
    """Ours beside what was published."""
    from rich.table import Table

    columns = [name for metric in _METRICS for name in (metric, "published")]
    table = Table("method", "query/gallery", *columns)
    first = next(iter(reports.values()))
    rows = [("", "old/old", first), ("", "independent/independent", first)]
    for name, report in reports.items():
        rows += [(name, row, report) for row in ("new/old", "new/new")]
    for method, row, report in rows:
        cells = []
        for metric in _METRICS:
            published = config.published.get(f"{row} {metric} {method}".strip())
            cells.append(f"{100 * report['matrix'][row][metric]:.1f}")
            cells.append("" if published is None else f"{published:.1f}")
        table.add_row(method, row, *cells)
    return table
