# SPDX-License-Identifier: Apache-2.0
"""Exact k nearest gallery rows of each query: ours, faiss, and blocks of torch's product and top-k.

Run: ``pytest bench/bench_knn_search.py --shapes full``. Peers are parameters of one test, each
asserted to find the same; ``extra_info`` has the ratio of its time to ours in the same round, and
the fraction of the vector units' peak (2 Q G D operations).
"""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fcl_ext
from interleave import run_interleaved

# (queries, gallery rows, dim, hits)
SMOKE = [(70, 600, 32, 8)]
FULL = [(2000, 200_000, 128, 10), (2000, 200_000, 128, 128)]
_BLOCK = 512


def ours(query: Tensor, gallery: Tensor, k: int) -> Tensor:
    """The operator."""
    return fcl_ext.knn_search(query, gallery, k, metric="ip")[0]


def faiss_flat(query: Tensor, gallery: Tensor, k: int) -> Tensor:
    """A flat index, made in the call as ours packs the gallery in the call."""
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.numpy())
    return torch.from_numpy(index.search(query.numpy(), k)[1])


def torch_topk(query: Tensor, gallery: Tensor, k: int) -> Tensor:
    """A product and a top-k per block of queries."""
    return torch.cat([(rows @ gallery.T).topk(k, dim=1).indices for rows in query.split(_BLOCK)])


@pytest.mark.parametrize("peer", [ours, faiss_flat, torch_topk], ids=lambda f: f.__name__)
def test_knn_search(benchmark, shape, peer):
    num_queries, num_gallery, dim, k = shape
    generator = torch.Generator().manual_seed(0)
    query, gallery = (
        F.normalize(torch.randn(rows, dim, generator=generator), dim=1)
        for rows in (num_queries, num_gallery)
    )
    step, own = (functools.partial(f, query, gallery, k) for f in (peer, ours))
    # Neighbours may swap where similarities differ by rounding only.
    expected = torch_topk(query, gallery, k).sort(1).values
    assert (step().long().sort(1).values == expected).float().mean() > 0.999
    benchmark.group = f"knn_search float32 {num_queries} in {num_gallery}x{dim}, k={k}"
    run_interleaved(
        benchmark,
        peer.__name__,
        step,
        step if peer is ours else own,
        flops=2.0 * num_queries * num_gallery * dim,
    )
