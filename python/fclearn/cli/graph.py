# SPDX-License-Identifier: Apache-2.0
"""Verb ``graph``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fclearn._launch import under_torchrun
from fclearn.cli.console import JsonFlag, emit, say
from fclearn.cli.targets import ReplaceFlag, check_file_target


def graph(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Feature store, or .npy file.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Graph to write, .safetensors.")],
    k: Annotated[int, typer.Option(help="Neighbours per row.")] = 10,
    within_class: Annotated[
        bool, typer.Option("--within-class", help="Join rows of one class only.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Of the softmax over neighbours.")] = 0.05,
    mode: Annotated[str, typer.Option(help="row, symmetric or none (see KnnGraph).")] = "row",
    metric: Annotated[
        str | None,
        typer.Option(help="cosine, ip or l2; unless given, the store's own, cosine for a file."),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, exact, faiss or hnsw.")] = "auto",
    replace: ReplaceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Connect every row of a store to its nearest rows, as weights of a random walk.

    In mode row, the weights of each row's neighbours are a softmax of their similarities and sum to
    1. In Python: KnnGraph.load(FILE).walk(features, damping=0.9). Under torchrun, each process
    searches its share, exactly, and no process holds all rows.

    With --within-class, classes are those of the store's manifest: one in column labels, or
    class_name, or label. Rows without a class (there, empty text, and a number below 0) are joined
    to nothing.

    The graph of a store keeps a digest of its ids: fcl walk refuses other rows, or another order.
    A graph that is there is replaced with --replace alone, and any other file never.

    \b
    Examples:
      fcl graph runs/old-features --out runs/graph.safetensors
      fcl graph runs/old-features --k 5 --within-class --out runs/within.safetensors
    """
    import numpy as np

    from fclearn.cli.alignment import check_finite
    from fclearn.features import Features, FeatureStore
    from fclearn.features.classes import class_numbers, has_class, row_classes
    from fclearn.features.ids import digest_of_ids
    from fclearn.features.npy import open_npy
    from fclearn.graph import KnnGraph

    check_file_target(out, "graph", replace=replace, inputs=[store])
    labels, facts = None, {}
    features: Features
    if within_class or store.is_dir():
        opened = FeatureStore.open(store)
        features = opened.features
        labels = class_numbers(*row_classes(opened)) if within_class else None
        metric = metric or opened.fingerprint.metric
        facts = {"ids": digest_of_ids(opened.ids)}
        # Rows without a class are joined to nothing, whatever they hold.
        rows = None if labels is None else np.flatnonzero(has_class(labels))
        check_finite(features if rows is None else features[rows], opened.ids, store, rows)
    else:
        features = open_npy(store)
        check_finite(features, None, store)
        metric = metric or "cosine"
    if under_torchrun():
        from fclearn.distributed import joined_world
        from fclearn.distributed.graph import graph_by_all

        if backend not in {"auto", "exact"}:
            raise ValueError(f"--backend: under torchrun the search is exact, got {backend!r}")
        with joined_world("cpu") as world:
            found = graph_by_all(features, k, out, world=world, labels=labels, metric=metric)
        if found is None:  # of another process than the first, which writes
            return
        built = found
    else:
        built = KnnGraph.build(features, k, labels=labels, metric=metric, backend=backend)
    isolated = int(built.isolated.sum())
    built = built.normalize(temperature, mode)
    built = dataclasses.replace(built, metadata=built.metadata | facts)
    built.save(out)
    say(f"{built.num_nodes} nodes, {built.num_edges} edges, {isolated} isolated; in {out}")
    if json:
        emit(
            {
                "graph": str(out),
                "nodes": built.num_nodes,
                "edges": built.num_edges,
                "isolated": isolated,
                "mode": built.mode,
                **built.metadata,
            }
        )
