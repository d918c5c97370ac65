# SPDX-License-Identifier: Apache-2.0
"""KnnGraph: building, normalising, walking and files, and what the walk means for class means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from graph_samples import random_csr
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from fclearn import KnnGraph, _approximate, _neighbours
from support import DEVICES


def _features(rows, dim, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, dtype=torch.float64, generator=generator).to(dtype)


def _dense(graph):
    return reference.csr_to_dense(
        graph.crow_indices, graph.col_indices, graph.values.double(), graph.num_nodes
    )


# --- building ---


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_global_graph_is_knn(metric, device):
    features = _features(40, 6).to(device)
    graph = KnnGraph.build(features, 5, metric=metric)
    indices, similarities = reference.knn_graph(features, 5, metric=metric)
    assert graph.num_nodes == 40
    assert graph.num_edges == 200
    assert torch.equal(graph.col_indices.reshape(40, 5), indices)
    torch.testing.assert_close(graph.values.reshape(40, 5), similarities)
    assert graph.metadata == {"metric": metric, "k": 5, "backend": "exact"}


@pytest.mark.parametrize("device", DEVICES)
def test_within_class_graph_of_all_sizes(device):
    features = _features(60, 6).to(device)
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
    features = _features(4, 3)
    graph = KnnGraph.build(features, 2, labels=labels).normalize()
    assert graph.num_edges == 4
    torch.testing.assert_close(graph.walk(features), features)


def test_within_class_graph_of_no_rows_and_of_rows_without_a_class():
    assert KnnGraph.build(_features(0, 3), 2, labels=np.zeros(0, np.int64)).num_nodes == 0
    features = _features(5, 3)
    features[2] = torch.nan  # has no class, so nothing reads it
    graph = KnnGraph.build(features, 9, labels=np.array([8, 8, -5, 8, -1]))
    assert graph.crow_indices.tolist() == [0, 2, 4, 4, 6, 6]
    assert sorted(graph.col_indices.tolist()) == [0, 0, 1, 1, 3, 3]
    assert graph.col_indices.dtype == torch.int32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_arrays_and_memory_maps(dtype, tmp_path):
    array = _features(20, 4).numpy().astype(dtype)
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
    features = _features(rows, 8, dtype=torch.float32)
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
    features = _features(3000, 16, dtype=torch.float32)
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
    features = _features(20, 6, dtype=torch.float32).repeat(10, 1)
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


# --- variants ---


def _edges(graph):
    rows = torch.repeat_interleave(torch.arange(graph.num_nodes), graph.crow_indices.diff())
    pairs = zip(rows.tolist(), graph.col_indices.tolist(), graph.values.tolist(), strict=True)
    return {(i, j): value for i, j, value in pairs if j >= 0}


@settings(max_examples=40, deadline=None)
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
    features = _features(80, 4)
    graph = KnnGraph.build(features, 5)
    mutual, union = graph.mutual(), graph.symmetrized()
    before = _edges(graph)
    assert _edges(mutual).items() <= before.items()
    assert before.keys() <= _edges(union).keys()
    for variant in (mutual, union):
        dense = _dense(variant)
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
    distinct = _features(30, 6).to(dtype)
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
    with pytest.raises(ValueError, match=r"nor a copy .*, got k=2 for 2 rows"):
        KnnGraph.build(features, 2, duplicates="link")
    with pytest.raises(ValueError, match="duplicates: expected 'keep' or 'link', got 'drop'"):
        KnnGraph.build(features, 2, duplicates="drop")


# --- normalising ---


@settings(max_examples=60, deadline=None)
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
    dense = _dense(walkable)
    torch.testing.assert_close(dense.sum(1), torch.ones(nodes, dtype=torch.float64))
    assert (dense >= 0).all()
    assert (walkable.col_indices >= 0).all()
    # Edges are the old ones, plus a self-loop where there was none.
    pattern = reference.csr_to_dense(crow, col, torch.ones(edges, dtype=torch.float64), nodes)
    isolated = pattern.sum(1) == 0
    assert torch.equal(isolated, graph.isolated)
    assert (dense[pattern + torch.diag(isolated.double()) == 0] == 0).all()
    # Symmetric mode: symmetric, and no eigenvalue beyond 1.
    symmetric = _dense(graph.normalize(temperature=temperature, mode="symmetric"))
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
    p = _dense(graph.normalize(0.1))
    w = (p + p.T) / 2
    expected = w / (w.sum(1)[:, None] * w.sum(1)[None]).sqrt()
    torch.testing.assert_close(_dense(graph.normalize(0.1, mode="symmetric")), expected)


@pytest.mark.parametrize("mode", ["row", "symmetric"])
def test_gradients_flow_through_normalize_and_walk(mode):
    crow, col = random_csr(8, 8, 30, padding=0.1)
    features = _features(8, 3)
    values = torch.rand(30, dtype=torch.float64, requires_grad=True)

    def walked(values):
        return KnnGraph.from_csr(crow, col, values).normalize(0.5, mode).walk(features, 0.7, 6)

    assert torch.autograd.gradcheck(walked, (values,))


# --- walking ---


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("mode", ["row", "symmetric"])
def test_walk_reaches_the_limit(mode, transpose, device):
    features = _features(50, 6).to(device)
    graph = KnnGraph.build(features, 4).normalize(0.3, mode)
    matrix = _dense(graph)
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
    features = _features(30, 5)
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


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(3, 30),
    damping=st.floats(0.1, 0.95),
    temperature=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**31),
)
def test_refined_class_mean_is_the_pagerank_weighted_mean(nodes, damping, temperature, seed):
    # One class; the last row is an outlier that no other row points to when k is small.
    features = _features(nodes, 4, seed=seed)
    features[:-1] += 2
    graph = KnnGraph.build(features, min(3, nodes - 1), labels=torch.zeros(nodes, dtype=torch.long))
    graph = graph.normalize(temperature)
    matrix = _dense(graph)
    refined = graph.walk(features, damping, tol=1e-12).mean(0)
    weights = _pagerank(matrix, damping)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(refined, weights @ features, rtol=0, atol=1e-9)


def test_rows_must_sum_to_one_not_columns():
    """The mistake this library avoids: with columns that sum to 1 the walk refines nothing."""
    features = torch.nn.functional.normalize(_features(12, 5), dim=1)
    graph = KnnGraph.build(features, 4).normalize(0.2)
    plain = features.mean(0)
    # Ours: the refined class mean differs from the plain mean, and outliers lose weight.
    refined = graph.walk(features, tol=1e-12).mean(0)
    assert (refined - plain).norm() > 1e-2
    # Column-stochastic: 1^T E = 1^T, so 1^T Z = 1^T F after every step and in the limit.
    matrix = _dense(graph)
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
    features = _features(10, 3)
    graph = KnnGraph.build(features, 9).normalize(1.0)
    torch.testing.assert_close(graph.walk(features, 1e-9), features, rtol=0, atol=1e-7)
    stationary = torch.linalg.matrix_power(_dense(graph), 500)[0]
    almost_all = graph.walk(features, 1 - 1e-5, tol=1e-6)
    expected = (stationary @ features).expand(10, 3)
    torch.testing.assert_close(almost_all, expected, rtol=0, atol=1e-3)


def test_walk_against_the_edges_is_personalised_pagerank():
    features = _features(20, 4)
    labels = torch.arange(20) % 3
    graph = KnnGraph.build(features, 5).normalize(0.3)
    onehot = torch.nn.functional.one_hot(labels).double()
    ranks = graph.walk(onehot / onehot.sum(0), 0.85, tol=1e-12, transpose=True)
    torch.testing.assert_close(ranks.sum(0), torch.ones(3, dtype=torch.float64))
    # Reading features with these ranks is averaging walked features over the class.
    means = (onehot / onehot.sum(0)).T @ graph.walk(features, 0.85, tol=1e-12)
    torch.testing.assert_close(ranks.T @ features, means, rtol=0, atol=1e-9)


# --- files ---


@pytest.mark.parametrize("mode", [None, "row", "symmetric", "none"])
def test_save_and_load(mode, tmp_path):
    features = _features(15, 4)
    graph = KnnGraph.build(features, 3, labels=torch.arange(15) % 4, metric="l2")
    if mode == "none":
        graph = KnnGraph.from_csr(graph.crow_indices, graph.col_indices, -graph.values)
    if mode is not None:
        graph = graph.normalize(1.0, mode)
    path = tmp_path / "graph.safetensors"
    graph.save(path)
    graph.save(path)
    loaded = KnnGraph.load(path)
    for name in ("crow_indices", "col_indices", "values"):
        ours, theirs = getattr(graph, name), getattr(loaded, name)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert loaded.mode == mode
    assert loaded.metadata == graph.metadata
    assert [file.name for file in tmp_path.iterdir()] == ["graph.safetensors"]


def test_truncated_and_hostile_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "graph.safetensors"
    with pytest.raises(FileNotFoundError, match="no such graph file"):
        KnnGraph.load(path)
    KnnGraph.build(_features(6, 3), 2).save(path)
    whole = path.read_bytes()
    hostile = [
        b"",
        b"hello",
        whole[:50],
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"\x00",
        b"\xff" * 8 + whole[8:],
        whole.replace(b'"I32"', b'"F32"'),
        whole.replace(b"fclearn.KnnGraph", b"somethingelse.no"),
        whole.replace(b'\\"version\\": 1', b'\\"version\\": 9'),
        whole.replace(b'\\"mode\\": null', b'\\"mode\\": "!!"'),
        whole.replace(b'\\"mode\\": null', b'\\"mode\\": true'),
        whole.replace(b"col_indices", b"xxx_indices"),
    ]
    for content in hostile:
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"graph\.safetensors: not a valid KnnGraph file: "):
            KnnGraph.load(path)
    header = {"fclearn.KnnGraph": '{"version": 1, "mode": "row", "metadata": {}}'}
    tensors = {
        "crow_indices": torch.tensor([0, 1, 2]),
        "col_indices": torch.tensor([1, 7]),
        "values": torch.ones(2),
    }
    save_file(tensors, path, metadata=header)
    with pytest.raises(
        ValueError, match=r"not a valid .*: col_indices: expected .* got 7 at edge 1"
    ):
        KnnGraph.load(path)


def test_failed_save_leaves_nothing(tmp_path, monkeypatch):
    graph = KnnGraph.build(_features(6, 3), 2)
    path = tmp_path / "graph.safetensors"
    graph.save(path)
    before = path.read_bytes()

    def disk_full(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("fclearn._tensors.save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        graph.normalize().save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["graph.safetensors"]
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        graph.save(path / "inside" / "graph.safetensors")


# --- bad input ---


def test_bad_build_arguments_are_named():
    features = _features(6, 3)
    build = KnnGraph.build
    for arguments, message in [
        ((features[0], 2), r"features: expected shape \[N, D\], got \[3\]"),
        ((features, 0), "k: expected at least 1 neighbour, got 0"),
        ((features, 6), "got k=6 for 6 rows"),
        ((features[:0], 1), "got k=1 for 0 rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(*arguments)
    with pytest.raises(ValueError, match="expected 'auto', 'exact', 'faiss' or 'hnsw', got 'x'"):
        build(features, 2, backend="x")
    for recall in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"min_recall: expected a number in \(0, 1\], got"):
            build(features, 2, min_recall=recall)
    with pytest.raises(ValueError, match="metric: expected 'cosine', 'ip' or 'l2', got 'dot'"):
        build(features, 2, metric="dot")
    with pytest.raises(ValueError, match=r"labels: expected shape \[6\], got \[5\]"):
        build(features, 2, labels=torch.zeros(5, dtype=torch.long))
    with pytest.raises(TypeError, match=r"labels: expected integers, got torch\.float32"):
        build(features, 2, labels=torch.zeros(6))
    with pytest.raises(TypeError, match=r"features: expected floating numbers, got torch\.int"):
        build(features.int(), 2)
    with pytest.raises(TypeError, match=r"expected a feature store, .* an array, got list"):
        build(features.tolist(), 2)
    features[4, 1] = torch.nan
    with pytest.raises(ValueError, match="a NaN or infinity in row 4"):
        build(features, 2)
    with pytest.raises(ValueError, match="a NaN or infinity in row 4"):
        build(features, 2, labels=torch.arange(6) % 2)


def test_bad_graphs_are_named():
    crow, col, values = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 0]), torch.ones(3)
    for change, message in [
        ({"crow_indices": crow[None]}, r"crow_indices: expected shape \[N \+ 1\], got \[1, 3\]"),
        ({"crow_indices": crow[:0]}, r"crow_indices: expected shape \[N \+ 1\], got \[0\]"),
        ({"crow_indices": torch.tensor([0, 4, 3])}, "never to decrease, but it does after row 1"),
        ({"crow_indices": torch.tensor([0, 2, 5])}, "from 0 to E = 3, got 0 to 5"),
        ({"col_indices": col[:2]}, r"of one shape \[E\], got \[2\] and \[3\]"),
        ({"col_indices": col + 1}, r"in \[0, 2\) or -1, got 2 at edge 1"),
        ({"col_indices": col - 2}, "got -2 at edge 0"),
        ({"values": values * torch.inf}, "values: expected finite numbers, got inf at edge 0"),
    ]:
        arrays = {"crow_indices": crow, "col_indices": col, "values": values, **change}
        with pytest.raises(ValueError, match=message):
            KnnGraph.from_csr(**arrays)
    with pytest.raises(TypeError, match="crow_indices: expected int64"):
        KnnGraph.from_csr(crow.int(), col, values)
    with pytest.raises(TypeError, match="col_indices: expected int32 or int64"):
        KnnGraph.from_csr(crow, values, values)
    with pytest.raises(TypeError, match="values: expected float32 or float64"):
        KnnGraph.from_csr(crow, col, values.half())
    with pytest.raises(ValueError, match=r"one shape \[N, K\], got \[3\] and \[3\]"):
        KnnGraph.from_knn(col, values)


def test_bad_normalize_and_walk_arguments_are_named():
    features = _features(6, 3)
    graph = KnnGraph.build(features, 2)
    with pytest.raises(ValueError, match="mode: expected 'row', 'symmetric' or 'none', got 'col'"):
        graph.normalize(mode="col")
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature: expected a positive number"):
            graph.normalize(temperature)
    with pytest.raises(ValueError, match="the graph holds similarities; call normalize"):
        graph.walk(features)
    negative = KnnGraph.from_csr(graph.crow_indices, graph.col_indices, -graph.values.abs())
    with pytest.raises(ValueError, match="mode='none': expected weights >= 0"):
        negative.normalize(mode="none")
    ready = graph.normalize()
    with pytest.raises(ValueError, match=r"normalised already .*'row'"):
        ready.normalize()
    with pytest.raises(ValueError, match="features: expected one row per node, 6, got 5"):
        ready.walk(features[1:])
    for damping in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="damping: expected a number in"):
            ready.walk(features, damping)
    with pytest.raises(ValueError, match="num_steps: expected at least 0, got -1"):
        ready.walk(features, num_steps=-1)
    with pytest.raises(ValueError, match="tol: expected a number in"):
        ready.walk(features, tol=0.0)
    with pytest.raises(ValueError, match="not both"):
        ready.walk(features, num_steps=3, tol=0.1)
