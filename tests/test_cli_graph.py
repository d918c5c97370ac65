# SPDX-License-Identifier: Apache-2.0
"""``fcl graph`` and ``fcl walk`` on a store of a few real drawings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cli_samples import refused, write_store
from store_samples import overwritten

from fclearn.features import FeatureStore, FeatureWriter, Fingerprint
from fclearn.features.ids import digest_of_ids
from fclearn.features.manifest import read_manifest
from fclearn.graph import KnnGraph


def test_graph(work, fcl, tmp_path):
    path = tmp_path / "graph.safetensors"
    code, result, _ = fcl("graph", work / "old-store", "--k", 3, "--out", path, "--json")
    assert code == 0
    graph = KnnGraph.load(path)
    assert result["nodes"] == graph.num_nodes == len(FeatureStore.open(work / "old-store"))
    assert result["edges"] == graph.num_edges == 3 * graph.num_nodes
    assert graph.mode == result["mode"] == "row"
    sums = torch.zeros(graph.num_nodes).index_add_(
        0, torch.arange(graph.num_nodes).repeat_interleave(3), graph.values
    )
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("within", [[], ["--within-class"]])
def test_a_store_is_opened_once(within, work, fcl, tmp_path, monkeypatch):
    opened = []

    def counted(folder, num_rows):
        opened.append(folder)
        return read_manifest(folder, num_rows)

    monkeypatch.setattr("fclearn.features.store.read_manifest", counted)
    graph = ["graph", work / "old-store", "--k", 2, "--out", tmp_path / "graph.safetensors"]
    assert fcl(*graph, *within)[0] == 0
    assert opened == [work / "old-store"]


def test_within_class_graph(work, fcl, tmp_path):
    path = tmp_path / "graph.safetensors"
    code, result, _ = fcl(
        "graph", work / "old-store", "--k", 2, "--within-class", "--out", path, "--json"
    )
    assert code == 0
    assert result["within_class"] is True
    graph = KnnGraph.load(path)
    labels = torch.from_numpy(FeatureStore.open(work / "old-store").labels)
    rows = torch.arange(graph.num_nodes).repeat_interleave(graph.crow_indices.diff())
    assert (labels[rows] == labels[graph.col_indices.long()]).all()


def test_within_class_graph_by_names_and_by_the_metric_of_the_store(fcl, tmp_path):
    rows = np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32)
    classes = ["dog", "cat", "dog", "cat", "dog", "cat"]
    columns = {"id": [str(row) for row in range(6)], "labels": classes}
    fingerprint = Fingerprint("m", 4, norm="none", metric="l2")
    FeatureStore.write(tmp_path / "store", rows, columns, fingerprint)
    graph = tmp_path / "graph.safetensors"
    command = ["graph", tmp_path / "store", "--k", 1, "--out", graph, "--json"]
    assert fcl(*command, "--within-class")[1]["metric"] == "l2"
    squared = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    other = (np.arange(6)[:, None] + np.arange(6)) % 2 == 1
    squared[other | np.eye(6, dtype=bool)] = np.inf
    assert KnnGraph.load(graph).col_indices.tolist() == squared.argmin(axis=1).tolist()
    assert fcl(*command, "--metric", "cosine", "--replace")[1]["metric"] == "cosine"


def test_walk(work, fcl, tmp_path, monkeypatch):
    graph, out = tmp_path / "graph.safetensors", tmp_path / "walked"
    before = FeatureStore.open(work / "old-store")
    assert fcl("graph", work / "old-store", "--k", 3, "--out", graph)[0] == 0
    command = ["walk", graph, work / "old-store", "--out", out, "--damping", 0.4]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "finish", stop)
        assert fcl(*command)[0] == 130
    assert not out.exists()
    code, result, _ = fcl(*command, "--json")
    assert code == 0
    assert result["rows"] == len(before)
    walked = FeatureStore.open(out)
    assert walked.ids == before.ids
    assert walked.fingerprint == before.fingerprint
    features = torch.tensor(before.features)
    expected = KnnGraph.load(graph).walk(features, 0.4, num_steps=10)
    expected = torch.nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(torch.tensor(walked.features), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.safetensors", "walked"]


def test_a_walk_refuses_the_graph_of_other_rows(work, fcl, tmp_path):
    store = FeatureStore.open(work / "old-store")
    graph, out = tmp_path / "graph.safetensors", tmp_path / "out"
    code, made, _ = fcl("graph", store.path, "--k", 3, "--out", graph, "--json")
    assert code == 0
    assert made["ids"] == digest_of_ids(store.ids)
    turned = np.array(store.features)[::-1]
    for case, ids in (("turned", store.ids[::-1]), ("others", [f"x{n}" for n in store.ids])):
        FeatureStore.write(tmp_path / case, turned, {"id": ids}, store.fingerprint)
        answer = fcl("walk", graph, tmp_path / case, "--out", out)
        rows = f"expected a graph of the {len(store)} rows of {tmp_path / case} in their order"
        assert refused(answer, f"{graph}: {rows}", "with other ids or in another order")
    part = FeatureStore.write(
        tmp_path / "part", turned[:5], {"id": store.ids[:5]}, store.fingerprint
    )
    assert refused(fcl("walk", graph, part.path, "--out", out), "expected a graph of the 5 rows")
    assert not out.exists()
    # Features of another model of the same items are the same rows.
    same = FeatureStore.write(tmp_path / "same", turned, {"id": store.ids}, store.fingerprint)
    assert fcl("walk", graph, same.path, "--out", out)[0] == 0
    # A graph of a file, or from Python, does not say what its rows are.
    plain = ["graph", store.path / "features.npy", "--k", 3, "--out", graph, "--replace"]
    assert fcl(*plain)[0] == 0
    assert "ids" not in KnnGraph.load(graph).metadata
    assert fcl("walk", graph, tmp_path / "turned", "--out", tmp_path / "unsaid")[0] == 0


def test_a_walk_keeps_the_manifest_as_it_is(fcl, tmp_path):
    rows = np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32)
    columns = {
        "id": list("abcdef"),
        "labels": [["x", "y"], [], ["z"]] * 2,
        "box": [[0.5, 1.0], [], [2.0, 3.0]] * 2,
    }
    store, graph, out = tmp_path / "store", tmp_path / "g.safetensors", tmp_path / "out"
    FeatureStore.write(store, rows, columns, Fingerprint("m", 4, norm="none"), "parquet")
    assert fcl("graph", store, "--k", 2, "--out", graph)[0] == 0
    assert fcl("walk", graph, store, "--out", out)[0] == 0
    assert FeatureStore.open(out).manifest == columns


def test_refused_walks(work, fcl, tmp_path):
    store, graph = work / "old-store", tmp_path / "graph.safetensors"
    missing = fcl("walk", graph, store, "--out", tmp_path / "out")
    assert refused(missing, "no such graph file")
    np.save(tmp_path / "plain.npy", np.eye(4, dtype=np.float32))
    assert fcl("graph", tmp_path / "plain.npy", "--k", 2, "--out", graph)[0] == 0
    other = fcl("walk", graph, store, "--out", tmp_path / "out")
    assert refused(other, "features: expected one row per node, 4")
    assert refused(fcl("walk", graph, store, "--out", store), "--out: expected another name")
    damping = fcl("walk", graph, store, "--out", tmp_path / "out", "--damping", 1)
    assert refused(damping, "features: expected one row per node, 4")


@pytest.mark.parametrize("within", [False, True])
def test_a_row_that_is_not_finite_is_named_as_its_store_knows_it(within, fcl, tmp_path):
    rows = np.random.default_rng(0).standard_normal((12, 4), dtype=np.float32)
    labels = [0, 1, -1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    store = write_store(tmp_path / "store", rows, labels)
    rows[[2, 7]] = np.nan
    overwritten(store, rows)
    command = ["graph", store, "--k", 2, "--out", tmp_path / "g"]
    command += ["--within-class"] if within else []
    row = 7 if within else 2
    said = f"expected finite numbers, got a NaN or infinity in row {row}"
    assert refused(fcl(*command), f"error: {store}: {said}: id 'i{row}'")
    # Without a class, a row is joined to nothing, and a file has no ids.
    rows[7] = 1
    overwritten(store, rows)
    if within:
        assert fcl(*command)[0] == 0
    else:
        file = store / "features.npy"
        assert refused(fcl("graph", file, *command[2:]), f"error: {file}: {said}\n")


def test_refused_graphs(work, fcl, tmp_path):
    graph = ["graph", work / "old-store", "--out", tmp_path / "g"]
    said = f"as no row is its own neighbour, got k=999 for {len(FeatureStore.open(graph[1]))} rows"
    assert refused(fcl(*graph, "--k", 999), f"k: expected fewer neighbours than rows, {said}")
    assert refused(fcl(*graph, "--k", 3, "--mode", "rows"), "mode: expected 'row', 'symmetric'")
    assert refused(fcl(*graph, "--k", 3, "--temperature", 0), "temperature: expected a positive")
    np.save(tmp_path / "plain.npy", np.eye(4, dtype=np.float32))
    plain = ["graph", tmp_path / "plain.npy", "--out", tmp_path / "g", "--k", 2]
    assert refused(fcl(*plain, "--within-class"), "expected the folder of a feature store")
    assert fcl(*plain)[0] == 0
