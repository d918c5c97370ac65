# SPDX-License-Identifier: Apache-2.0
"""Exact k nearest other rows of every row: ours, faiss, and blocks of torch's product and top-k.

Run: ``pytest bench/bench_knn_graph.py --shapes full``. Peers are parameters of one test, each
asserted to find the same; ``extra_info`` has the ratio of its time to ours in the same round, and
the fraction of the vector units' peak, counting each pair once (N N D operations).
"""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fcl_ext
from interleave import run_interleaved

# (rows, dim, neighbours)
SMOKE = [(600, 32, 8)]
FULL = [(50_000, 128, 32), (20_000, 128, 32)]
# (classes, rows of each, dim, neighbours)
SEGMENTS = [(10_000, 10, 128, 8), (100, 1000, 128, 8)]
_BLOCK = 1024


def ours(features: Tensor, k: int) -> Tensor:
    """The operator."""
    return fcl_ext.knn_graph(features, k)[0]


def faiss_flat(features: Tensor, k: int) -> Tensor:
    """Every row searched in a flat index of all rows; it finds itself too."""
    faiss = pytest.importorskip("faiss")
    unit = F.normalize(features, dim=1).numpy()
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    found = torch.from_numpy(index.search(unit, k + 1)[1])
    # Drop the row itself, wherever ties have put it.
    others = found != torch.arange(len(found))[:, None]
    others &= others.cumsum(1) <= k
    return found[others].view(-1, k)


def torch_topk(features: Tensor, k: int) -> Tensor:
    """A product and a top-k per block of rows."""
    unit = F.normalize(features, dim=1)
    found = []
    for begin in range(0, len(unit), _BLOCK):
        similarities = unit[begin : begin + _BLOCK] @ unit.T
        rows = torch.arange(len(similarities))
        similarities[rows, begin + rows] = -2.0
        found.append(similarities.topk(k, dim=1).indices)
    return torch.cat(found)


@pytest.mark.parametrize("peer", [ours, faiss_flat, torch_topk], ids=lambda f: f.__name__)
def test_knn_graph(benchmark, shape, peer):
    rows, dim, k = shape
    features = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))
    step, own = (functools.partial(f, features, k) for f in (peer, ours))
    # Neighbours may swap where similarities differ by rounding only.
    expected = torch_topk(features, k).sort(1).values
    assert (step().long().sort(1).values == expected).float().mean() > 0.999
    benchmark.group = f"knn_graph float32 {rows}x{dim}, k={k}"
    run_interleaved(
        benchmark,
        peer.__name__,
        step,
        step if peer is ours else own,
        flops=float(rows) * rows * dim,
    )


def segments(features: Tensor, size: int, k: int) -> Tensor:
    """The operator, which takes classes of any size."""
    offsets = torch.arange(0, len(features) + 1, size)
    return fcl_ext.knn_graph_segments(features, offsets, k)[0]


def one_by_one(features: Tensor, size: int, k: int) -> Tensor:
    """A call of our other operator per class."""
    found = [
        fcl_ext.knn_graph(part, k)[0] + i * size for i, part in enumerate(features.split(size))
    ]
    return torch.cat(found)


def torch_bmm(features: Tensor, size: int, k: int) -> Tensor:
    """A batched product and a top-k: only where all classes have one size."""
    unit = F.normalize(features, dim=1).view(-1, size, features.shape[1])
    similarities = unit @ unit.mT
    similarities.diagonal(dim1=1, dim2=2).fill_(-2.0)
    first = torch.arange(0, len(features), size)[:, None, None]
    return (similarities.topk(k, dim=2).indices + first).flatten(0, 1)


@pytest.mark.parametrize("case", SEGMENTS, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("peer", [segments, one_by_one, torch_bmm], ids=lambda f: f.__name__)
def test_knn_graph_segments(benchmark, case, peer):
    classes, size, dim, k = case
    features = torch.randn(classes * size, dim, generator=torch.Generator().manual_seed(0))
    step, own = (functools.partial(f, features, size, k) for f in (peer, segments))
    expected = torch_bmm(features, size, k).sort(1).values
    assert (step().long().sort(1).values == expected).float().mean() > 0.999
    benchmark.group = f"knn_graph_segments float32 {classes} classes of {size}x{dim}, k={k}"
    run_interleaved(
        benchmark,
        "ours" if peer is segments else peer.__name__,
        step,
        step if peer is segments else own,
        flops=float(classes) * size * size * dim,
    )
