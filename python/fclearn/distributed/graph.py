# SPDX-License-Identifier: Apache-2.0
"""kNN graphs by several processes, from features larger than any one of them holds."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fcl_ext
from fclearn import _csr, _neighbours
from fclearn.distributed.shard_files import Arrays, ShardFiles, pieces
from fclearn.distributed.world import World
from fclearn.features import Features, FeatureSource, as_features, check_rows
from fclearn.graph import KnnGraph
from fclearn.out_of_core import features_key

RowsAt = Callable[[slice | NDArray[np.int64]], Tensor]

#: Rows whose neighbours are one piece, and rows searched at a time.
PIECE_ROWS, BLOCK_ROWS = 32768, 262144


def graph_by_all(
    features: FeatureSource,
    k: int,
    scratch: Path,
    *,
    world: World,
    labels: NDArray[np.int64] | None = None,
    metric: str = "cosine",
    piece_rows: int = PIECE_ROWS,
    block_rows: int = BLOCK_ROWS,
) -> KnnGraph | None:
    """`KnnGraph.build` by all processes of a torchrun, exactly.

    Each piece searches its rows in all rows, block by block, and keeps the best of what it finds.
    Within classes, a piece is some whole classes, and no row of another is read. Twice the products
    of one process are computed, which meets every pair once.

    Memory per process, beside pages of the file that the system may take back: a block and a piece
    of rows twice, and 16 bytes for each neighbour of a piece; the first process also holds the
    whole graph at the end, 8 bytes an edge.

    Args:
        features: As `KnnGraph.build`, also the following; on a disk that all processes see.
        k: Neighbours per row.
        scratch: Pieces are kept in ``.NAME.shards`` beside it until the end.
        world: Processes.
        labels: Class per row, shape ``(N,)``: a within-class graph.
        metric: ``"cosine"``, ``"ip"`` or ``"l2"``.
        piece_rows: Rows whose neighbours are one piece, at least 1.
        block_rows: Rows searched at a time, at least 1.

    Returns:
        The graph of similarities on the first process, None on others.

    Raises:
        ValueError: As `KnnGraph.build`; pieces of another run.
        OSError: The disk cannot be written.
    """
    source = as_features(features)
    if k < 1 or (labels is None and k >= len(source)):
        raise ValueError(f"k: expected a number in [1, {len(source) - 1}], got {k}")
    key: dict[str, object] = {
        "features": features_key(source),
        "k": k,
        "metric": metric,
        "labels": None if labels is None else zlib.crc32(np.ascontiguousarray(labels).tobytes()),
    }
    if world.is_first:
        check_rows(source)
    world.barrier()
    rows_at = _reader(source, metric)
    if labels is None:
        files = ShardFiles(scratch, key, pieces(len(source), piece_rows), world)
        files.run(
            lambda begin, end: _search(rows_at, len(source), begin, end, k, metric, block_rows)
        )
    else:
        order, ranges = _whole_classes(labels, piece_rows)
        files = ShardFiles(scratch, key, ranges, world)
        files.run(lambda a, b: _search_within(rows_at, order[a:b], labels, k, metric))
    graph = None
    if world.is_first:
        arrays = _assembled(files, len(source))
        metadata = {"metric": metric, "k": k, "backend": "exact"}
        if labels is not None:
            metadata["within_class"] = True
        graph = KnnGraph(*arrays, None, metadata)
    files.remove()
    return graph


def _search(
    rows_at: RowsAt, num_rows: int, begin: int, end: int, k: int, metric: str, block_rows: int
) -> Arrays:
    """The k nearest others of some rows, among all."""
    query = rows_at(slice(begin, end))
    # One more: a row finds itself.
    best = torch.empty(len(query), 0, dtype=torch.int64)
    similarity = torch.empty(len(query), 0)
    for first, last in pieces(num_rows, block_rows):
        block = rows_at(slice(first, last))
        found, near = fcl_ext.knn_search(query, block, min(k + 1, len(block)), metric=metric)
        best = torch.cat([best, found.long() + first], 1)
        similarity = torch.cat([similarity, near], 1)
        # Stable: of equal ones, those of earlier blocks stay first.
        order = similarity.argsort(dim=1, descending=True, stable=True)[:, : k + 1]
        best, similarity = best.gather(1, order), similarity.gather(1, order)
    is_self = best == torch.arange(begin, end)[:, None]
    order = is_self.to(torch.int8).argsort(dim=1, stable=True)[:, :k]
    return {
        "rows": np.arange(begin, end),
        "degree": np.full(end - begin, k),
        "columns": best.gather(1, order).int().numpy().ravel(),
        "similarities": similarity.gather(1, order).numpy().ravel(),
    }


def _search_within(
    rows_at: RowsAt, members: NDArray[np.int64], labels: NDArray[np.int64], k: int, metric: str
) -> Arrays:
    """The k nearest others of the rows of some whole classes, each within its class."""
    ascending = np.sort(members)  # equal similarities go to the lower row
    classes = torch.from_numpy(np.ascontiguousarray(labels[ascending]))
    crow, columns, similarities = _neighbours.search_within(rows_at(ascending), k, classes, metric)
    return {
        "rows": ascending,
        "degree": crow.diff().numpy(),
        "columns": ascending[columns.numpy()].astype(np.int32),
        "similarities": similarities.numpy(),
    }


def _whole_classes(
    labels: NDArray[np.int64], piece_rows: int
) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """Rows in the order of their classes, and pieces of that order that cut no class."""
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    ends = np.append(np.flatnonzero(np.diff(labels[order])) + 1, len(order))
    ranges: list[tuple[int, int]] = []
    begin = 0
    for end in ends.tolist():
        if end - begin >= piece_rows or end == len(order):
            if end > begin:
                ranges.append((begin, end))
            begin = end
    return order, ranges


def _assembled(files: ShardFiles, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    degree = np.zeros(num_rows, np.int64)
    for _, _, arrays in files.read():
        degree[arrays["rows"]] = arrays["degree"]
    crow = _csr.offsets(torch.from_numpy(degree))
    starts = crow.numpy()
    columns = np.empty(starts[-1], np.int32)
    similarities = np.empty(starts[-1], np.float32)
    for _, _, arrays in files.read():
        count = arrays["degree"].astype(np.int64)
        first = np.repeat(starts[arrays["rows"]], count)
        before = np.repeat(np.cumsum(count) - count, count)
        place = first + np.arange(len(first)) - before
        columns[place], similarities[place] = arrays["columns"], arrays["similarities"]
    return crow, torch.from_numpy(columns), torch.from_numpy(similarities)


def _reader(source: Features, metric: str) -> RowsAt:
    """Some of the rows; for distances less the mean of all, as in one process."""

    def rows_at(index: slice | NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.array(source[index], dtype=np.float32, order="C"))

    if metric != "l2" or not len(source):
        return rows_at
    centre = _neighbours.centre_of(len(source), rows_at)
    return lambda index: rows_at(index) - centre
