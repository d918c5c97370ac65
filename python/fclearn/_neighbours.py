# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours of rows among themselves: exact by our kernel, approximate by faiss."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import torch
from torch import Tensor

import fcl_ext
from fclearn import _csr
from fclearn.features import FeatureSource, as_features

#: ``"auto"`` searches exactly up to this many rows: about a minute on two cores at 128 dims.
EXACT_ROWS = 200_000
#: Rows whose exact neighbours the recall of an approximate graph is measured on.
_RECALL_SAMPLE = 200


def rows_of(features: FeatureSource, name: str = "features") -> Tensor:
    """Features as a floating ``(N, D)`` tensor of their own dtype, read into memory if in a file.

    Tensors come back as they are, on their device and with their graph.

    Raises:
        TypeError: Not features, or not floating point.
        ValueError: Not two-dimensional, or a file that cannot be used.
    """
    if not isinstance(features, Tensor):
        array = as_features(features, name)
        # Read-only arrays (memory maps) and foreign byte orders cannot be shared with torch.
        if not (array.flags.writeable and array.dtype.isnative):
            array = np.array(array, dtype=array.dtype.newbyteorder("="))
        return torch.from_numpy(np.ascontiguousarray(array))
    if not features.is_floating_point():
        raise TypeError(f"{name}: expected floating numbers, got {features.dtype}")
    if features.ndim != 2:
        raise ValueError(f"{name}: expected shape [N, D], got {list(features.shape)}")
    return features


def choose_backend(backend: str, num_rows: int) -> str:
    """``"exact"`` or ``"faiss"``; ``"auto"`` takes faiss above `EXACT_ROWS` if it is installed.

    Raises:
        ValueError: An unknown backend, or faiss without faiss.
    """
    if backend not in {"auto", "exact", "faiss"}:
        raise ValueError(f"backend: expected 'auto', 'exact' or 'faiss', got {backend!r}")
    has_faiss = importlib.util.find_spec("faiss") is not None
    if backend == "faiss" and not has_faiss:
        raise ValueError("backend: 'faiss' is not installed; pip install 'fcl-ext[cpu]'")
    if backend == "auto":
        return "faiss" if has_faiss and num_rows > EXACT_ROWS else "exact"
    return backend


def search(
    features: Tensor, k: int, metric: str, backend: str
) -> tuple[Tensor, Tensor, float | None]:
    """Neighbours of every row: indices ``(N, k)``, similarities ``(N, k)``, and the recall if < 1.

    Indices are int32, best first, never the row itself; faiss may leave ``-1`` at the end.
    """
    if backend == "exact":
        indices, similarities = fcl_ext.knn_graph(features, k, metric=metric)
        return indices, similarities, None
    indices, similarities = _search_faiss(features, k, metric)
    return indices, similarities, _recall(features, indices, k, metric)


def search_within(
    rows: Tensor, k: int, labels: Tensor, metric: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours of every row among the rows of its class, as CSR with int32 columns.

    A negative label (labels are on the CPU) is no class. Classes of at most k rows give
    ``size - 1`` neighbours.
    """
    order = torch.argsort(labels, stable=True)
    order = order[labels[order] >= 0]
    sizes = torch.unique_consecutive(labels[order], return_counts=True)[1]
    width = min(k, max(int(sizes.max()) - 1, 1)) if len(sizes) > 0 else 1
    order = order.to(rows.device)
    bounds = _csr.offsets(sizes).to(rows.device)
    found, similarities = fcl_ext.knn_graph_segments(rows[order], bounds, width, metric=metric)
    # From places in the order of classes back to rows. Within a class they keep their order, so
    # that ties still go to the lower row.
    columns = found.new_full((len(rows), width), -1)
    columns[order] = torch.where(found >= 0, order.to(torch.int32)[found.long().clamp(min=0)], -1)
    values = similarities.new_zeros((len(rows), width))
    values[order] = similarities
    is_edge = columns >= 0
    return _csr.offsets(is_edge.sum(1)), columns[is_edge], values[is_edge]


def _search_faiss(features: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    import faiss  # noqa: PLC0415  (optional, and only this backend needs it)

    rows = features.detach().float().cpu()
    if not bool(rows.isfinite().all()):
        bad = int((~rows.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"features: expected finite numbers, got a NaN or infinity in row {bad}")
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows, dim=1)
    array = np.ascontiguousarray(rows.numpy())
    num_rows, dim = array.shape
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    # An inverted file needs about 40 rows per cell to train on; 32 probes keep recall near 1.
    cells = max(1, min(int(4 * math.sqrt(num_rows)), num_rows // 40))
    flat = faiss.IndexFlatL2(dim) if metric == "l2" else faiss.IndexFlatIP(dim)
    index: faiss.Index = flat
    if cells >= 64:
        inverted = faiss.IndexIVFFlat(flat, dim, cells, kind)
        inverted.nprobe = 32
        inverted.train(array)
        index = inverted
    index.add(array)
    distances, found = index.search(array, k + 1)
    # The row itself is usually first, but not among equal rows: drop it wherever it is.
    is_self = found == np.arange(num_rows)[:, None]
    order = np.argsort(is_self, axis=1, kind="stable")[:, :k]
    indices = np.take_along_axis(found, order, axis=1)
    similarities = np.take_along_axis(distances, order, axis=1)
    if metric == "l2":
        similarities = -similarities
    similarities[indices < 0] = 0
    return torch.from_numpy(indices.astype(np.int32)), torch.from_numpy(similarities)


def _recall(features: Tensor, indices: Tensor, k: int, metric: str) -> float:
    """Mean share of the true k neighbours that were found, on a spread sample of rows."""
    num_rows = features.shape[0]
    sample = torch.linspace(0, num_rows - 1, min(_RECALL_SAMPLE, num_rows)).long()
    rows = features.detach().float().cpu()
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows, dim=1)
    similarities = rows[sample] @ rows.T
    if metric == "l2":
        similarities = 2 * similarities - rows.square().sum(1)
    similarities.scatter_(1, sample[:, None], -math.inf)
    true = similarities.topk(k, dim=1).indices
    hits = (true[:, :, None] == indices[sample][:, None, :]).any(2)
    return float(hits.float().mean())
