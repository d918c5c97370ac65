# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours of rows among themselves: exact by our kernel, or by another backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import fcl_ext
from fclearn import _approximate, _csr
from fclearn.features import FeatureSource, as_features

#: ``"auto"`` searches exactly up to this many rows: about half a minute on two cores at 128 dims.
EXACT_ROWS = 200_000
# Rows that are summed at a time for their mean.
_CENTRE_ROWS = 65_536
#: Ways to search, beside ``"auto"``.
BACKENDS = ("exact", "faiss", "hnsw")


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


def centre_of(num_rows: int, rows_at: Callable[[slice], Tensor]) -> Tensor:
    """The mean of the rows ``(D,)``, in their dtype: summed in float64, a block at a time.

    Distances do not change where it is subtracted, but they are computed from products, which lose
    the digits that all rows share.

    Args:
        num_rows: N, at least 1.
        rows_at: Some of the rows.

    Example:
        >>> rows = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        >>> centre_of(2, rows.__getitem__)
        tensor([2., 5.])
    """
    blocks = (rows_at(slice(at, at + _CENTRE_ROWS)) for at in range(0, num_rows, _CENTRE_ROWS))
    first = next(blocks)
    total = first.double().sum(0)
    for block in blocks:
        total += block.double().sum(0)
    return (total / num_rows).to(first.dtype)


def choose_backend(backend: str, num_rows: int) -> str:
    """One of `BACKENDS`; ``"auto"`` takes faiss above `EXACT_ROWS` if it is installed.

    Raises:
        ValueError: An unknown backend, or one of faiss without faiss.
    """
    if backend not in {"auto", *BACKENDS}:
        raise ValueError(f"backend: expected 'auto', 'exact', 'faiss' or 'hnsw', got {backend!r}")
    has_faiss = importlib.util.find_spec("faiss") is not None
    if backend in {"faiss", "hnsw"} and not has_faiss:
        raise ValueError(f"backend: {backend!r} needs faiss; pip install 'fcl-ext[cpu]'")
    if backend == "auto":
        return "faiss" if has_faiss and num_rows > EXACT_ROWS else "exact"
    return backend


def search(
    features: Tensor, k: int, metric: str, backend: str, min_recall: float
) -> tuple[Tensor, Tensor, dict[str, object]]:
    """Neighbours of every row: indices ``(N, k)``, similarities ``(N, k)``, and facts about them.

    Indices are int32, best first, never the row itself; faiss may leave ``-1`` at the end. The
    facts of an approximate search are its recall and the effort it took.

    Raises:
        ValueError: `min_recall` is out of reach of the backend.
    """
    if backend == "exact":
        indices, similarities = fcl_ext.knn_graph(features, k, metric=metric)
        return indices, similarities, {}
    return _approximate.search(features, k, metric, backend, min_recall)


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


def labels_of(labels: Tensor | np.ndarray, num_rows: int) -> Tensor:
    """Classes ``(N,)`` as int64 on the CPU, from integers in any form.

    Args:
        labels: One per row.
        num_rows: N.

    Raises:
        TypeError: Labels that are not integers.
        ValueError: Another number of them, or one beyond int64.
    """
    if not isinstance(labels, Tensor):
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels: expected integers, got {labels.dtype}")
    tensor = torch.as_tensor(labels)
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"labels: expected integers, got {tensor.dtype}")
    if tuple(tensor.shape) != (num_rows,):
        raise ValueError(f"labels: expected shape [{num_rows}], got {list(tensor.shape)}")
    classes = tensor.cpu().long()
    if tensor.dtype == torch.uint64 and bool((classes < 0).any()):
        raise ValueError("labels: expected numbers below 2^63")
    return classes
