# SPDX-License-Identifier: Apache-2.0
"""Verb ``walk``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fclearn._launch import under_torchrun
from fclearn.cli.console import JsonFlag, emit, say
from fclearn.cli.targets import ReplaceFlag, check_store_target, is_made, store_source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fclearn.features import FeatureStore
    from fclearn.graph import KnnGraph

_BLOCK_ROWS = 1 << 16


def walk(
    graph: Annotated[Path, typer.Argument(metavar="GRAPH", help="Of the same rows: fcl graph.")],
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Feature store.")],
    out: Annotated[Path, typer.Option(metavar="STORE", help="Feature store to write.")],
    damping: Annotated[
        float, typer.Option(help="Probability of walking on: how much neighbours count.")
    ] = 0.2,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the walk.")] = 10,
    memory_gb: Annotated[float, typer.Option(help="For the graph and the columns at work.")] = 4.0,
    replace: ReplaceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Walk stored features over their graph: each moves towards its neighbours.

    The graph must be of these rows in this order. One that fcl graph made of a store knows its
    rows, and is refused for others; one of a .npy file does not, and is taken as it is.

    Polishes a gallery that nobody can embed again: no image, no model, no label is needed. The
    features stay in the space they are in, queries of the old model and of a compatible new one
    are compared with them as before, and the fingerprint stays. A little damping raises mAP and
    leaves the first hit alone; from 0.4 on the first hit suffers. Measure it: fcl eval with and
    without. The store itself is not changed. Rows are mixed as they are stored: where they are not
    of unit length, longer ones weigh more.

    Works column by column, with a cap on memory. Under torchrun, each process walks its share of
    the columns, with that cap each. Stopped at any instant, the same command resumes;
    once it has ended, it does nothing. Another store that is there is replaced with --replace
    alone.

    \b
    Examples:
      fcl graph runs/old-gallery --k 5 --temperature 0.1 --out runs/graph.safetensors
      fcl walk runs/graph.safetensors runs/old-gallery --out runs/old-gallery-walked
    """
    import numpy as np

    from fclearn.features import FeatureStore
    from fclearn.graph import KnnGraph
    from fclearn.out_of_core import walk_file

    if not memory_gb > 0:
        raise ValueError(f"--memory-gb: expected a number > 0, got {memory_gb}")
    source = FeatureStore.open(store)
    if not graph.is_file():
        raise FileNotFoundError(f"{graph}: no such graph file")
    key = store_source(store, graph, damping, steps)
    made_of = f"walk {key}"
    if not replace and is_made(out, made_of):
        say(f"{out} has these rows by this walk already; --replace walks them again")
        _answer(FeatureStore.open(out), out, damping, steps, json=json)
        return
    check_store_target(out, replace=replace, inputs=[store])
    of_rows = KnnGraph.load(graph)
    _check_rows(of_rows, graph, source)
    # A run that was stopped after the walk finds its rows again; one with other inputs does not.
    walked = out.with_name(f".{out.name}.{key[:12]}.npy")
    memory_bytes = int(memory_gb * 2**30)
    if under_torchrun():
        from fclearn.distributed import joined_world
        from fclearn.distributed.walk import walk_by_all

        with joined_world("cpu") as world:
            columns = walk_by_all(
                of_rows,
                source.features,
                walked.with_suffix(".columns"),
                world=world,
                damping=damping,
                num_steps=steps,
                memory_bytes=memory_bytes,
            )
            if not world.is_first:
                return
        result = _store(source, columns.rows, made_of, out)
        shutil.rmtree(columns.folder)
    else:
        if not walked.exists():
            walk_file(
                of_rows,
                source.features,
                walked,
                damping=damping,
                num_steps=steps,
                memory_bytes=memory_bytes,
            )
        rows = np.load(walked, mmap_mode="r")
        result = _store(source, lambda begin, end: rows[begin:end], made_of, out)
        walked.unlink()
    say(f"{len(result)} rows of {result.dim} numbers in {out}")
    _answer(result, out, damping, steps, json=json)


def _answer(result: FeatureStore, out: Path, damping: float, steps: int, *, json: bool) -> None:
    if json:
        emit(
            {
                "store": str(out),
                "rows": len(result),
                "dim": result.dim,
                "damping": damping,
                "steps": steps,
            }
        )


def _check_rows(of_rows: KnnGraph, graph: Path, source: FeatureStore) -> None:
    """Refuse a graph of other rows than the store's; one that does not say of which, passes."""
    from fclearn.features.ids import digest_of_ids

    made_of = of_rows.metadata.get("ids")
    if made_of is not None and made_of != digest_of_ids(source.ids):
        raise ValueError(
            f"{graph}: expected a graph of the {len(source)} rows of {source.path} in their order, "
            f"got one of {of_rows.num_nodes} rows with other ids or in another order; make it by "
            "fcl graph"
        )


def _store(
    source: FeatureStore,
    walked: Callable[[int, int], NDArray[np.floating]],
    made_of: str,
    out: Path,
) -> FeatureStore:
    """Write the walked rows, which ``walked(begin, end)`` returns, at the norm of the others."""
    import numpy as np

    from fclearn.features import FeatureWriter

    shape = (len(source), source.dim)
    writer = FeatureWriter(out, *shape, source.features.dtype, source.fingerprint, source=made_of)
    for begin, end in writer.missing():
        for first in range(begin, end, _BLOCK_ROWS):
            block = np.asarray(walked(first, min(end, first + _BLOCK_ROWS)), dtype=np.float32)
            if source.fingerprint.norm == "l2":
                norms = np.linalg.norm(block, axis=1, keepdims=True)
                block = block / np.maximum(norms, np.finfo(np.float32).tiny)
            writer.write(first, block)
    return writer.finish(source.manifest, source.manifest_format)
