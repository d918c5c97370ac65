# SPDX-License-Identifier: Apache-2.0
"""Approximate nearest neighbours by faiss, with an effort that a measured recall decides."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import faiss

#: Rows whose exact neighbours the recall is measured on.
RECALL_SAMPLE = 200
#: Links per node of the HNSW graph, and the length of the list its construction searches with.
_LINKS, _CONSTRUCTION = 32, 80
_FIRST_PROBES, _FIRST_LIST, _LONGEST_LIST = 8, 64, 4096


def search(
    features: Tensor, k: int, metric: str, backend: str, min_recall: float
) -> tuple[Tensor, Tensor, dict[str, object]]:
    """As `fclearn._neighbours.search`, for ``"faiss"`` (flat or inverted file) and ``"hnsw"``.

    The effort (lists probed, or length of the search list) doubles until a sample of rows reaches
    ``min_recall``; only then are all rows searched, and the sample's recall is that of the result.

    Raises:
        ValueError: The largest effort does not reach ``min_recall``.
    """
    rows = features.detach().float().cpu()
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows, dim=1)
    array = np.ascontiguousarray(rows.numpy())
    index, facts, efforts = _make_index(array, metric, backend)
    truth = _Truth(rows, k, metric)
    sample = truth.sample.numpy()
    recall = 0.0
    for effort in efforts:
        _set_effort(index, facts, effort)
        recall = truth.recall(_query(index, array[sample], sample, k)[0])
        if recall >= min_recall:
            break
    else:
        raise ValueError(
            f"min_recall: expected a recall of at least {min_recall:g}, but backend {backend!r} "
            f"reaches {recall:.3f} at its largest effort; lower it, or use backend='exact'"
        )
    indices, similarities = _query(index, array, np.arange(len(array)), k)
    if metric == "l2":
        similarities = -similarities
    similarities[indices < 0] = 0
    facts |= {"recall": recall, "recall_sample": len(sample)}
    return torch.from_numpy(indices), torch.from_numpy(similarities), facts


def _make_index(
    array: np.ndarray, metric: str, backend: str
) -> tuple[faiss.Index, dict[str, object], list[int]]:
    """A filled index, what it is, and the efforts to try."""
    import faiss  # noqa: PLC0415  (optional, and only these backends need it)

    num_rows, dim = array.shape
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    if backend == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, _LINKS, kind)
        graph.hnsw.efConstruction = _CONSTRUCTION
        graph.add(array)
        return graph, {"index": "hnsw"}, _doubling(_FIRST_LIST, _LONGEST_LIST)
    flat = faiss.IndexFlatL2(dim) if metric == "l2" else faiss.IndexFlatIP(dim)
    # An inverted file needs about 40 rows per cell to train on.
    cells = min(int(4 * math.sqrt(num_rows)), num_rows // 40)
    if cells < 64:
        flat.add(array)
        return flat, {"index": "flat"}, [1]
    inverted = faiss.IndexIVFFlat(flat, dim, cells, kind)
    inverted.train(array)
    inverted.add(array)
    return inverted, {"index": "ivf", "cells": cells}, _doubling(_FIRST_PROBES, cells)


def _doubling(first: int, last: int) -> list[int]:
    """From first to last, each at most twice the one before."""
    steps = [first]
    while steps[-1] < last:
        steps.append(min(2 * steps[-1], last))
    return steps


def _set_effort(index: faiss.Index, facts: dict[str, object], effort: int) -> None:
    import faiss  # noqa: PLC0415  (as above)

    name = {"ivf": "nprobe", "hnsw": "efSearch"}.get(str(facts["index"]))
    if name is not None:
        faiss.ParameterSpace().set_index_parameter(index, name, effort)
        facts[name] = effort


def _query(
    index: faiss.Index, queries: np.ndarray, own: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of the queries, which are rows ``own`` of the index, without these rows."""
    distances, found = index.search(queries, k + 1)
    # The row itself is usually first, but not among equal rows: drop it wherever it is.
    is_self = found == own[:, None]
    order = np.argsort(is_self, axis=1, kind="stable")[:, :k]
    indices = np.take_along_axis(found, order, axis=1)
    return indices.astype(np.int32), np.take_along_axis(distances, order, axis=1)


class _Truth:
    """Exact similarities of a spread sample of rows, and how much of their best a list has."""

    def __init__(self, rows: Tensor, k: int, metric: str) -> None:
        num_rows = rows.shape[0]
        self.sample = torch.linspace(0, num_rows - 1, min(RECALL_SAMPLE, num_rows)).long()
        self._similarities = rows[self.sample] @ rows.T
        if metric == "l2":
            squares = rows.square().sum(1)
            self._similarities = 2 * self._similarities - squares - squares[self.sample, None]
        own = self.sample[:, None]
        size = self._similarities.gather(1, own).abs().amax() + self._similarities.abs().amax()
        self._similarities.scatter_(1, own, -math.inf)
        # Any row as similar as the k-th best counts, up to rounding: copies of a row are equals.
        last = self._similarities.topk(k, dim=1).values[:, -1:]
        self._least = last - 1e-6 * size

    def recall(self, indices: np.ndarray) -> float:
        """Mean share of the k neighbours of the sample that are among its best."""
        named = torch.from_numpy(indices).long()
        found = self._similarities.gather(1, named.clamp(min=0))
        return float(((found >= self._least) & (named >= 0)).float().mean())
