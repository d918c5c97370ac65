# SPDX-License-Identifier: Apache-2.0
"""Ten steps of the walk on a fixed-degree graph: ours and what torch offers.

Run: ``pytest bench/bench_random_walk.py --shapes full``. ``extra_info`` has the bytes gathered per
second (every edge reads one row of the state), which is what bounds a step on a random graph.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fcl_ext

# (nodes, neighbours, dim)
SMOKE = [(500, 8, 32)]
FULL = [(200_000, 32, 128), (1_000_000, 32, 64), (200_000, 100, 512)]
DAMPING, NUM_STEPS = 0.9, 10


def _ours(col: Tensor, values: Tensor, features: Tensor) -> Tensor:
    nodes, k = col.shape
    crow = torch.arange(nodes + 1) * k
    return fcl_ext.random_walk(
        crow, col.flatten(), values.flatten(), features, damping=DAMPING, num_steps=NUM_STEPS
    )


def _torch_csr(col: Tensor, values: Tensor, features: Tensor) -> Tensor:
    nodes, k = col.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse tensors a beta feature
        matrix = torch.sparse_csr_tensor(
            torch.arange(nodes + 1) * k, col.flatten(), values.flatten(), (nodes, nodes)
        )
    state = features
    for _ in range(NUM_STEPS):
        state = torch.addmm(features, matrix, state, beta=1 - DAMPING, alpha=DAMPING)
    return state


def _embedding_bag(col: Tensor, values: Tensor, features: Tensor) -> Tensor:
    state = features
    for _ in range(NUM_STEPS):
        walked = F.embedding_bag(col, state, per_sample_weights=values, mode="sum")
        state = DAMPING * walked + (1 - DAMPING) * features
    return state


@pytest.mark.parametrize("peer", [_ours, _torch_csr, _embedding_bag], ids=lambda f: f.__name__)
def test_walk(benchmark, shape, peer):
    nodes, k, dim = shape
    generator = torch.Generator().manual_seed(0)
    col = torch.randint(0, nodes, (nodes, k), generator=generator, dtype=torch.int32)
    values = torch.softmax(torch.rand(nodes, k, generator=generator), dim=1)
    features = torch.randn(nodes, dim, generator=generator)
    benchmark.group = f"random_walk {NUM_STEPS} steps cpu {nodes}x{k}x{dim}, random graph"
    result = benchmark.pedantic(peer, (col, values, features), rounds=8, warmup_rounds=1)
    expected = _embedding_bag(col, values, features)
    assert torch.allclose(result, expected, rtol=1e-4, atol=1e-5)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["gather_gb_per_s"] = 4 * NUM_STEPS * nodes * k * dim / seconds / 1e9
