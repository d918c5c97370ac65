# SPDX-License-Identifier: Apache-2.0
"""KnnGraph: files, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from graph_inputs import random_rows

from fclearn import KnnGraph


@pytest.mark.parametrize("mode", [None, "row", "symmetric", "none"])
def test_save_and_load(mode, tmp_path):
    features = random_rows(15, 4)
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
    with pytest.raises(FileNotFoundError, match="no such KnnGraph file"):
        KnnGraph.load(path)
    KnnGraph.build(random_rows(6, 3), 2).save(path)
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
    graph = KnnGraph.build(random_rows(6, 3), 2)
    path = tmp_path / "graph.safetensors"
    graph.save(path)
    before = path.read_bytes()

    def disk_full(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("fclearn._tensor_files.save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        graph.normalize().save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["graph.safetensors"]
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        graph.save(path / "inside" / "graph.safetensors")


def test_bad_build_arguments_are_named():
    features = random_rows(6, 3)
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
    with pytest.raises(ValueError, match="metric: expected one of cosine, ip, l2, got 'dot'"):
        build(features, 2, metric="dot")
    with pytest.raises(ValueError, match=r"labels: expected shape \[6\], got \[5\]"):
        build(features, 2, labels=torch.zeros(5, dtype=torch.long))
    with pytest.raises(TypeError, match="labels: expected integers, got <U1"):
        KnnGraph.build(torch.eye(4), 1, labels=list("abca"))
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
    features = random_rows(6, 3)
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
