# SPDX-License-Identifier: Apache-2.0
"""Verb ``bench-methods``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fclearn.cli.console import JsonFlag, emit, say
from fclearn.cli.options import read_integers, read_names

if TYPE_CHECKING:
    from fclearn.experiments.settings import BenchConfig, Labels, Setting


def bench_methods(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Results: one JSON file per run, table, plots.")
    ] = Path("runs/bench-methods"),
    methods: Annotated[
        str, typer.Option(help="Of fcl methods, and maps such as map-ridge.")
    ] = "all",
    seeds: Annotated[str, typer.Option(help="By commas.")] = "0",
    dataset: Annotated[str, typer.Option(help="icons, fashion-mnist or wordnet.")] = "icons",
    classes: Annotated[
        str,
        typer.Option(
            help="extended: the old classes and others to train on; open: others; extended-data: "
            "the same classes, more images; open-data: the same classes, other images."
        ),
    ] = "extended",
    labels: Annotated[
        str, typer.Option(help="given; clusters: of the old features, where nobody labelled.")
    ] = "given",
    old_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of fcl train; or frozen: efficientnet-lite0; of texts: glove, minilm-l3.",
        ),
    ] = None,
    new_encoder: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of fcl train; of texts: minilm-l3, minilm-l6."),
    ] = None,
    old_dim: Annotated[int | None, typer.Option(help="Of the old features.")] = None,
    new_dim: Annotated[int | None, typer.Option(help="Of the new embedding.")] = None,
    label_noise: Annotated[
        float, typer.Option(help="Share of the new training labels to shuffle.")
    ] = 0.0,
    images_per_class: Annotated[
        int | None, typer.Option(help="Most images of a class to train new models on.")
    ] = None,
    path: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of Fashion-MNIST's or WordNet's files.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Features and checkpoints; default OUT/work."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds instead of hours; its numbers mean nothing.")
    ] = False,
    table: Annotated[
        bool,
        typer.Option("--table", help="Run nothing: table and plots of the results in OUT."),
    ] = False,
    insert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put the table between the markers of this page, too."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Compare methods: same images, old model, architectures and budget, several seeds.

    Per seed, trains an old model on some classes of the data set, stores its features, forgets it,
    and trains a new model by every method, at the method's defaults, with what the method needs.
    Maps (map-procrustes, map-ridge, map-low-rank, map-mlp, map-compat-head) are fitted between the
    old features and those of a new model trained without compatibility.
    Classes nobody has seen decide. Stopped at any instant, the same command resumes: a run whose
    result is there is not run again. At the end, table.md and two plots are made from all results
    in the folder; --table does only that. A folder holds results of one setting.
    FCL_METHODS=my_module adds the methods that this Python module registers.

    \b
    Examples:
      fcl bench-methods --methods ni-fcl,bct,independent
      fcl bench-methods --seeds 0,1,2 --out runs/comparison
      fcl bench-methods --seeds 0,1,2 --label-noise 0.25 --out runs/noisy
      fcl bench-methods --classes open-data --out runs/open-data
      fcl bench-methods --old-encoder efficientnet-lite0 --out runs/efficientnet
      fcl bench-methods --dataset wordnet --old-encoder glove --out runs/wordnet
      fcl bench-methods --out runs/comparison --table
    """
    from fclearn.cli.own_methods import load_own_methods
    from fclearn.experiments.benchmark import RunsFailedError
    from fclearn.experiments.records import load_records
    from fclearn.experiments.settings import with_models
    from fclearn.experiments.table import TABLE, write_summary

    if not table:
        load_own_methods()
        config = with_models(
            _config(dataset, quick),
            old_encoder=old_encoder,
            new_encoder=new_encoder,
            old_dim=old_dim,
            new_dim=new_dim,
        )
        config = replace(
            config,
            classes=cast("Setting", classes),  # checked there
            labels=cast("Labels", labels),
            label_noise=label_noise,
            images_per_class=images_per_class,
        )
        try:
            _run(config, out, methods, seeds, path, work)
        except RunsFailedError:
            # What is done is worth a table all the same.
            if any(out.glob("*.json")):
                write_summary(out, insert)
            raise
    write_summary(out, insert)
    say(f"table: {out / TABLE}")
    if json:
        emit({"runs": load_records(out)})


def _run(
    config: BenchConfig, out: Path, methods: str, seeds: str, path: Path | None, work: Path | None
) -> None:
    from fclearn.experiments.benchmark import bench_methods
    from fclearn.experiments.sources import load_images, load_old

    names = None if methods == "all" else read_names(methods)
    numbers = read_integers(seeds, "--seeds")
    with redirect_stdout(sys.stderr):
        images = load_images(config, path)
        bench_methods(
            config,
            out,
            methods=names,
            seeds=numbers,
            work=work,
            images=images,
            old=load_old(config, images, path),
            say=say,
        )


def _config(dataset: str, quick: bool) -> BenchConfig:
    from fclearn.experiments.settings import DEFAULTS, QUICK_SETTINGS
    from fclearn.wording import nearest

    known = QUICK_SETTINGS if quick else DEFAULTS
    if dataset not in known:
        raise ValueError(f"--dataset: unknown name {dataset!r}; {nearest(dataset, known)}")
    return known[dataset]
