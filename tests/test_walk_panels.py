# SPDX-License-Identifier: Apache-2.0
"""Walks over panels of columns: taken for graphs without locality, and the same to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fcl_ext
from fcl_ext import ops

NODES, DIM = 5000, 70
# Holds 16 columns of float32 for every node, not all 70.
CACHE = 5000 * 4 * 40


def _graph(dtype=torch.float32, col_dtype=torch.int32) -> tuple[Tensor, Tensor, Tensor]:
    """Two random neighbours per node, one of them now and then padding."""
    generator = torch.Generator().manual_seed(0)
    col = torch.randint(-1, NODES, (NODES * 2,), generator=generator).to(col_dtype)
    values = torch.rand(NODES * 2, generator=generator, dtype=dtype) / 2
    return torch.arange(0, 2 * NODES + 1, 2), col, values


def _features(dim=DIM, dtype=torch.float32) -> Tensor:
    return torch.randn(NODES, dim, generator=torch.Generator().manual_seed(1), dtype=dtype)


def _both(monkeypatch, walk) -> tuple[Tensor, Tensor]:
    """What `walk` gives over panels and over whole rows."""
    monkeypatch.setenv("FCL_CACHE_BYTES", str(CACHE))
    in_panels = walk()
    monkeypatch.setenv("FCL_CACHE_BYTES", str(10**9))
    return in_panels, walk()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("col_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_same_to_the_last_bit(monkeypatch, dtype, col_dtype, num_steps):
    half = dtype == torch.bfloat16
    arrays = _graph(torch.float32 if half else dtype, col_dtype)
    features = _features(dtype=dtype)
    in_panels, whole = _both(
        monkeypatch, lambda: fcl_ext.random_walk(*arrays, features, num_steps=num_steps)
    )
    assert torch.equal(in_panels, whole)
    assert in_panels.dtype == dtype


@pytest.mark.parametrize("num_bf16_steps", [0, 3, 5])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_resumed_walks_are_the_same(monkeypatch, num_bf16_steps, state_dtype):
    arrays, features = _graph(), _features()
    state = features.flip(0).to(state_dtype)
    in_panels, whole = _both(
        monkeypatch,
        lambda: ops.random_walk_resume(*arrays, state, features, 0.9, 5, num_bf16_steps),
    )
    # The last step of a walk in bfloat16 stores bfloat16.
    assert in_panels.dtype == whole.dtype
    assert torch.equal(in_panels, whole)


def test_gradients_are_the_same(monkeypatch):
    crow, col, values = _graph(torch.float64)
    features = _features(dtype=torch.float64)

    def gradients() -> Tensor:
        leaf = features.clone().requires_grad_()
        fcl_ext.random_walk(crow, col, values, leaf, num_steps=3).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    assert torch.equal(*_both(monkeypatch, gradients))


@pytest.mark.parametrize("dim", [1, 3, 7, 8, 12, 15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_do_not_know_how_many_they_are(dim, dtype):
    arrays, features = _graph(dtype), _features(dtype=dtype)
    alone = fcl_ext.random_walk(*arrays, features[:, :dim].contiguous(), num_steps=3)
    assert torch.equal(alone, fcl_ext.random_walk(*arrays, features, num_steps=3)[:, :dim])


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 15, 16, 17, 31])
@pytest.mark.parametrize("iterate_dtype", [None, torch.bfloat16])
def test_rows_shorter_than_a_cache_line(dim, iterate_dtype):
    arrays, features = _graph(), _features(dim)
    walked = fcl_ext.random_walk(*arrays, features, num_steps=4, iterate_dtype=iterate_dtype)
    _, col, values = arrays
    keep = col >= 0
    rows = torch.arange(NODES).repeat_interleave(2)[keep]
    expected = start = features.double()
    for _ in range(4):
        moved = torch.zeros_like(start).index_add_(
            0, rows, values[keep, None].double() * expected[col[keep].long()]
        )
        expected = 0.9 * moved + 0.1 * start
    error = (walked.double() - expected).norm() / expected.norm()
    assert error < (1e-6 if iterate_dtype is None else 2e-3)
