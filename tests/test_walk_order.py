# SPDX-License-Identifier: Apache-2.0
"""Walks over a renumbered graph that read and write rows in the caller's order."""

from __future__ import annotations

import pytest
import torch
from graph_samples import row_stochastic

from fcl_ext import ops

# (nodes, edges, dim, share of padding): dims around every vector and panel width.
SAMPLES = [
    (0, 0, 3, 0.0),
    (1, 1, 1, 0.0),
    (4, 9, 0, 0.0),
    (30, 90, 7, 0.1),
    (30, 90, 31, 1.0),
    (50, 400, 33, 0.2),
    (60, 500, 129, 0.2),
    (25, 9000, 200, 0.0),
    (20, 60, 300, 0.0),
]


def _inputs(sample, dtype, index=torch.int64):
    nodes, edges, dim, padding = sample
    crow, col, values = row_stochastic(nodes, edges, padding=padding, index=index, dtype=dtype)
    draw = torch.Generator().manual_seed(7)
    features, state = (torch.randn(nodes, dim, dtype=dtype, generator=draw) for _ in range(2))
    order = torch.randperm(nodes, generator=draw)
    return (crow, col, values), state, features, order


def _by_hand(arrays, state, features, order, *options):
    walked = ops.random_walk_resume(*arrays, state[order], features[order], 0.9, *options)
    return torch.empty_like(walked).index_copy_(0, order, walked)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("dtype", "num_steps", "num_bf16_steps"),
    [
        *[(torch.float32, steps, 0) for steps in (0, 1, 2, 5)],
        *[(torch.float32, steps, halves) for steps, halves in ((1, 1), (3, 1), (4, 3), (4, 4))],
        *[(torch.float64, steps, 0) for steps in (1, 3)],
    ],
)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_rows_by_order_are_rows_moved_by_hand(sample, dtype, num_steps, num_bf16_steps, index):
    arrays, state, features, order = _inputs(sample, dtype, index)
    steps = num_steps, num_bf16_steps
    kept = state.clone(), features.clone()
    got = ops.random_walk_resume(*arrays, state, features, 0.9, *steps, order=order)
    assert torch.equal(got, _by_hand(arrays, state, features, order, *steps))
    assert torch.equal(state, kept[0])
    assert torch.equal(features, kept[1])


@pytest.mark.parametrize("num_bf16_steps", [0, 2])
def test_a_walk_from_its_features_and_one_from_a_bfloat16_state(num_bf16_steps):
    arrays, state, features, order = _inputs((60, 500, 129, 0.2), torch.float32)
    for start in (features, state.bfloat16()):
        got = ops.random_walk_resume(*arrays, start, features, 0.9, 3, num_bf16_steps, order=order)
        assert torch.equal(got, _by_hand(arrays, start, features, order, 3, num_bf16_steps))


@pytest.mark.parametrize("dim", [40, 100])
def test_panels_of_columns(monkeypatch, dim):
    """On a graph larger than the cache that is told, columns are walked a few at a time."""
    arrays, state, features, order = _inputs((2000, 9000, dim, 0.1), torch.float32)
    whole = _by_hand(arrays, state, features, order, 3, 0)
    monkeypatch.setenv("FCL_CACHE_BYTES", str(2000 * 4 * 20))
    got = ops.random_walk_resume(*arrays, state, features, 0.9, 3, order=order)
    assert torch.equal(got, whole)


@pytest.mark.parametrize("rows", [[0, 1, 1], [0, 1, 3], [0, -1, 1]])
def test_what_is_no_permutation_is_refused(rows):
    arrays, state, features, _ = _inputs((3, 6, 4, 0.0), torch.float32)
    with pytest.raises(RuntimeError, match=r"random_walk_resume: expected order to hold each of 0"):
        ops.random_walk_resume(*arrays, state, features, 0.9, 2, order=torch.tensor(rows))
