# SPDX-License-Identifier: Apache-2.0
"""class_walk against the dense solve: never above it, and never short by more than was allowed."""

from __future__ import annotations

import pytest
import torch
from graph_samples import random_csr, row_stochastic
from hypothesis import given
from hypothesis import strategies as st

import reference
from fclearn import KnnGraph

OP = torch.ops.fcl.class_walk.default


def _labels(nodes, classes, seed=0, unlabelled=0.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, max(classes, 1), (nodes,), generator=generator)
    labels[torch.rand(nodes, generator=generator) < unlabelled] = -1
    return labels


def _onehot(labels, classes):
    onehot = torch.zeros(len(labels), classes, dtype=torch.float64)
    known = labels >= 0
    onehot[known, labels[known]] = 1
    return onehot


def _dense(crow, col, values, columns):
    return reference.csr_to_dense(crow, col, values.double(), columns)


@given(
    nodes=st.integers(1, 40),
    edges=st.integers(0, 300),
    classes=st.integers(1, 12),
    damping=st.floats(0.05, 0.95),
    epsilon=st.floats(1e-3, 0.5),
    padding=st.floats(0, 1),
    index=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 2**31),
)
def test_bound_of_every_row(nodes, edges, classes, damping, epsilon, padding, index, seed):
    graph = row_stochastic(nodes, edges, padding=padding, index=index, seed=seed)
    labels = _labels(nodes, classes, seed, unlabelled=0.2)
    walkable = KnnGraph.from_csr(*graph[:2], graph[2].nan_to_num()).normalize(mode="none")
    crow, found, weights = walkable.walk_labels(
        labels, damping, epsilon=epsilon, num_classes=classes
    )
    matrix = _dense(*graph[:2], graph[2].nan_to_num(), nodes)
    exact = reference.random_walk_limit(matrix, _onehot(labels, classes), damping=damping)
    missing = exact - _dense(crow, found, weights, classes)
    assert missing.min() >= -1e-6
    assert missing.sum(1).max() <= epsilon + 1e-6
    assert (weights > 0).all()
    for begin, end in zip(crow[:-1].tolist(), crow[1:].tolist(), strict=True):
        row = found[begin:end].tolist()
        assert row == sorted(set(row))


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_steps_without_a_cut_by_definition(num_steps):
    crow, col, values = row_stochastic(30, 200, dtype=torch.float32)
    values = values.nan_to_num()
    labels = _labels(30, 5)
    expected = torch.zeros(30, 5, dtype=torch.float64)
    for _ in range(num_steps):
        expected = 0.8 * _dense(crow, col, values, 30) @ expected + 0.2 * _onehot(labels, 5)
    out = OP(crow, col, values, labels, 5, 0.8, 0.0, num_steps)
    torch.testing.assert_close(_dense(*out, 5), expected, rtol=1e-6, atol=1e-7)


def test_cut_takes_the_smallest_entries():
    # Node 0 reaches classes 0 .. 3 with 0.5, 0.3, 0.15 and 0.05 of its walks.
    crow, col = torch.tensor([0, 4, 4, 4, 4, 4]), torch.tensor([1, 2, 3, 4])
    values = torch.tensor([0.5, 0.3, 0.15, 0.05])
    labels = torch.tensor([-1, 0, 1, 2, 3])
    for drop, kept in [(0.0, [0, 1, 2, 3]), (0.02, [0, 1, 2]), (0.06, [0, 1]), (0.13, [0])]:
        out = OP(crow, col, values, labels, 4, 0.5, drop, 2)
        first = out[1][: out[0][1]].tolist()
        assert first == kept


def test_sparsity_on_a_clustered_graph():
    nodes, size = 6000, 20
    generator = torch.Generator().manual_seed(0)
    cluster = torch.arange(nodes) // size
    col = cluster[:, None] * size + torch.randint(0, size, (nodes, 6), generator=generator)
    stray = torch.rand(nodes, 6, generator=generator) < 0.02
    col[stray] = torch.randint(0, nodes, (int(stray.sum()),), generator=generator)
    graph = KnnGraph.from_knn(col, torch.zeros(nodes, 6)).normalize()
    crow, _, weights = graph.walk_labels(cluster, 0.8, epsilon=0.05)
    assert len(weights) < 0.03 * nodes * 300
    sums = torch.segment_reduce(weights, "sum", offsets=crow, axis=0)
    assert sums.min() >= 0.95 - 1e-5
    assert sums.max() <= 1 + 1e-5


def test_labels_far_apart():
    graph = KnnGraph.build(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), 4)
    graph = graph.normalize()
    labels = _labels(40, 3, unlabelled=0.2)
    far = torch.tensor([5, 70_000, 2**31 - 1])
    crow, classes, weights = graph.walk_labels(labels, 0.7)
    given = torch.where(labels < 0, labels, far[labels.clamp(min=0)])
    found = graph.walk_labels(given, 0.7)
    assert found[1].dtype == torch.int32
    assert torch.equal(found[0], crow)
    assert torch.equal(found[1].long(), far[classes.long()])
    assert torch.equal(found[2], weights)
    apart = torch.stack([given, given], 1)[:, 0]  # in memory, too
    assert torch.equal(graph.walk_labels(apart, 0.7)[1], found[1])
    with pytest.raises(ValueError, match=f"labels: expected numbers below .* got {2**31}"):
        graph.walk_labels(given + 1, 0.7)
    with pytest.raises(ValueError, match="labels: expected numbers below 2\\^63"):
        graph.walk_labels(given.numpy().astype("uint64"), 0.7)


def test_does_not_depend_on_the_number_of_threads():
    crow, col, values = row_stochastic(4000, 60_000, dtype=torch.float32, index=torch.int32)
    labels = _labels(4000, 50)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(OP(crow, col, values, labels, 50, 0.8, 1e-3, 6))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_empty_inputs():
    none = torch.zeros(0)
    crow, classes, weights = OP(torch.zeros(1).long(), none.long(), none, none.long(), 0, 0.5, 0, 3)
    assert crow.tolist() == [0]
    assert len(classes) == len(weights) == 0
    graph = KnnGraph.from_knn(torch.tensor([[1], [0]]), torch.ones(2, 1)).normalize()
    assert graph.walk_labels(torch.tensor([-1, -1]))[0].tolist() == [0, 0, 0]


BAD_CALLS = [
    (lambda v, y: (v.double(), y, 3, 0.5, 0.1, 2), "expected values of dtype"),
    (lambda v, y: (v[1:], y, 3, 0.5, 0.1, 2), r"values of shape \[E\] = \[12\], got \[11\]"),
    (lambda v, y: (v, y.int(), 3, 0.5, 0.1, 2), "expected labels of dtype"),
    (lambda v, y: (v, y[1:], 3, 0.5, 0.1, 2), r"labels of shape \[N\] = \[5\], got \[4\]"),
    (lambda v, y: (v, y, -1, 0.5, 0.1, 2), r"num_classes in \[0, 2\^31\), got -1"),
    (lambda v, y: (v, y, 3, 1.0, 0.1, 2), r"damping in the open interval \(0, 1\), got 1"),
    (lambda v, y: (v, y, 3, 0.5, 1.0, 2), r"expected drop in \[0, 1\), got 1"),
    (lambda v, y: (v, y, 3, 0.5, 0.1, -2), "expected num_steps >= 0, got -2"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments, message):
    from torch._subclasses.fake_tensor import FakeTensorMode

    crow, col = random_csr(5, 5, 12)
    values, labels = torch.rand(12) / 12, _labels(5, 3)
    with pytest.raises(RuntimeError, match=f"fcl::class_walk: .*{message}"):
        OP(crow, col, *arguments(values, labels))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (crow, col, values, labels)]
        given_arguments = arguments(*fakes[2:])
        with pytest.raises(RuntimeError, match=message):
            OP(*fakes[:2], *given_arguments)


def test_bad_entries_are_named():
    crow, col = random_csr(5, 5, 12)
    values, labels = torch.rand(12) / 12, _labels(5, 3)
    with pytest.raises(RuntimeError, match="labels below num_classes = 2, got 2 at row"):
        OP(crow, col, values, labels.clamp(min=2), 2, 0.5, 0.1, 2)
    with pytest.raises(RuntimeError, match="every row of the graph to sum to at most 1"):
        OP(crow, col, 100 * values + 1, labels, 3, 0.5, 0.1, 2)
    for bad in (-0.5, torch.nan):
        broken = values.clone()
        broken[4] = bad
        with pytest.raises(RuntimeError, match=r"expected values >= 0, got .* at edge 4"):
            OP(crow, col, broken, labels, 3, 0.5, 0.1, 2)
    graph = KnnGraph.from_csr(crow, col, values).normalize()
    with pytest.raises(ValueError, match=r"epsilon: expected a number in \(0, 1\), got 0"):
        graph.walk_labels(labels, epsilon=0)
    with pytest.raises(ValueError, match=r"damping: expected a number in \(0, 1\), got 1"):
        graph.walk_labels(labels, 1.0)
    with pytest.raises(ValueError, match="the graph holds similarities"):
        KnnGraph.from_csr(crow, col, values).walk_labels(labels)


def test_opcheck_and_gradients():
    crow, col = random_csr(6, 6, 20, padding=0.2)
    values = torch.rand(20) / 20
    torch.library.opcheck(OP, (crow, col, values, _labels(6, 3), 3, 0.5, 0.01, 3))
    out = OP(crow, col, values.requires_grad_(), _labels(6, 3), 3, 0.5, 0.01, 3)
    with pytest.raises(RuntimeError, match="class_walk: it has no gradient"):
        out[2].sum().backward()
