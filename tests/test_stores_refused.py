# SPDX-License-Identifier: Apache-2.0
"""What stores refuse: odd names, ids they cannot have, the journals of others."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from opened_stores import COUNT, opened_pull, opened_push

from fclearn.features import FeatureStore
from fclearn.stores import Journal, open_store, pull, rollback
from fclearn.stores.urls import StoreUrl, without_password
from served import features, numbered, same, serve, vectors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gallery.index", r"expected kind:place\?option=value"),
        ("redis:there", "expected kind:place"),
        ("parquet:", "expected kind:place"),
        ("qdrant:folder", r"expected \?collection=…, which is missing"),
        ("qdrant:folder?colection=a", "unknown option 'colection'; did you mean 'collection'"),
        ("parquet:a?id=a&id=b", "option 'id' is given twice"),
        ("parquet:a?id=", "option 'id' is given without a value"),
        ("milvus:folder?collection=a", r"expected a name ending in \.db"),
        ("postgresql://host/db", r"expected \?table=…"),
        ("postgresql://host/db?table=a&type=bit", "type: expected vector or halfvec"),
    ],
)
def test_names_that_say_nothing(name, message):
    with pytest.raises(ValueError, match=message):
        open_store(name)


def test_passwords_are_not_repeated():
    name = "postgresql://me:secret@host/db?table=t&password=secret"
    assert "secret" not in str(StoreUrl.parse("postgresql://me:secret@host/db?table=t"))
    assert without_password("//me:secret@host/db") == "//me@host/db"
    with pytest.raises(ValueError, match="unknown") as refused:
        StoreUrl.parse(name).take(("table",))
    assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match="kind") as refused:
        StoreUrl.parse("postgre://me:secret@host/db?table=t&password=secret")
    assert "secret" not in str(refused.value)


def test_ids_that_repeat_are_named(tmp_path, postgres):
    import faiss
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = vectors(3)
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(8))
    index.add_with_ids(rows, np.array([1, 2, 1]))
    faiss.write_index(index, str(tmp_path / "a.index"))
    pq.write_table(
        pa.table({"id": ["1", "2", "1"], "embedding": rows.tolist()}), tmp_path / "a.parquet"
    )
    store = features(tmp_path / "new", vectors(2), ids=["1", "2"])
    for url in (f"faiss:{tmp_path}/a.index", f"parquet:{tmp_path}/a.parquet"):
        with pytest.raises(ValueError, match=r"expected distinct ids|found '1' again"):
            opened_pull(url, tmp_path / url.partition(":")[0] / "out")
        with pytest.raises(ValueError, match="found '1' again"):
            opened_push(url, store, replace=True)
    pq.write_table(
        pa.table({"id": ["1", None], "embedding": rows[:2].tolist()}), tmp_path / "b.parquet"
    )
    with pytest.raises(ValueError, match="expected an id in every row"):
        opened_pull(f"parquet:{tmp_path}/b.parquet", tmp_path / "out")
    served = serve("postgresql", tmp_path, postgres)
    served.run("CREATE TABLE items (id text, embedding vector(2))")
    served.run(
        "INSERT INTO items VALUES ('a', '[1,2]'), ('b', '[1,2]'), ('a', '[3,4]'), (NULL, '[5,6]')"
    )
    with pytest.raises(ValueError, match="found 1 rows without one and repeated ids: 'a'"):
        opened_pull(served.url(), tmp_path / "out")


def test_ids_that_a_store_cannot_have(tmp_path, postgres):
    store = features(tmp_path / "new", vectors(2), ids=["photo-1", "photo-2"])
    for kind, message in (
        ("qdrant", "integers or UUIDs, got 'photo-1'; &id=KEY"),
        ("faiss", "integers, got 'photo-1'"),
    ):
        served = serve(kind, tmp_path, None)
        with pytest.raises(ValueError, match=message):
            opened_push(served.url("v2"), store)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    served = serve("postgresql", tmp_path, postgres)
    served.fill(vectors(2))
    with pytest.raises(ValueError, match="invalid input syntax for type integer"):
        opened_push(served.url("v2"), store)
    assert served.dump("v2") is None
    served = serve("milvus", tmp_path, None)
    bell = features(tmp_path / "bell", vectors(1), ids=["a\x07"])
    with pytest.raises(ValueError, match="cannot ask for ids with control characters"):
        opened_push(served.url("v2"), bell)
    long = features(tmp_path / "long", vectors(1), ids=["a" * 513])
    with pytest.raises(ValueError, match="expected ids up to 512 bytes"):
        opened_push(served.url("v2"), long)
    assert served.dump("v2") is None
    url = served.fill(vectors(2))
    with pytest.raises(ValueError, match="expected integer ids, got 'photo-1'"):
        opened_push(url, store, replace=True)


def test_a_password_is_used_and_written_nowhere(tmp_path, postgres, capfd):
    from fclearn.cli import main

    served = serve("postgresql", tmp_path, postgres)
    served.fill(vectors(COUNT))
    url = served.url("v2").replace("postgres:@", "postgres:secret@") + "&password=secret"
    store = features(tmp_path / "new", vectors(COUNT, seed=1))
    result = opened_push(url, store)
    assert main(["push", str(store.path), url, "--ids", str(tmp_path / "none")]) == 2
    assert main(["push", str(store.path), url.replace("v2", "embedding")]) == 2
    assert "secret" not in "".join(capfd.readouterr())
    for path in result.journal.rglob("*.json"):
        assert b"secret" not in path.read_bytes()
    assert main(["rollback", str(result.journal), "--store", served.url()]) == 2
    assert main(["rollback", str(result.journal), "--store", url]) == 0
    assert served.dump("v2") is None


def test_halfvec_rounds(tmp_path, postgres):
    served = serve("postgresql", tmp_path, postgres)
    if not served.run("SELECT 1 FROM pg_type WHERE typname = 'halfvec'"):
        pytest.skip("this pgvector is older than 0.7: it has no halfvec")
    served.fill(vectors(COUNT))
    new = vectors(COUNT, seed=1)
    result = opened_push(served.url("v2") + "&type=halfvec", features(tmp_path / "new", new))
    dump = served.dump("v2")
    for name, row in numbered(new.astype(np.float16)).items():
        np.testing.assert_array_equal(dump[name][0], row)
    with open_store(served.url("v2") + "&type=halfvec") as store:
        assert store.info().dtype == "float16"
        rollback(Journal(result.journal), store)


def test_names_are_not_statements(tmp_path, postgres):
    served = serve("postgresql", tmp_path, postgres)
    served.fill(vectors(COUNT))
    with open_store(f"{served.uri}&table=items%22;DROP TABLE items;--&column=embedding") as store:
        assert store.info() is None
    url = f"{served.uri}&table=items&column=v2%22 vector(8);DROP TABLE items;--"
    result = opened_push(url, features(tmp_path / "new", vectors(COUNT, seed=1)))
    assert result.inserted == COUNT
    assert served.dump('"v2"" vector(8);DROP TABLE items;--"') is None  # one column of that name
    with open_store(url) as store:
        rollback(Journal(result.journal), store)
    assert same(served.dump(), numbered(vectors(COUNT)))


def test_ids_are_not_filters(tmp_path):
    served = serve("milvus", tmp_path, None)
    ids = ['"] or id != ["', "back\\slash", "quo'te", "line\nbreak", "ü😀", "%", "plain"]
    rows = vectors(len(ids))
    url = served.url("v2")
    first = opened_push(url, features(tmp_path / "a", rows[1:], ids=ids[1:]))
    second = opened_push(url, features(tmp_path / "b", rows[:1], ids=ids[:1]))
    pulled = opened_pull(url, tmp_path / "out", model="new")
    assert sorted(pulled.ids) == sorted(ids)
    for name, row in zip(pulled.ids, pulled.features, strict=True):
        np.testing.assert_array_equal(row, rows[ids.index(name)])
    with open_store(url) as store:
        rollback(Journal(second.journal), store)
    assert sorted(served.dump("v2")) == sorted(ids[1:])
    with open_store(url) as store:
        rollback(Journal(first.journal), store)
    assert served.dump("v2") is None


def test_two_processes_cannot_push_by_one_journal(tmp_path):
    served = serve("parquet", tmp_path, None)
    served.fill(vectors(3))
    journal = Journal(tmp_path / "book")
    with journal.locked(), pytest.raises(ValueError, match="in use by another process"):
        opened_push(
            served.url("v2"), features(tmp_path / "new", vectors(3)), journal=tmp_path / "book"
        )


def test_a_journal_belongs_to_one_push(tmp_path):
    served = serve("parquet", tmp_path, None)
    served.fill(vectors(3))
    store = features(tmp_path / "new", vectors(3, seed=1))
    opened_push(served.url("v2"), store, journal=tmp_path / "book")
    with pytest.raises(ValueError, match=r"journal of another push \(store differ\)"):
        opened_push(served.url("v3"), store, journal=tmp_path / "book")
    changed = features(tmp_path / "new", vectors(3, seed=2))
    with pytest.raises(ValueError, match=r"journal of another push \(checksum differ\)"):
        opened_push(served.url("v2"), changed, journal=tmp_path / "book")


def test_a_pull_begun_with_other_settings(tmp_path):
    served = serve("parquet", tmp_path, None)
    url = served.fill(vectors(COUNT))
    stop = RuntimeError("stop")

    def stopping(*_):
        raise stop

    with open_store(url) as store, pytest.raises(RuntimeError, match="stop"):
        pull(store, tmp_path / "out", model="a", batch_size=4, progress=stopping)
    with pytest.raises(ValueError, match="a pull begun with other settings: model"):
        opened_pull(url, tmp_path / "out")
    (tmp_path / "out.pull" / "vectors.bin").write_bytes(b"")
    with open_store(url) as store, pytest.raises(ValueError, match="files cut short"):
        pull(store, tmp_path / "out", model="a")
    (tmp_path / "out.pull" / "progress.json").write_text("{")
    with pytest.raises(ValueError, match="not a record of progress"):
        opened_pull(url, tmp_path / "out")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fcl-ext\[qdrant\]"'):
        open_store("qdrant:folder?collection=a")


def test_a_store_of_whole_rows_only(tmp_path):
    import faiss

    index = faiss.index_factory(8, "PQ4x4")
    index.train(vectors(400))
    index.add(vectors(20))
    faiss.write_index(index, str(tmp_path / "codes.index"))
    with pytest.raises(ValueError, match="found IndexPQ, which keeps codes"):
        opened_pull(f"faiss:{tmp_path}/codes.index", tmp_path / "out")
    index = faiss.index_factory(8, "L2norm,Flat")
    index.add(vectors(20))
    faiss.write_index(index, str(tmp_path / "turned.index"))
    with pytest.raises(ValueError, match="found IndexPreTransform, which keeps codes or another"):
        opened_pull(f"faiss:{tmp_path}/turned.index", tmp_path / "out")
    store = features(tmp_path / "new", vectors(COUNT), ids=[str(n) for n in range(COUNT)])
    index = faiss.index_factory(8, "HNSW8")
    index.add(vectors(COUNT))
    faiss.write_index(index, str(tmp_path / "graph.index"))
    with pytest.raises(ValueError, match="expected a flat index to replace vectors in"):
        opened_push(f"faiss:{tmp_path}/graph.index", store, replace=True)


@pytest.mark.parametrize("factory", ["FlatL2Panorama4", "IVF4,FlatPanorama4", "IVF4,FlatDedup"])
def test_an_index_that_orders_its_numbers_otherwise(factory, tmp_path):
    """Neither read nor written, also where it has as many numbers as a flat one."""
    import faiss

    if "Panorama" in factory and not hasattr(faiss, "IndexFlatL2Panorama"):
        pytest.skip("faiss has no such index")
    rows, path = vectors(1024), tmp_path / "g.index"
    index = faiss.index_factory(8, factory)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(path))
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=rf"found {type(index).__name__}, .* or orders its numbers"
    ):
        opened_pull(f"faiss:{path}", tmp_path / "out")
    store = features(tmp_path / "new", rows[:10], ids=[str(n) for n in range(10)])
    with pytest.raises(ValueError, match=rf"found {type(index).__name__}"):
        opened_push(f"faiss:{path}", store, replace=True)
    assert path.read_bytes() == before


def test_the_journal_is_json_that_says_what_was_done(tmp_path):
    served = serve("parquet", tmp_path, None)
    served.fill(vectors(3))
    result = opened_push(served.url("v2"), features(tmp_path / "new", vectors(3)))
    record = json.loads((result.journal / "journal.json").read_text(encoding="utf-8"))
    assert record["state"] == "done"
    assert record["store"] == served.url("v2")
    assert FeatureStore.open(record["features"]).ids == ["0", "1", "2"]
