# SPDX-License-Identifier: Apache-2.0
"""Walks of features larger than memory: column by column group, from file to file, resumable.

A walk moves whole rows and never mixes columns, so a group of columns can walk alone, with the
graph in memory, and gives what it would give among the others.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fclearn._files import replacing
from fclearn.features import Features, FeatureSource, as_features
from fclearn.graph import KnnGraph

# Copies of a group of columns that exist at a time, in the dtype of the state: what was read, the
# same in the graph's order, two states, the result in both orders; CG keeps its vectors as well.
_COPIES, _SOLVER_COPIES = 6, 14
# Rows of the features that tell one file from another.
_SKETCH_ROWS = 1024


def walk_file(
    graph: KnnGraph,
    features: FeatureSource,
    out: str | os.PathLike[str],
    *,
    damping: float = 0.9,
    num_steps: int | None = None,
    tol: float | None = None,
    transpose: bool = False,
    memory_bytes: int = 4 << 30,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `KnnGraph.walk` of features to a ``.npy`` file, with a cap on memory.

    The result grows in ``.NAME.partial`` beside ``out``, with a record of its finished columns, and
    gets its name when it is whole. Called again with the same arguments after a kill, it goes on
    behind the last group of columns that was recorded; ``memory_bytes`` may differ.

    Args:
        graph: Normalised, on the CPU, in memory.
        features: Shape ``(N, D)``, as `KnnGraph.walk`; files are memory-mapped and may be larger
            than memory.
        out: File to write, shape ``(N, D)``, dtype of the features.
        damping: As `KnnGraph.walk`.
        num_steps: As `KnnGraph.walk`: equal to the walk in memory up to rounding, or
        tol: relative to the largest feature of the columns that walk together.
        transpose: As `KnnGraph.walk`.
        memory_bytes: Cap on the arrays of the graph and of the columns under way. The fewer columns
            fit, the more often the features are read. Pages of the two files that the system
            keeps come on top; it takes them back when it needs them.
        progress: Called as ``progress(columns done, columns in all)``.

    Raises:
        TypeError: Features that are not floating.
        ValueError: As `KnnGraph.walk`; a cap below what the graph and one column need; remains of
            a run with other arguments.
        OSError: The disk is full (found out before the first step), or cannot be written.

    Example:
        >>> import numpy as np, torch
        >>> from fclearn import KnnGraph
        >>> rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
        >>> np.save("features.npy", rows)
        >>> graph = KnnGraph.build(rows, k=4).normalize()
        >>> walk_file(graph, "features.npy", "walked.npy", num_steps=10, memory_bytes=10_000)
        >>> np.allclose(np.load("walked.npy"), graph.walk(rows, num_steps=10).numpy())
        True
    """
    source = as_features(features)
    num_rows, num_columns = source.shape
    if num_rows != graph.num_nodes:
        raise ValueError(f"features: expected one row per node, {graph.num_nodes}, got {num_rows}")
    uses_solver = graph.mode == "symmetric" and num_steps is None
    width = _columns_within(memory_bytes, graph, source, uses_solver)
    options: dict[str, Any] = {
        "damping": damping,
        "num_steps": num_steps,
        "tol": tol,
        "transpose": transpose,
    }
    # No column: what is wrong with the arguments shows before a file is made.
    graph.walk(torch.empty(num_rows, 0), **options)
    target = Path(out)
    partial = target.with_name(f".{target.name}.partial")
    record = target.with_name(f".{target.name}.partial.json")
    key = {**options, "graph": _graph_key(graph), "features": features_key(source)}
    done = _columns_done(record, partial, key, num_columns)
    result = _open_result(partial, source, fresh=done == 0)
    while done < num_columns:
        columns = slice(done, min(done + width, num_columns))
        rows = torch.from_numpy(_native(source[:, columns]))
        walked = graph.walk(rows, **options)
        result[:, columns] = walked.numpy()
        done = columns.stop
        # The record must never name columns that a power cut could still take back.
        _flush(result, partial)
        with replacing(record) as temporary:
            temporary.write_text(json.dumps({"key": key, "columns_done": done}))
        if progress is not None:
            progress(done, num_columns)
    _flush(result, partial)
    del result
    partial.replace(target)
    record.unlink(missing_ok=True)


def _columns_within(memory_bytes: int, graph: KnnGraph, source: Features, uses_solver: bool) -> int:
    arrays = [graph.crow_indices, graph.col_indices, graph.values]
    if graph.prepared is not None:
        prepared = graph.prepared
        arrays += [prepared.crow_indices, prepared.col_indices, prepared.values]
        arrays += [prepared.order, prepared.inverse]
    fixed = sum(array.nbytes for array in arrays)
    state_bytes = 8 if source.dtype.itemsize == 8 else 4
    copies = _SOLVER_COPIES if uses_solver else _COPIES
    per_column = max(1, copies * state_bytes * source.shape[0])
    width = (memory_bytes - fixed) // per_column
    if width < 1:
        raise ValueError(
            f"memory_bytes: expected at least {fixed + per_column} (the graph, and one column), "
            f"got {memory_bytes}"
        )
    return int(width)


def _native(columns: Features) -> np.ndarray:
    return np.array(columns, dtype=columns.dtype.newbyteorder("="), order="C")


def _open_result(partial: Path, source: Features, *, fresh: bool) -> np.ndarray:
    if not fresh:
        return np.lib.format.open_memmap(partial, mode="r+")
    partial.parent.mkdir(parents=True, exist_ok=True)
    dtype = source.dtype.newbyteorder("=")
    if source.size == 0:
        empty = np.empty(source.shape, dtype)
        with partial.open("wb") as file:
            np.save(file, empty)
        return empty
    result = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=source.shape)
    # The file has holes so far. A disk that cannot fill them would end the process when one is
    # written through the map; asked for beforehand, it is an error that says so.
    with partial.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
    return result


def _flush(result: np.ndarray, partial: Path) -> None:
    if isinstance(result, np.memmap):
        result.flush()
    with partial.open("rb") as file:
        os.fsync(file.fileno())


def _columns_done(record: Path, partial: Path, key: dict[str, object], num_columns: int) -> int:
    if not (record.exists() and partial.exists()):
        return 0
    try:
        found = json.loads(record.read_text())
        done = int(found["columns_done"])
        walk = found["key"]
        if not 0 <= done <= num_columns:
            raise ValueError(f"{done} of {num_columns} columns")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{record}: not a record of a walk; remove it to start afresh") from error
    if walk != key:
        raise ValueError(
            f"{record}: a walk of other features, another graph or other options was begun here; "
            "remove it to start afresh"
        )
    return done


def _graph_key(graph: KnnGraph) -> int:
    """Tells one graph from another; how it was prepared changes results by rounding alone."""
    checksum = 0
    for array in (graph.crow_indices, graph.col_indices, graph.values):
        checksum = zlib.crc32(_bytes(array), checksum)
    return checksum


def _bytes(array: Tensor) -> memoryview:
    return array.detach().contiguous().view(torch.uint8).numpy().data


def features_key(source: Features) -> str:
    """Tells the features of one file from those of another, by shape, type and some rows."""
    rows = np.unique(np.linspace(0, max(len(source) - 1, 0), _SKETCH_ROWS).astype(np.int64))
    checksum = zlib.crc32(np.ascontiguousarray(source[rows[: len(source)]]).tobytes())
    return f"{list(source.shape)} {source.dtype.str} {checksum:08x}"
