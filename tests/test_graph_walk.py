# SPDX-License-Identifier: Apache-2.0
"""KnnGraph: normalising, walking, and what the walk means for class means."""

from __future__ import annotations

import math

import pytest
import torch
from graph_inputs import dense_matrix, random_rows
from graph_samples import random_csr
from hypothesis import given
from hypothesis import strategies as st

import reference
from fclearn import KnnGraph
from support import DEVICES


@given(
    nodes=st.integers(1, 25),
    edges=st.integers(0, 120),
    padding=st.floats(0, 1),
    temperature=st.floats(1e-3, 100),
    scale=st.sampled_from([1.0, 1e4, 1e-4]),
    seed=st.integers(0, 2**31),
)
def test_rows_of_p_sum_to_one(nodes, edges, padding, temperature, scale, seed):
    crow, col = random_csr(nodes, nodes, edges, padding=padding, seed=seed)
    values = scale * torch.randn(
        edges, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    graph = KnnGraph.from_csr(crow, col, values)
    walkable = graph.normalize(temperature=temperature)
    dense = dense_matrix(walkable)
    torch.testing.assert_close(dense.sum(1), torch.ones(nodes, dtype=torch.float64))
    assert (dense >= 0).all()
    assert (walkable.col_indices >= 0).all()
    # Edges are the old ones, plus a self-loop where there was none.
    pattern = reference.csr_to_dense(crow, col, torch.ones(edges, dtype=torch.float64), nodes)
    isolated = pattern.sum(1) == 0
    assert torch.equal(isolated, graph.isolated)
    assert (dense[pattern + torch.diag(isolated.double()) == 0] == 0).all()
    # Symmetric mode: symmetric, and no eigenvalue beyond 1.
    symmetric = dense_matrix(graph.normalize(temperature=temperature, mode="symmetric"))
    torch.testing.assert_close(symmetric, symmetric.T)
    assert torch.linalg.eigvalsh(symmetric).abs().max() <= 1 + 1e-9


def test_softmax_by_hand_and_modes():
    crow, col = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 0])
    graph = KnnGraph.from_csr(crow, col, torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64))
    first = 1 / (1 + math.exp(0.2 / 0.1))
    assert graph.normalize(0.1).values.tolist() == pytest.approx([first, 1 - first, 1.0])
    weights = graph.normalize(mode="none")
    assert torch.equal(weights.values, graph.values)
    assert weights.mode == "none"
    p = dense_matrix(graph.normalize(0.1))
    w = (p + p.T) / 2
    expected = w / (w.sum(1)[:, None] * w.sum(1)[None]).sqrt()
    torch.testing.assert_close(dense_matrix(graph.normalize(0.1, mode="symmetric")), expected)


@pytest.mark.parametrize("mode", ["row", "symmetric"])
def test_gradients_flow_through_normalize_and_walk(mode):
    crow, col = random_csr(8, 8, 30, padding=0.1)
    features = random_rows(8, 3)
    values = torch.rand(30, dtype=torch.float64, requires_grad=True)

    def walked(values):
        return KnnGraph.from_csr(crow, col, values).normalize(0.5, mode).walk(features, 0.7, 6)

    assert torch.autograd.gradcheck(walked, (values,))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("mode", ["row", "symmetric"])
def test_walk_reaches_the_limit(mode, transpose, device):
    features = random_rows(50, 6).to(device)
    graph = KnnGraph.build(features, 4).normalize(0.3, mode)
    matrix = dense_matrix(graph)
    limit = reference.random_walk_limit(matrix.T if transpose else matrix, features, damping=0.9)
    got = graph.walk(features, tol=1e-8, transpose=transpose)
    assert (got - limit).norm() <= 1e-6 * features.norm()
    steps = graph.walk(features, 0.8, num_steps=3, transpose=transpose)
    torch.testing.assert_close(
        steps,
        reference.random_walk(
            matrix.T if transpose else matrix, features, damping=0.8, num_steps=3
        ),
    )


def test_walk_takes_and_gives_the_dtype_of_the_features():
    features = random_rows(30, 5)
    graph = KnnGraph.build(features.float(), 4).normalize()
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        walked = graph.walk(features.to(dtype))
        assert walked.dtype == dtype
        torch.testing.assert_close(walked.double(), graph.walk(features), rtol=0.05, atol=0.02)


def _pagerank(matrix, damping):
    """The distribution pi = damping P^T pi + (1 - damping) / n."""
    n = len(matrix)
    uniform = torch.full((n,), 1 / n, dtype=matrix.dtype)
    return (1 - damping) * torch.linalg.solve(torch.eye(n) - damping * matrix.T, uniform)


@given(
    nodes=st.integers(3, 30),
    damping=st.floats(0.1, 0.95),
    temperature=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**31),
)
def test_refined_class_mean_is_the_pagerank_weighted_mean(nodes, damping, temperature, seed):
    # One class; the last row is an outlier that no other row points to when k is small.
    features = random_rows(nodes, 4, seed=seed)
    features[:-1] += 2
    graph = KnnGraph.build(features, min(3, nodes - 1), labels=torch.zeros(nodes, dtype=torch.long))
    graph = graph.normalize(temperature)
    matrix = dense_matrix(graph)
    refined = graph.walk(features, damping, tol=1e-12).mean(0)
    weights = _pagerank(matrix, damping)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(refined, weights @ features, rtol=0, atol=1e-9)


def test_rows_must_sum_to_one_not_columns():
    """The mistake this library avoids: with columns that sum to 1 the walk refines nothing."""
    features = torch.nn.functional.normalize(random_rows(12, 5), dim=1)
    graph = KnnGraph.build(features, 4).normalize(0.2)
    plain = features.mean(0)
    # Ours: the refined class mean differs from the plain mean, and outliers lose weight.
    refined = graph.walk(features, tol=1e-12).mean(0)
    assert (refined - plain).norm() > 1e-2
    # Column-stochastic: 1^T E = 1^T, so 1^T Z = 1^T F after every step and in the limit.
    matrix = dense_matrix(graph)
    column_stochastic = matrix / matrix.sum(0, keepdim=True).clamp(min=1e-30)
    reachable = matrix.sum(0) > 0
    column_stochastic[:, ~reachable] = torch.eye(12, dtype=torch.float64)[:, ~reachable]
    torch.testing.assert_close(column_stochastic.sum(0), torch.ones(12, dtype=torch.float64))
    crow = torch.arange(13) * 12
    col = torch.arange(12).repeat(12)
    wrong = KnnGraph.from_csr(crow, col, column_stochastic.reshape(-1)).normalize(mode="none")
    for num_steps in (1, 5, 200):
        mean = wrong.walk(features, num_steps=num_steps).mean(0)
        torch.testing.assert_close(mean, plain, rtol=0, atol=1e-14)


def test_limits_of_the_damping():
    features = random_rows(10, 3)
    graph = KnnGraph.build(features, 9).normalize(1.0)
    torch.testing.assert_close(graph.walk(features, 1e-9), features, rtol=0, atol=1e-7)
    stationary = torch.linalg.matrix_power(dense_matrix(graph), 500)[0]
    almost_all = graph.walk(features, 1 - 1e-5, tol=1e-6)
    expected = (stationary @ features).expand(10, 3)
    torch.testing.assert_close(almost_all, expected, rtol=0, atol=1e-3)


def test_walk_against_the_edges_is_personalised_pagerank():
    features = random_rows(20, 4)
    labels = torch.arange(20) % 3
    graph = KnnGraph.build(features, 5).normalize(0.3)
    onehot = torch.nn.functional.one_hot(labels).double()
    ranks = graph.walk(onehot / onehot.sum(0), 0.85, tol=1e-12, transpose=True)
    torch.testing.assert_close(ranks.sum(0), torch.ones(3, dtype=torch.float64))
    # Reading features with these ranks is averaging walked features over the class.
    means = (onehot / onehot.sum(0)).T @ graph.walk(features, 0.85, tol=1e-12)
    torch.testing.assert_close(ranks.T @ features, means, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 2.5}, r"num_steps: expected an integer, got 2\.5"),
        ({"num_steps": "2"}, "num_steps: expected an integer, got '2'"),
        ({"damping": "0.5"}, "damping: expected a number, got '0.5'"),
        ({"tol": "1e-6"}, "tol: expected a number, got '1e-6'"),
    ],
)
def test_arguments_of_another_type_are_named_in_one_line(changes, message):
    features = torch.randn(10, 3)
    graph = KnnGraph.build(features, 2).normalize(mode="symmetric")
    with pytest.raises(TypeError, match=f"^{message}$"):
        graph.walk(features, **changes)
    if "num_steps" not in changes:
        with pytest.raises(TypeError, match=f"^{message}$"):
            graph.solve(features, **changes)
