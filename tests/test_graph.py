# SPDX-License-Identifier: Apache-2.0
"""KnnGraph: building it, exact and approximate, and its variants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_inputs import dense_matrix, random_rows
from graph_samples import random_csr
from hypothesis import given
from hypothesis import strategies as st

import reference
from fclearn import KnnGraph, _approximate, _neighbours
from support import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_global_graph_is_knn(metric, device):
    features = random_rows(40, 6).to(device)
    graph = KnnGraph.build(features, 5, metric=metric)
    indices, similarities = reference.knn_graph(features, 5, metric=metric)
    assert graph.num_nodes == 40
    assert graph.num_edges == 200
    assert torch.equal(graph.col_indices.reshape(40, 5), indices)
    torch.testing.assert_close(graph.values.reshape(40, 5), similarities)
    assert graph.metadata == {"metric": metric, "k": 5, "backend": "exact"}


@pytest.mark.parametrize("device", DEVICES)
def test_within_class_graph_of_all_sizes(device):
    features = random_rows(60, 6).to(device)
    # Classes of 40, 11, 4, 2 and 1 rows, and two rows without a class, all mixed.
    labels = torch.tensor([7] * 40 + [0] * 11 + [3] * 4 + [9] * 2 + [1] + [-1] * 2)
    labels = labels[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    graph = KnnGraph.build(features, 5, labels=labels)
    crow, col = graph.crow_indices.cpu(), graph.col_indices.cpu().long()
    degree = crow.diff()
    for row in range(60):
        size = int((labels == labels[row]).sum())
        expected = 0 if labels[row] < 0 else min(5, size - 1)
        assert degree[row] == expected
        neighbours = col[crow[row] : crow[row + 1]]
        assert (labels[neighbours] == labels[row]).all()
        assert (neighbours != row).all()
        members = (labels == labels[row]).nonzero()[:, 0]
        if expected:
            cosines = torch.nn.functional.cosine_similarity(
                features[row].cpu()[None], features.cpu()[members]
            )
            best = members[cosines.argsort(descending=True, stable=True)]
            assert neighbours.tolist() == best[best != row][:expected].tolist()
    assert graph.isolated.cpu().tolist() == (degree == 0).tolist()
    assert repr(graph).startswith(f"KnnGraph(num_nodes=60, num_edges={int(degree.sum())}, mode=No")


@pytest.mark.parametrize("labels", [np.arange(4), np.full(4, -1)])
def test_within_class_graph_without_edges(labels):
    features = random_rows(4, 3)
    graph = KnnGraph.build(features, 2, labels=labels).normalize()
    assert graph.num_edges == 4
    torch.testing.assert_close(graph.walk(features), features)


def test_within_class_graph_of_no_rows_and_of_rows_without_a_class():
    assert KnnGraph.build(random_rows(0, 3), 2, labels=np.zeros(0, np.int64)).num_nodes == 0
    features = random_rows(5, 3)
    features[2] = torch.nan  # has no class, so nothing reads it
    graph = KnnGraph.build(features, 9, labels=np.array([8, 8, -5, 8, -1]))
    assert graph.crow_indices.tolist() == [0, 2, 4, 4, 6, 6]
    assert sorted(graph.col_indices.tolist()) == [0, 0, 1, 1, 3, 3]
    assert graph.col_indices.dtype == torch.int32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_arrays_and_memory_maps(dtype, tmp_path):
    array = random_rows(20, 4).numpy().astype(dtype)
    np.save(tmp_path / "features.npy", array)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    native = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    for given_features in (array, mapped, tmp_path / "features.npy"):
        graph = KnnGraph.build(given_features, 3)
        expected = KnnGraph.build(native, 3)
        assert torch.equal(graph.col_indices, expected.col_indices)
        walked = graph.normalize().walk(given_features, num_steps=2)
        assert torch.equal(walked, expected.normalize().walk(native, num_steps=2))
        assert walked.dtype == native.dtype


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize(
    ("backend", "rows", "index"),
    [("faiss", 50, "flat"), ("faiss", 4000, "ivf"), ("hnsw", 50, "hnsw"), ("hnsw", 2000, "hnsw")],
)
def test_faiss_backends(backend, rows, index, metric):
    pytest.importorskip("faiss")
    features = random_rows(rows, 8, dtype=torch.float32)
    graph = KnnGraph.build(features, 4, backend=backend, metric=metric, min_recall=0.9)
    exact = KnnGraph.build(features, 4, metric=metric)
    assert graph.metadata["backend"] == backend
    assert graph.metadata["index"] == index
    assert graph.metadata["recall"] >= 0.9
    assert graph.metadata["recall_sample"] == min(rows, 200)
    same = graph.col_indices == exact.col_indices
    assert same.float().mean() > 0.85
    torch.testing.assert_close(graph.values[same], exact.values[same], rtol=1e-4, atol=1e-4)
    rows_of = torch.repeat_interleave(torch.arange(rows), 4)
    assert (graph.col_indices != rows_of).all()


def test_effort_grows_until_the_recall_is_reached(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(_approximate, "_FIRST_PROBES", 1)
    features = random_rows(3000, 16, dtype=torch.float32)
    low, high, all_cells = (
        KnnGraph.build(features, 4, backend="faiss", min_recall=recall).metadata
        for recall in (0.2, 0.8, 1.0)
    )
    assert low["nprobe"] < high["nprobe"] < all_cells["nprobe"] <= all_cells["cells"]
    assert 0.2 <= low["recall"] < high["recall"] <= all_cells["recall"] == 1.0
    # A graph search that may look at next to nothing cannot reach it, and says what it reached.
    monkeypatch.setattr(_approximate, "_FIRST_LIST", 1)
    monkeypatch.setattr(_approximate, "_LONGEST_LIST", 1)
    monkeypatch.setattr(_approximate, "_LINKS", 2)
    with pytest.raises(ValueError, match=r"at least 1, but backend 'hnsw' reaches 0\.\d+"):
        KnnGraph.build(features, 4, backend="hnsw", min_recall=1.0)


def test_recall_counts_equals_of_the_true_neighbours():
    # Ten copies of each row: any three of the nine others are right.
    features = random_rows(20, 6, dtype=torch.float32).repeat(10, 1)
    truth = _approximate._Truth(features, 3, "l2")
    copies = torch.arange(200)[:, None] + 20 * torch.tensor([[7, 2, 5]])
    assert truth.recall((copies % 200).numpy()) == 1.0
    assert truth.recall(((copies + 1) % 200).numpy()) == 0.0
    assert truth.recall(torch.full((200, 3), -1).numpy()) == 0.0


def test_auto_backend(monkeypatch):
    assert _neighbours.choose_backend("auto", 1000) == "exact"
    monkeypatch.setattr(_neighbours, "EXACT_ROWS", 10)
    has_faiss = _neighbours.importlib.util.find_spec("faiss") is not None
    assert _neighbours.choose_backend("auto", 1000) == ("faiss" if has_faiss else "exact")
    monkeypatch.setattr(_neighbours.importlib.util, "find_spec", lambda _: None)
    assert _neighbours.choose_backend("auto", 1000) == "exact"
    with pytest.raises(ValueError, match="'faiss' needs faiss; pip install"):
        _neighbours.choose_backend("faiss", 5)


def test_table_with_padding():
    indices = torch.tensor([[1, 2], [0, -1], [-1, -1]])
    graph = KnnGraph.from_knn(indices, torch.tensor([[0.5, 0.1], [0.5, torch.pi], [0.0, 0.0]]))
    assert graph.num_edges == 3
    assert graph.isolated.tolist() == [False, False, True]
    normalized = graph.normalize(temperature=0.2)
    assert normalized.crow_indices.tolist() == [0, 2, 3, 4]
    assert normalized.col_indices.tolist() == [1, 2, 0, 2]
    expected = torch.softmax(torch.tensor([0.5, 0.1]) / 0.2, 0).tolist()
    assert normalized.values.tolist() == pytest.approx([*expected, 1.0, 1.0])


def _edges(graph):
    rows = torch.repeat_interleave(torch.arange(graph.num_nodes), graph.crow_indices.diff())
    pairs = zip(rows.tolist(), graph.col_indices.tolist(), graph.values.tolist(), strict=True)
    return {(i, j): value for i, j, value in pairs if j >= 0}


@given(
    nodes=st.integers(0, 15),
    edges=st.integers(0, 60),
    padding=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_mutual_and_symmetrized_by_definition(nodes, edges, padding, seed):
    edges = edges if nodes > 0 else 0
    crow, col = random_csr(nodes, nodes, edges, padding=padding, seed=seed)
    values = torch.arange(edges, dtype=torch.float64)
    graph = KnnGraph.from_csr(crow, col, values)
    rows = torch.repeat_interleave(torch.arange(nodes), crow.diff()).tolist()
    given_edges = [e for e in zip(rows, col.tolist(), values.tolist(), strict=True) if e[1] >= 0]
    pairs = {(i, j) for i, j, _ in given_edges}
    mutual, union = graph.mutual(), graph.symmetrized()
    assert mutual.num_edges == sum((j, i) in pairs for i, j, _ in given_edges)
    assert set(_edges(mutual)) == {(i, j) for i, j in pairs if (j, i) in pairs}
    expected = {}
    for i, j in pairs | {(j, i) for i, j in pairs}:
        known = [v for a, b, v in given_edges if (a, b) in {(i, j), (j, i)}]
        expected[i, j] = pytest.approx(sum(known) / len(known))
    assert _edges(union) == expected
    assert union.num_edges == len(expected)


def test_variants_of_a_knn_graph():
    features = random_rows(80, 4)
    graph = KnnGraph.build(features, 5)
    mutual, union = graph.mutual(), graph.symmetrized()
    before = _edges(graph)
    assert _edges(mutual).items() <= before.items()
    assert before.keys() <= _edges(union).keys()
    for variant in (mutual, union):
        dense = dense_matrix(variant)
        torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-15)
        walked = variant.normalize().walk(features)
        assert walked.isfinite().all()
    assert mutual.num_edges < graph.num_edges < union.num_edges
    assert mutual.metadata == {**graph.metadata, "variant": "mutual"}
    with pytest.raises(ValueError, match=r"symmetrized: .*\(mode='row'\); call it before norm"):
        graph.normalize().symmetrized()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_copies_are_linked_to_their_first(metric, dtype, device):
    distinct = random_rows(30, 6).to(dtype)
    place = torch.randint(0, 30, (90,), generator=torch.Generator().manual_seed(0))
    place[:30] = torch.arange(30)
    place = place[torch.randperm(90, generator=torch.Generator().manual_seed(1))]
    features = distinct[place].to(device)
    graph = KnnGraph.build(features, 4, metric=metric, duplicates="link").to("cpu")
    firsts = [int((place == p).nonzero()[0]) for p in place]
    seen = sorted(set(firsts))
    alone = KnnGraph.build(distinct[place[seen]], 4, metric=metric)
    expected = {(seen[i], seen[j]): value for (i, j), value in _edges(alone).items()}
    got = _edges(graph)
    links = {(i, first) for i, first in enumerate(firsts) if i != first}
    assert {edge: got[edge] for edge in got.keys() - links} == pytest.approx(expected, rel=1e-6)
    assert links <= got.keys()
    for i, first in links:
        size = float(features[i].double().square().sum())
        assert got[i, first] == pytest.approx({"cosine": 1.0, "ip": size, "l2": 0.0}[metric])
    assert graph.metadata["copies"] == 60


def test_copies_within_classes_signed_zeros_and_zero_rows():
    features = torch.tensor([[1.0, 0.0], [1.0, -0.0], [1.0, 0.0], [0.0, 0.0], [-0.0, 0.0]])
    labels = np.array([0, 0, 1, -1, -1])
    graph = KnnGraph.build(features, 2, labels=labels, duplicates="link")
    assert _edges(graph) == {(1, 0): 1.0}
    graph = KnnGraph.build(features, 1, duplicates="link")
    assert _edges(graph) == {(0, 3): 0.0, (1, 0): 1.0, (2, 0): 1.0, (3, 0): 0.0, (4, 3): 0.0}
    with pytest.raises(ValueError, match=r"distinct rows, as no copy .*, got k=2 for 2 of 5 rows"):
        KnnGraph.build(features, 2, duplicates="link")
    with pytest.raises(ValueError, match="duplicates: expected 'keep' or 'link', got 'drop'"):
        KnnGraph.build(features, 2, duplicates="drop")


@pytest.mark.parametrize(
    ("within", "backend"), [(False, "exact"), (False, "faiss"), (True, "exact")]
)
def test_distances_far_from_the_origin(within, backend):
    generator = torch.Generator().manual_seed(0)
    # Numbers that stay the same where 1,000 is added in float32.
    rows = torch.randint(-64, 64, (300, 10), generator=generator) / 64
    labels = torch.arange(300) % 3 if within else None
    near, far = (
        KnnGraph.build(at, 5, labels=labels, metric="l2", backend=backend)
        for at in (rows, rows + 1000)
    )
    distances = torch.cdist(rows.double(), rows.double()).square()
    if within:
        distances[labels[:, None] != labels] = torch.inf
    distances.fill_diagonal_(torch.inf)
    expected = -distances.sort(1).values[:, :5]
    for graph in (near, far):
        torch.testing.assert_close(graph.values.view(300, 5).double(), expected, atol=1e-5, rtol=0)
