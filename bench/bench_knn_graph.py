# SPDX-License-Identifier: Apache-2.0
"""Exact k nearest other rows of every row: ours, faiss, and blocks of torch's product and top-k.

Run: ``pytest bench/bench_knn_graph.py --shapes full``.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fcl_ext

# (rows, dim, neighbours)
SMOKE = [(600, 32, 8)]
FULL = [(50_000, 128, 32), (50_000, 128, 1), (20_000, 512, 32)]
_BLOCK = 1024


def _ours(features: Tensor, k: int) -> Tensor:
    return fcl_ext.knn_graph(features, k)[0]


def _faiss(features: Tensor, k: int) -> Tensor:
    faiss = pytest.importorskip("faiss")
    unit = F.normalize(features, dim=1).numpy()
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    found = torch.from_numpy(index.search(unit, k + 1)[1])
    # Drop the row itself, wherever ties have put it.
    others = found != torch.arange(len(found))[:, None]
    others &= others.cumsum(1) <= k
    return found[others].view(-1, k)


def _torch_topk(features: Tensor, k: int) -> Tensor:
    unit = F.normalize(features, dim=1)
    found = []
    for begin in range(0, len(unit), _BLOCK):
        similarities = unit[begin : begin + _BLOCK] @ unit.T
        rows = torch.arange(len(similarities))
        similarities[rows, begin + rows] = -2.0
        found.append(similarities.topk(k, dim=1).indices)
    return torch.cat(found)


@pytest.mark.parametrize("peer", [_ours, _faiss, _torch_topk], ids=lambda f: f.__name__)
def test_knn_graph(benchmark, shape, peer):
    rows, dim, k = shape
    features = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))
    benchmark.group = f"knn_graph cpu {rows}x{dim}, k={k}"
    indices = benchmark.pedantic(peer, (features, k), rounds=8, warmup_rounds=1)
    expected = _torch_topk(features, k)
    # Neighbours may swap where similarities differ by rounding only.
    same = (indices.long().sort(1).values == expected.sort(1).values).float().mean()
    assert same > 0.999
