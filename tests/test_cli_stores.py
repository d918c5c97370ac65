# SPDX-License-Identifier: Apache-2.0
"""``fcl pull``, ``fcl push`` and ``fcl rollback`` as they are typed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fclearn.features import FeatureStore
from fclearn.features.classes import row_labels
from served import KINDS, features, numbered, same, serve, vectors

ROOT = Path(__file__).parents[1]
COUNT = 25


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_is_upgraded_and_rolled_back(kind, fcl, tmp_path, postgres):
    served = serve(kind, tmp_path, postgres)
    old = vectors(COUNT)
    url = served.fill(old)
    code, found, error = fcl("pull", url, "--out", tmp_path / "old", "--dry-run", "--json")
    assert (code, found["count"], found["dim"]) == (0, COUNT, 8)
    assert "25 vectors of 8 numbers (float32)" in error
    assert not (tmp_path / "old").exists()
    code, found, _ = fcl("pull", url, "--out", tmp_path / "old", "--model", "v1", "--json")
    assert (code, found["rows"], found["fingerprint"]["model"]) == (0, COUNT, "v1")

    pulled = FeatureStore.open(tmp_path / "old")
    new = {name: vectors(1, seed=int(name) + 7)[0] for name in pulled.ids}
    features(tmp_path / "new", np.stack(list(new.values())), "v2", ids=list(new))
    plan = tmp_path / "plan.csv"
    plan.write_text("id,rank,priority,in_budget\n7,1,9,1\n3,2,8,1\n4,3,7,0\n")
    push = ["push", tmp_path / "new", url, "--ids", plan]
    code, output, error = fcl(*push)
    assert (code, output) == (2, None)
    assert error.startswith("fcl: error: store ")
    assert error.count("\n") == 1
    code, _, error = fcl(*push, "--replace", "--dry-run")
    assert code == 0
    assert "2 rows, 0 new and 2 replaced, would be written" in error
    assert same(served.dump(), numbered(old))
    code, found, error = fcl(*push, "--replace", "--json")
    assert (code, found["replaced"]) == (0, 2)
    assert same(served.dump(), {**numbered(old), "7": new["7"], "3": new["3"]})
    assert "nothing to do" in fcl(*push, "--replace")[2]

    undo = error[error.index("fcl rollback ") :].split()[1:]
    code, _, error = fcl(*undo, "--dry-run")
    assert (code, error) == (0, "2 rows would be put back, 0 would be removed\n")
    code, found, _ = fcl(*undo, "--json")
    assert (code, found) == (0, {"restored": 2, "removed": 0, "dry_run": False})
    assert same(served.dump(), numbered(old))


def test_payload_comes_and_goes(fcl, tmp_path):
    served = serve("parquet", tmp_path, None)
    names = ["cat", "dog", "ant"]
    features(tmp_path / "new", vectors(3), label=[1, 2, 0], class_name=names)
    url = served.url("v2")
    code, _, _ = fcl("push", tmp_path / "new", url, "--payload", "label,class_name")
    assert code == 0
    code, _, _ = fcl("pull", url, "--payload", "class_name, label", "--out", tmp_path / "back")
    assert code == 0
    back = FeatureStore.open(tmp_path / "back")
    assert back.labels.tolist() == [1, 2, 0]
    assert back.manifest["class_name"] == names
    code, _, error = fcl("push", tmp_path / "new", served.url("v3"), "--payload", "hits")
    assert code == 2
    assert "payload: expected columns of the manifest" in error
    code, _, error = fcl("pull", url, "--payload", "hits", "--out", tmp_path / "more")
    assert code == 2
    assert "expected a column 'hits', found id, embedding, label, class_name" in error


def test_labels_that_are_text_become_numbers(fcl, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"id": [5, 6, 7], "label": ["b", "a", "b"], "embedding": vectors(3).tolist()}
    pq.write_table(pa.table(columns), tmp_path / "g.parquet")
    code, _, _ = fcl(
        "pull",
        f"parquet:{tmp_path}/g.parquet",
        "--payload",
        "label",
        "--model",
        "m",
        "--out",
        tmp_path / "out",
    )
    assert code == 0
    store = FeatureStore.open(tmp_path / "out")
    assert store.ids == ["5", "6", "7"]
    assert store.labels.tolist() == [1, 0, 1]
    assert store.manifest["class_name"] == ["b", "a", "b"]


@pytest.mark.parametrize("payload", ["label,class_name", "class_name,label", "label"])
def test_labels_beyond_64_bits_are_names_beside_those_asked_for(fcl, tmp_path, payload):
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = [2**64 - 1, 3, 2**64 - 1]
    columns = {
        "id": [5, 6, 7],
        "label": pa.array(labels, pa.uint64()),
        "class_name": ["dog", "cat", "dog"],
        "embedding": vectors(3).tolist(),
    }
    pq.write_table(pa.table(columns), tmp_path / "g.parquet")
    url, out = f"parquet:{tmp_path}/g.parquet", tmp_path / "out"
    code, _, error = fcl("pull", url, "--payload", payload, "--model", "m", "--out", out)
    assert code == 0, error
    store = FeatureStore.open(out)
    assert store.labels.tolist() == [0, 1, 0]
    asked = "class_name" in payload
    assert store.manifest["class_name"] == (columns["class_name"] if asked else [*map(str, labels)])


@pytest.mark.parametrize("separated", [False, True])
def test_labels_are_read_back_whatever_is_in_them(fcl, tmp_path, separated):
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = [["x|y" if separated else "x", "z"], ["z"], None, []]
    columns = {
        "id": ["a", "b", "c", "d"],
        "labels": labels,
        "hits": [3, None, 1, 0],
        "embedding": vectors(4).tolist(),
    }
    pq.write_table(pa.table(columns), tmp_path / "g.parquet")
    url, out = f"parquet:{tmp_path}/g.parquet", tmp_path / "out"
    code, _, error = fcl("pull", url, "--payload", "labels,hits", "--model", "m", "--out", out)
    assert code == 0, error
    store = FeatureStore.open(out)
    assert store.manifest_format == ("parquet" if separated else "csv")
    assert row_labels(store) == [[set(cell or ()) for cell in labels]]
    assert store.manifest["hits"] == ["3", "", "1", "0"]
    assert not (tmp_path / "out.pull").exists()


@pytest.mark.parametrize("kind", ["list", "large", "fixed"])
@pytest.mark.parametrize("number", ["halffloat", "float", "double"])
def test_a_parquet_file_keeps_its_types(kind, number, fcl, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    scalar = {"halffloat": pa.float16(), "float": pa.float32(), "double": pa.float64()}[number]
    lists = {"list": pa.list_(scalar), "large": pa.large_list(scalar), "fixed": pa.list_(scalar, 8)}
    old = vectors(5).astype(np.float16)  # exact in every type
    rows = [None if n in {1, 4} else list(row) for n, row in enumerate(old)]
    table = pa.table(
        {
            "more": [{"a": [1, None]}, None, {"a": []}, {"a": [2]}, None],
            "id": pa.array([10, 11, 12, 13, 14], pa.int32()),
            "embedding": pa.array(rows, lists[kind]),
        }
    ).replace_schema_metadata({"whose": "ours"})
    path = tmp_path / "g.parquet"
    pq.write_table(table, path, row_group_size=2)
    table = pq.read_table(path, partitioning=None)  # Parquet has names of its own for items
    path.chmod(0o640)
    new = vectors(2, seed=1).astype(np.float16)
    features(tmp_path / "new", new, ids=["13", "11"])
    url = f"parquet:{path}"
    code, found, _ = fcl("push", tmp_path / "new", url, "--replace", "--json")
    assert code == 0
    after = pq.read_table(path, partitioning=None)
    assert after.schema.equals(table.schema, check_metadata=True)
    assert after.drop_columns("embedding").equals(table.drop_columns("embedding"))
    expected = [rows[0], list(new[1]), rows[2], list(new[0]), None]
    assert after["embedding"].to_pylist() == expected
    assert path.stat().st_mode & 0o777 == 0o640
    code, _, _ = fcl("pull", url, "--model", "m", "--batch-size", 2, "--out", tmp_path / "back")
    assert code == 0
    back = FeatureStore.open(tmp_path / "back")
    assert back.ids == ["10", "11", "12", "13"]
    assert back.features.dtype == (np.float16 if number == "halffloat" else np.float32)
    np.testing.assert_array_equal(back.features, np.stack(expected[:4]))
    assert fcl("rollback", found["journal"])[0] == 0
    assert pq.read_table(path, partitioning=None).equals(table)


def test_qdrant_with_ids_in_the_payload(fcl, tmp_path):
    served = serve("qdrant", tmp_path, None)
    rows = vectors(3)
    ids = ["photo-1", "photo/2", "3"]
    features(tmp_path / "new", rows, ids=ids)
    url = served.url("named") + "&id=key"
    code, found, _ = fcl("push", tmp_path / "new", url, "--json")
    assert code == 0
    dump = {payload["key"]: row for row, payload in served.dump("named").values()}
    assert sorted(dump) == sorted(ids)
    code, _, _ = fcl("pull", url, "--out", tmp_path / "back")
    assert code == 0
    back = FeatureStore.open(tmp_path / "back")
    for name, row in zip(back.ids, back.features, strict=True):
        np.testing.assert_allclose(row, rows[ids.index(name)], atol=2e-7)
    assert fcl("rollback", found["journal"])[0] == 0
    assert served.dump("named") is None


def test_another_named_vector_of_the_same_points(fcl, tmp_path):
    served = serve("qdrant", tmp_path, None)
    old, new = vectors(5), vectors(5, 12, seed=1)
    served.fill(old)
    features(tmp_path / "new", new[:4])
    url = served.url() + "&vector=v2"
    code, found, _ = fcl("push", tmp_path / "new", url, "--json")
    assert (code, found["made"], found["inserted"]) == (0, "vector", 4)
    with served._qdrant() as client:
        points, _ = client.scroll("old", with_vectors=["v2"])
    assert [len(point.vector) for point in points] == [1, 1, 1, 1, 0]
    code, _, _ = fcl("pull", url, "--batch-size", 1, "--out", tmp_path / "back")
    assert code == 0
    assert FeatureStore.open(tmp_path / "back").ids == ["0", "1", "2", "3"]
    assert points[2].payload == {"label": 2}
    np.testing.assert_allclose(points[2].vector["v2"], new[2], atol=2e-7)
    assert fcl("rollback", found["journal"])[0] == 0
    with served._qdrant() as client:
        points, _ = client.scroll("old", with_vectors=True)
    np.testing.assert_allclose([point.vector for point in points], old, atol=2e-7)


def test_a_qdrant_collection_normalises(fcl, tmp_path):
    served = serve("qdrant", tmp_path, None)
    url = served.fill(vectors(3))
    rows = 5 * vectors(3, seed=1)
    features(tmp_path / "new", rows)
    store = FeatureStore.open(tmp_path / "new")
    FeatureStore.write(
        tmp_path / "new",
        rows,
        store.manifest,
        type(store.fingerprint)("new", 8, norm="none"),
    )
    code, _, error = fcl("push", tmp_path / "new", url, "--replace")
    assert code == 0
    assert "note: the store brings rows to unit length: their norms are lost" in error
    assert same(served.dump(), numbered(vectors(3, seed=1)))
    rows[1] = 0
    features(tmp_path / "zero", rows)
    code, _, error = fcl("push", tmp_path / "zero", url, "--replace")
    assert code == 2
    assert "rows of zeros have no direction" in error
    assert "'1'" in error


def test_a_faiss_file_with_ids_in_lines(fcl, tmp_path):
    rows = vectors(4)
    ids = ["photo-1", "photo 2", "ü", "4"]
    features(tmp_path / "new", rows, ids=ids, metric="l2")
    url = f"faiss:{tmp_path}/g.index?ids={tmp_path}/g.txt"
    code, found, _ = fcl("push", tmp_path / "new", url, "--json")
    assert code == 0
    assert (tmp_path / "g.txt").read_text(encoding="utf-8").splitlines() == ids
    code, _, _ = fcl("pull", url, "--model", "m", "--out", tmp_path / "back")
    assert code == 0
    back = FeatureStore.open(tmp_path / "back")
    assert (back.ids, back.fingerprint.metric) == (ids, "l2")
    np.testing.assert_array_equal(back.features, rows)
    (tmp_path / "g.txt").write_text("a\nb\n")
    code, _, error = fcl("pull", url, "--model", "m", "--out", tmp_path / "more")
    assert code == 2
    assert "expected an id for each of 4 rows, found 2 lines" in error
    assert fcl("rollback", found["journal"])[0] == 0
    assert not (tmp_path / "g.index").exists()
    assert not (tmp_path / "g.txt").exists()


@pytest.mark.parametrize(
    "factory",
    ["HNSW8", "NSG8", "IVF4,Flat", "IDMap,HNSW8", "IDMap,IVF4,Flat", "IDMap2,Flat", "Flat"],
)
def test_faiss_indexes_of_whole_vectors(factory, fcl, tmp_path):
    import faiss

    rows = vectors(200)
    index = faiss.index_factory(8, factory)
    index.train(rows)
    order = np.random.default_rng(0).permutation(200)
    if "IVF" in factory or "IDMap" in factory:
        index.add_with_ids(rows[order], order + 1000)
    else:
        index.add(rows)
        order = np.arange(200) - 1000
    faiss.write_index(index, str(tmp_path / "g.index"))
    code, _, _ = fcl("pull", f"faiss:{tmp_path}/g.index", "--model", "m", "--out", tmp_path / "o")
    assert code == 0
    store = FeatureStore.open(tmp_path / "o")
    assert sorted(map(int, store.ids)) == sorted(order + 1000)
    where = [int(name) % 1000 for name in store.ids]
    np.testing.assert_array_equal(store.features, rows[where])


def test_ids_of_a_faiss_index_around_ids(fcl, tmp_path):
    import faiss

    rows = vectors(3)
    inner = faiss.IndexIDMap(faiss.IndexFlatIP(8))
    outer = faiss.IndexIDMap(inner)
    inner.add_with_ids(rows, np.array([2, 0, 1]))
    outer.ntotal = 3
    pull = ["pull", f"faiss:{tmp_path}/g.index", "--model", "m", "--out"]
    faiss.copy_array_to_vector(np.array([70, 80, 90]), outer.id_map)
    faiss.write_index(outer, str(tmp_path / "g.index"))
    assert fcl(*pull, tmp_path / "whole")[0] == 0
    store = FeatureStore.open(tmp_path / "whole")
    assert store.ids == ["90", "70", "80"]
    np.testing.assert_array_equal(store.features, rows)
    faiss.copy_array_to_vector(np.array([70, 80]), outer.id_map)
    faiss.write_index(outer, str(tmp_path / "g.index"))
    code, _, error = fcl(*pull, tmp_path / "damaged")
    assert code == 2
    assert "not a whole faiss index file" in error


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qdrant", "postgresql", "milvus"])
def test_the_command_itself_is_killed_at_random(kind, tmp_path, postgres):
    served = serve(kind, tmp_path, postgres)
    count = 600
    old, new = vectors(count), vectors(count, seed=1)
    url = served.fill(old)
    features(tmp_path / "new", new)
    command = [sys.executable, "-m", "fclearn.cli", "push", str(tmp_path / "new"), url]
    command += ["--replace", "--batch-size", "2", "--journal", str(tmp_path / "book")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}"}
    kills = 0
    for wait in (0.0, 0.15, 0.3):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        after = tmp_path / "book" / "after"
        begun = len(list(after.glob("*"))) if after.exists() else 0
        while process.poll() is None and not (
            after.exists() and len(list(after.glob("*"))) > begun
        ):
            time.sleep(0.005)
        time.sleep(wait)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.stderr.close()
    assert kills >= 2
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same(served.dump(), numbered(new))
