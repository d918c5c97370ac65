# SPDX-License-Identifier: Apache-2.0
"""The walk to a tolerance, by the operator and from Python: one rule of when to stop."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from walk_samples import float_features, normalized_graph, walk_limit

import fcl_ext
import reference
from fcl_ext import ops
from fclearn import KnnGraph, _power


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("damping", [0.3, 0.9])
@pytest.mark.parametrize("prepared", [False, True])
def test_watched_tolerance_is_kept(prepared, damping, transpose):
    graph, features = normalized_graph(mode="row"), float_features(dtype=torch.float64)
    limit = walk_limit(graph, features, damping, transpose=transpose)
    walked = (graph.prepare() if prepared else graph).walk(
        features, damping, tol=1e-7, transpose=transpose
    )
    error = (walked - limit).abs()
    if transpose:
        assert error.sum(0).max() <= 1e-7 * features.abs().sum(0).max()
    else:
        assert error.max() <= 1e-7 * features.abs().max()


def test_watched_tolerance_ends_in_rounding_noise():
    """float32 cannot come within 1e-9, so the walk ends where steps no longer bring it nearer."""
    graph, features = normalized_graph(mode="row"), float_features(dtype=torch.float32)
    limit = walk_limit(graph, features.double(), 0.9)
    assert (graph.walk(features, tol=1e-9) - limit).abs().max() < 3e-6


def _taken(arrays, features, damping, tol, transposed, monkeypatch):
    """The state and the number of steps of the walk that comes back to Python."""
    steps, resume = [], ops.random_walk_resume

    def counted(*arguments):
        steps.append(arguments[-1])
        return resume(*arguments)

    monkeypatch.setattr(ops, "random_walk_resume", counted)
    options = {"transposed": transposed, "progress": None}
    state = _power.walk_to_tolerance(arrays, features, damping, tol, **options)
    return state, sum(steps)


@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("damping", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("transpose", [False, True])
def test_watched_walks_stop_at_the_halving_that_follows(transpose, damping, tol, monkeypatch):
    """One rule: the operator looks at every step, the walk from Python once per halving."""
    graph, features = normalized_graph(mode="row"), float_features()
    crow, col, values = graph.crow_indices, graph.col_indices, graph.values
    if transpose:
        crow, col, order = fcl_ext.csr_transpose(crow, col)
        values = values[order]
    arrays = crow, col, values
    _, steps = ops.random_walk_tol(
        *arrays, features, damping, tol, 10_000, "sum" if transpose else "max"
    )
    halving = math.ceil(math.log(0.5) / math.log(damping))
    _, taken = _taken(arrays, features, damping, tol, transpose, monkeypatch)
    assert taken == math.ceil(int(steps) / halving) * halving


def test_the_bound_counts_rows_that_sum_to_more_than_one(monkeypatch):
    """A node that walks to itself is as far from its limit as the bound says, to rounding."""
    damping, weight = 0.999, 1 + 9e-5
    contraction = damping * weight
    halving = math.ceil(math.log(0.5) / math.log(contraction))
    limit = (1 - damping) / (1 - contraction)
    # Looked at there, the walk is just not near enough; a bound with weight 1 would say it is.
    tol = 0.95 * (limit - 1) * contraction ** (3 * halving)
    arrays = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([weight], dtype=torch.float64)
    start = torch.ones(1, 1, dtype=torch.float64)
    state, taken = _taken(arrays, start, damping, tol, False, monkeypatch)
    assert taken == 4 * halving
    assert abs(float(state) - limit) <= tol
    exact, steps = ops.random_walk_tol(*arrays, start, damping, tol, 10_000, "max")
    assert 3 * halving < int(steps) < taken
    assert abs(float(exact) - limit) <= tol


@pytest.mark.parametrize("transpose", [False, True])
def test_walks_with_and_without_gradients_keep_one_tolerance(transpose):
    graph, features = normalized_graph(mode="row"), float_features()
    limit = walk_limit(graph, features, 0.9, transpose=transpose)
    size = features.abs().sum(0).max() if transpose else features.abs().max()
    for rows in (features, features.clone().requires_grad_()):
        distance = (graph.walk(rows, tol=1e-6, transpose=transpose) - limit).abs()
        assert (distance.sum(0) if transpose else distance).max() <= 1e-6 * size


def test_watched_tolerance_refuses_what_has_no_bound():
    features = float_features(3, 2)
    crow, col = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 0])
    heavy = KnnGraph.from_csr(crow, col, torch.tensor([1.0, 1.5, 0.5])).normalize(mode="none")
    light = KnnGraph.from_csr(crow, col, torch.ones(3)).normalize(mode="none")
    # With gradients, other code walks.
    for rows in (features, features.clone().requires_grad_()):
        for transpose in (False, True):
            with pytest.raises(ValueError, match=r"walk: .* sum to at most 1 .*, got 1\.5"):
                heavy.walk(rows, tol=1e-3, transpose=transpose)
            with pytest.raises(ValueError, match="features: expected finite numbers"):
                light.walk(rows / 0, tol=1e-3, transpose=transpose)
            full = KnnGraph.from_csr(crow, col, torch.full((3,), 1.00005)).normalize(mode="none")
            with pytest.raises(ValueError, match=r"row sum to be below 1, got 0\.99999"):
                full.walk(rows, 0.99999, tol=1e-3, transpose=transpose)
    largest = torch.full((3, 1), torch.finfo(torch.float32).max)
    with pytest.raises(ValueError, match="features: expected numbers small enough to walk, but st"):
        full.walk(largest, tol=1e-3)


def _gradients(graph, features, grad, damping, *, transpose=False):
    """To features and to edges, by dense solves in float64."""
    dense = reference.csr_to_dense(
        graph.crow_indices, graph.col_indices, graph.values, graph.num_nodes
    )
    walked = dense.T if transpose else dense
    eye = torch.eye(graph.num_nodes, dtype=torch.float64)
    limit = (1 - damping) * torch.linalg.solve(eye - damping * walked, features)
    adjoint = (1 - damping) * torch.linalg.solve(eye - damping * walked.T, grad)
    to_walked = damping / (1 - damping) * adjoint @ limit.T
    row = torch.arange(graph.num_nodes).repeat_interleave(graph.crow_indices.diff())
    to_dense = to_walked.T if transpose else to_walked
    return adjoint, to_dense[row, graph.col_indices.long()]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("damping", [0.5, 0.9, 0.99])
def test_implicit_gradients_are_as_accurate_as_the_tolerance(damping, transpose):
    graph, features = normalized_graph(mode="row"), float_features()
    grad = torch.randn(
        features.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    expected = _gradients(graph, features, grad, damping, transpose=transpose)
    errors = []
    for tol in (1e-1, 1e-3, 1e-5, 1e-7, 1e-9):
        values, rows = graph.values.clone().requires_grad_(), features.clone().requires_grad_()
        walked = fcl_ext.random_walk(
            graph.crow_indices, graph.col_indices, values, rows,
            damping=damping, tol=tol, transpose=transpose,
        )  # fmt: skip
        got = torch.autograd.grad(walked, (rows, values), grad)
        off = [(one - other).abs() for one, other in zip(got, expected, strict=True)]
        # The bounds of the docstring; the other way round, F and G change places.
        if transpose:
            bound, each = grad.abs().max(), off[0].max()
            other = features.abs().sum(0).max()
        else:
            bound, each = grad.abs().sum(0).max(), off[0].sum(0).max()
            other = features.abs().max()
        assert each <= tol * bound
        width = features.shape[1]
        assert off[1].max() <= damping / (1 - damping) * tol * (2 + tol) * width * bound * other
        errors.append([float(one.max()) for one in off])
    for looser, tighter in pairwise(errors):
        assert tighter[0] < looser[0] / 10
        assert tighter[1] < looser[1] / 10
