# SPDX-License-Identifier: Apache-2.0
"""Walk-weighted positives against a dense solve, and in the method that takes them."""

from __future__ import annotations

import pytest
import torch

import fcl_ext
from fclearn import KnnGraph
from fclearn.methods import METHODS
from fclearn.methods.base import Assets
from fclearn.positives import walk_positives


def _data(rows=60, classes=5):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, 8, generator=generator)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[:classes] = torch.arange(classes)
    return features, labels


def _dense(graph, labels, damping):
    """H by definition."""
    nodes = len(labels)
    walk = torch.zeros(nodes, nodes)
    rows = torch.arange(nodes).repeat_interleave(graph.crow_indices.diff())
    walk[rows, graph.col_indices.long()] = graph.values
    one_hot = torch.nn.functional.one_hot(labels).double()
    return (1 - damping) * torch.linalg.solve(
        torch.eye(nodes).double() - damping * walk.double(), one_hot
    )


@pytest.mark.parametrize("damping", [0.3, 0.8])
def test_weights_are_those_of_the_walk(damping):
    features, labels = _data()
    graph = KnnGraph.build(features, 6).normalize(temperature=0.1)
    sets = walk_positives(graph, labels, damping=damping, epsilon=1e-6)
    expected = _dense(graph, labels, damping)
    expected /= expected.sum(0)
    found = torch.zeros(5, 60, dtype=torch.float64)
    for label in range(5):
        edges = slice(sets.crow_indices[label], sets.crow_indices[label + 1])
        found[label, sets.col_indices[edges]] = sets.log_weights[edges].double().exp()
    torch.testing.assert_close(found, expected.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(1), torch.ones(5, dtype=torch.float64))


def test_without_a_walk_they_are_the_class():
    """Damping near 0: the plain set of `PositiveSets.from_labels`, equal weights."""
    features, labels = _data()
    graph = KnnGraph.build(features, 6).normalize(temperature=0.1)
    weighted = walk_positives(graph, labels, damping=1e-3, epsilon=0.5)
    plain = fcl_ext.PositiveSets.from_labels(labels)
    assert torch.equal(weighted.crow_indices, plain.crow_indices)
    assert torch.equal(weighted.col_indices, plain.col_indices)
    x = torch.nn.functional.normalize(features, dim=1)
    losses = [
        fcl_ext.compat_supcon(x, labels, x, positives=sets, reduction="none")
        for sets in (weighted, plain)
    ]
    torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-2)


def test_unlabelled_rows_count_where_they_lead():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    graph = KnnGraph.build(features, 1).normalize()
    sets = walk_positives(graph, torch.tensor([0, 1, -1]), damping=0.5)
    assert 2 in sets.col_indices[: sets.crow_indices[1]].tolist()


def test_method_takes_weighted_positives():
    features, labels = _data()
    assets = Assets(labels, features)
    embeddings = torch.nn.functional.normalize(features, dim=1).requires_grad_()
    values = []
    for name in ("ni-fcl", "ni-fcl-instance-walk"):
        torch.manual_seed(0)
        spec = METHODS[name]
        terms = spec.build(assets, 8, spec.defaults)
        rows = torch.arange(60)
        values.append(sum(t.weight * t.module(embeddings, labels, rows) for t in terms))
        (grad,) = torch.autograd.grad(values[-1], embeddings)
        assert torch.isfinite(grad).all()
    assert values[0] != values[1]


def test_labels_that_are_large_ids_are_refused():
    """By the sets, which have a place for every class; `walk_labels` alone takes them."""
    features, labels = _data()
    graph = KnnGraph.build(features, 6).normalize(temperature=0.1)
    with pytest.raises(
        ValueError, match=r"labels: expected numbers below 16777216 .* got 20000004"
    ):
        walk_positives(graph, labels + 20_000_000)


def test_without_labelled_rows_there_are_no_sets():
    graph = KnnGraph.from_knn(torch.tensor([[1], [0], [1]]), torch.ones(3, 1)).normalize()
    sets = walk_positives(graph, torch.tensor([-3, -2, -3]))
    assert sets.crow_indices.tolist() == [0]
