# SPDX-License-Identifier: Apache-2.0
"""graph_prepare by definition, the orders it finds, and prepared graphs that walk the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from graph_samples import random_csr
from hypothesis import given
from hypothesis import strategies as st

import reference
from fclearn import KnnGraph, _prepared

OP = torch.ops.fcl.graph_prepare.default


def _clustered(nodes=8192, size=256, degree=12, shuffle=True, seed=0):
    """Neighbours of a node are mostly in its own cluster; ids say nothing about clusters."""
    generator = torch.Generator().manual_seed(seed)
    cluster = torch.arange(nodes) // size
    col = cluster[:, None] * size + torch.randint(0, size, (nodes, degree), generator=generator)
    stray = torch.rand(nodes, degree, generator=generator) < 0.05
    col[stray] = torch.randint(0, nodes, (int(stray.sum()),), generator=generator)
    similarities = torch.rand(nodes, degree, dtype=torch.float64, generator=generator)
    if shuffle:
        old = torch.randperm(nodes, generator=generator)
        name = torch.argsort(old)
        cluster, col, similarities = cluster[old], name[col[old]], similarities[old]
    return KnnGraph.from_knn(col.int(), similarities).normalize(0.3), cluster


@given(
    nodes=st.integers(0, 40),
    edges=st.integers(0, 150),
    padding=st.floats(0, 1),
    index=st.sampled_from([torch.int32, torch.int64]),
    with_order=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_is_the_same_graph_under_new_names(nodes, edges, padding, index, with_order, seed):
    edges = edges if nodes else 0
    crow, col = random_csr(nodes, nodes, edges, padding=padding, index=index, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randperm(nodes, generator=generator) if with_order else None
    order, new_crow, new_col, edge_order = OP(crow, col, wanted)
    if with_order:
        assert torch.equal(order, wanted)
    assert torch.equal(order.sort().values, torch.arange(nodes))
    assert torch.equal(edge_order.sort().values, torch.arange(edges))
    assert new_col.dtype == index
    values = torch.randn(edges, dtype=torch.float64, generator=generator)
    before = reference.csr_to_dense(crow, col, values, nodes)
    after = reference.csr_to_dense(new_crow, new_col, values[edge_order], nodes)
    torch.testing.assert_close(after, before[order][:, order])
    for begin, end in zip(new_crow[:-1].tolist(), new_crow[1:].tolist(), strict=True):
        row = new_col[begin:end].tolist()
        assert row == sorted(c for c in row if c >= 0) + [-1] * row.count(-1)


def test_order_found_brings_clusters_together():
    graph, cluster = _clustered()
    prepared = _prepared.prepare(graph.crow_indices, graph.col_indices, graph.values)
    shuffled = _prepared.reuse(graph.crow_indices, graph.col_indices)
    found = _prepared.reuse(prepared.crow_indices, prepared.col_indices)
    best = _prepared.reuse(*_prepared_by(graph, cluster))
    assert shuffled < 1.6
    assert found > 0.8 * best > 3 * shuffled


def _prepared_by(graph, labels):
    prepared = graph.prepare(labels).prepared
    return prepared.crow_indices, prepared.col_indices


def test_reuse_by_hand():
    crow = torch.arange(0, 4 * 1024 + 1, 4)
    ring = (torch.arange(1024)[:, None] + torch.tensor([1, 2, 3, 4])) % 1024
    # Each window of 512 rows gathers its own columns and three or four of the next one.
    assert _prepared.reuse(crow, ring.flatten()) == pytest.approx(4 * 512 / 515, rel=1e-3)
    assert _prepared.reuse(crow[:1], ring.flatten()[:0]) == 1.0
    assert _prepared.reuse(crow, torch.full((4096,), -1)) == 1.0


def test_order_is_kept_only_where_it_helps():
    graph, cluster = _clustered(shuffle=False)
    assert graph.prepare().prepared is None
    assert graph.prepare(cluster).prepared is None
    shuffled, _ = _clustered()
    assert shuffled.prepare().prepared is not None
    # Labels that cut across the clusters help nothing.
    assert shuffled.prepare(torch.arange(8192) % 7).prepared is None


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("by_labels", [False, True])
@pytest.mark.parametrize("options", [{"num_steps": 6}, {"tol": 1e-10}])
def test_walks_are_the_same(options, by_labels, transpose, tmp_path):
    graph, cluster = _clustered(nodes=2048, size=64)
    prepared = graph.prepare(cluster if by_labels else None)
    assert prepared.prepared is not None
    features = torch.randn(2048, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = graph.walk(features, 0.8, transpose=transpose, **options)
    for _ in range(2):
        got = prepared.walk(features, 0.8, transpose=transpose, **options)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    prepared.save(tmp_path / "graph.safetensors")
    loaded = KnnGraph.load(tmp_path / "graph.safetensors")
    for name in ("order", "crow_indices", "col_indices", "values"):
        assert torch.equal(getattr(loaded.prepared, name), getattr(prepared.prepared, name))
    assert torch.equal(loaded.col_indices, graph.col_indices)


@pytest.mark.parametrize("transpose", [False, True])
def test_gradients_reach_features_and_similarities(transpose):
    plain, cluster = _clustered(nodes=2048, size=64, degree=4)
    crow, col = plain.crow_indices, plain.col_indices
    features = torch.randn(2048, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for prepare in (False, True):
        similarities = plain.values.clone().requires_grad_()
        leaf = features.clone().requires_grad_()
        graph = KnnGraph.from_csr(crow, col, similarities).normalize(0.3)
        if prepare:
            graph = graph.prepare(cluster)
            assert graph.prepared is not None
            with torch.no_grad():
                graph.walk(features, 0.8, num_steps=4, transpose=transpose)
        graph.walk(leaf, 0.8, num_steps=4, transpose=transpose).square().sum().backward()
        gradients.append((similarities.grad, leaf.grad))
    for mine, truth in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-12)


def test_files_with_a_bad_order_are_refused(tmp_path):
    graph, cluster = _clustered(nodes=1024, size=64)
    prepared = graph.prepare(cluster)
    path = tmp_path / "graph.safetensors"
    for bad in (prepared.prepared.order.clamp(max=5), prepared.prepared.order[:-1]):
        replace(prepared, prepared=replace(prepared.prepared, order=bad)).save(path)
        with pytest.raises(ValueError, match=r"not a valid KnnGraph file: order: expected"):
            KnnGraph.load(path)


def test_bad_arguments_are_named():
    crow, col = random_csr(5, 5, 12)
    with pytest.raises(RuntimeError, match=r"graph_prepare: expected order of shape \[N\] = \[5\]"):
        OP(crow, col, torch.arange(4))
    with pytest.raises(RuntimeError, match="graph_prepare: expected order of dtype"):
        OP(crow, col, torch.arange(5).int())
    for bad in ([0, 1, 2, 3, 3], [0, 1, 2, 3, 5], [0, 1, 2, 3, -1]):
        with pytest.raises(RuntimeError, match=r"order to hold each of 0 \.\. 4 once, got .* at 4"):
            OP(crow, col, torch.tensor(bad))
    with pytest.raises(RuntimeError, match=r"graph_prepare: expected col_indices in \[0, 5\)"):
        OP(crow, col + 3, None)
    graph, cluster = _clustered(nodes=1024, size=64)
    with pytest.raises(ValueError, match=r"labels: expected shape \[1024\], got \[1023\]"):
        graph.prepare(cluster[1:])
    with pytest.raises(ValueError, match="prepare: the graph holds similarities"):
        KnnGraph.from_csr(crow, col, torch.rand(12)).prepare()


def test_opcheck():
    crow, col = random_csr(6, 6, 20, padding=0.2)
    torch.library.opcheck(OP, (crow, col, None))
    torch.library.opcheck(OP, (crow, col.int(), torch.arange(6).flip(0)))
