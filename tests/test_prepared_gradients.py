# SPDX-License-Identifier: Apache-2.0
"""Gradients through a renumbered graph, to features and to its weights as they were given."""

from __future__ import annotations

import pytest
import torch

from fclearn import KnnGraph

NODES, NEIGHBOURS, CLUSTER, DAMPING = 1024, 4, 32, 0.8


def _shuffled_clusters():
    """Columns of a graph whose clusters only a new order brings together."""
    generator = torch.Generator().manual_seed(0)
    first = torch.arange(NODES)[:, None] // CLUSTER * CLUSTER
    near = first + torch.randint(0, CLUSTER, (NODES, NEIGHBOURS), generator=generator)
    old = torch.randperm(NODES, generator=generator)
    return torch.argsort(old)[near[old]].flatten()


def _dense(col, values, features, transpose, num_steps):
    rows = torch.arange(NODES).repeat_interleave(NEIGHBOURS)
    walk = torch.zeros(NODES, NODES, dtype=torch.float64)
    walk = walk.index_put((rows, col), values, accumulate=True)
    walk = walk.T if transpose else walk
    if num_steps is None:
        matrix = torch.eye(NODES, dtype=torch.float64) - DAMPING * walk
        return (1 - DAMPING) * torch.linalg.solve(matrix, features)
    state = features
    for _ in range(num_steps):
        state = DAMPING * walk @ state + (1 - DAMPING) * features
    return state


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("num_steps", [5, None])
def test_gradients_match_a_dense_walk(num_steps, transpose):
    generator = torch.Generator().manual_seed(1)
    col = _shuffled_clusters()
    values = torch.rand(len(col), dtype=torch.float64, generator=generator) / NEIGHBOURS
    features = torch.randn(NODES, 3, dtype=torch.float64, generator=generator)
    leaves = [t.requires_grad_() for t in (features, values)]
    crow = torch.arange(0, len(col) + 1, NEIGHBOURS)
    graph = KnnGraph.from_csr(crow, col.int(), values).normalize(mode="none").prepare()
    assert graph.prepared is not None
    tol = 1e-10 if num_steps is None else None
    walked = graph.walk(features, DAMPING, num_steps=num_steps, tol=tol, transpose=transpose)
    expected = _dense(col, values, features, transpose, num_steps)
    torch.testing.assert_close(walked, expected, rtol=1e-8, atol=1e-9)
    grads = torch.autograd.grad(walked.square().sum(), leaves)
    truths = torch.autograd.grad(expected.square().sum(), leaves)
    for mine, truth in zip(grads, truths, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-7, atol=1e-8)
