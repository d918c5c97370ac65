# SPDX-License-Identifier: Apache-2.0
"""What stores refuse: hostile and half-written files, odd names; connections that are lost."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fclearn.features import FeatureStore
from fclearn.stores import Journal, StoreConnectionError, open_store, pull, push, rollback
from fclearn.stores.urls import StoreUrl, without_password
from served import Served, features, need, numbered, same, serve, vectors

ROOT = Path(__file__).parents[1]
COUNT = 25


def read(url, folder, model="m"):
    with open_store(url) as store:
        return pull(store, folder / "out", model=model)


def write(url, store, **options):
    with open_store(url) as opened:
        return push(store, opened, **{"batch_size": 4, **options})


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


@pytest.mark.parametrize("kind", ["faiss", "parquet"])
@pytest.mark.parametrize("keep", [0, 3, 20, 200, -1])
def test_a_file_that_was_cut_short(kind, keep, tmp_path):
    served = serve(kind, tmp_path, None)
    url = served.fill(vectors(COUNT))
    path = next(path for path in tmp_path.iterdir() if path.is_file())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="not a whole"):
        read(url, tmp_path)
    with pytest.raises(ValueError, match="not a whole"):
        write(url, features(tmp_path / "new", vectors(COUNT)), replace=True)


@pytest.mark.parametrize("kind", ["faiss", "parquet", "qdrant", "milvus"])
def test_a_file_of_something_else(kind, tmp_path):
    served = serve(kind, tmp_path, None)
    url = served.url()
    path = Path(url.partition(":")[2].partition("?")[0])
    if kind == "qdrant":
        path.mkdir()
        path = path / "notes.txt"
    path.write_bytes(b"PAR1 nothing of the kind PAR1" * 10)
    with pytest.raises(ValueError, match=r"not a whole|without meta\.json|not of Milvus Lite"):
        read(url, tmp_path)
    assert path.read_bytes().startswith(b"PAR1 nothing")


DAMAGE = """
import resource, sys
from pathlib import Path
import faiss, numpy as np
from fclearn.stores import open_store

path, factory = sys.argv[1:]
generator = np.random.default_rng(0)
rows = generator.standard_normal((160, 8)).astype("f")
index = faiss.index_factory(8, factory)
index.train(rows)
index.add_with_ids(rows, np.arange(160)) if "IDMap" in factory else index.add(rows)
faiss.write_index(index, path)
whole = Path(path).read_bytes()
# A size that is damaged may ask for any amount of memory.
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
refused = 0
for _ in range(60):
    damaged, at = bytearray(whole), generator.integers(0, 200)
    damaged[at : at + 3] = generator.bytes(3)
    Path(path).write_bytes(damaged)
    try:
        with open_store(f"faiss:{path}") as store:
            assert sum(len(batch.ids) for batch in store.batches(7)) == 160
    except ValueError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize(
    "factory", ["Flat", "IDMap2,Flat", "HNSW8", "IVF4,Flat", "IDMap,IVF4,Flat"]
)
def test_damaged_indexes_end_no_process(factory, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DAMAGE, str(tmp_path / "g.index"), factory],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 60


class Hostile:
    """Its pickle makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("nested", [False, True])
def test_a_hostile_qdrant_folder_runs_nothing(nested, tmp_path):
    served = serve("qdrant", tmp_path, None)
    url = served.fill(vectors(3))
    marker = tmp_path / "code ran"
    database = tmp_path / "qdrant" / "collection" / "old" / "storage.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE points SET point = ?", (pickle.dumps(Hostile(marker)),))
    connection.close()
    if nested:
        meta = tmp_path / "qdrant" / "meta.json"
        (database.parent / "deep").mkdir()
        database.rename(database.parent / "deep" / database.name)
        meta.write_text(meta.read_text().replace('"old"', '"old/deep"'))
    with pytest.raises(ValueError, match="refusing to open: not plain points"):
        read(url, tmp_path)
    with pytest.raises(ValueError, match="refusing to open"):
        write(url, features(tmp_path / "new", vectors(3)), replace=True)
    assert not marker.exists()


def test_a_damaged_qdrant_database(tmp_path):
    served = serve("qdrant", tmp_path, None)
    url = served.fill(vectors(3))
    (tmp_path / "qdrant" / "collection" / "old" / "storage.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(ValueError, match="refusing to open"):
        read(url, tmp_path)


def test_a_hostile_journal_runs_nothing(tmp_path):
    served = serve("qdrant", tmp_path, None)
    url = served.fill(vectors(COUNT))
    result = write(url, features(tmp_path / "new", vectors(COUNT, seed=1)), replace=True)
    marker = tmp_path / "code ran"
    path = result.journal / "before" / "00000000.npz"
    hostile = np.array([Hostile(marker)], dtype=object)
    np.savez(path, ids=hostile, row=hostile, vector=hostile, vectors=hostile)
    before = served.dump()
    with (
        open_store(url) as store,
        pytest.raises(ValueError, match="cannot read what was there before"),
    ):
        rollback(Journal(result.journal), store)
    assert not marker.exists()
    assert same(served.dump(), {name: row for name, (row, _) in before.items()})
    (result.journal / "journal.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="not the journal of a push"):
        Journal(result.journal)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "code").touch()
    with pytest.raises(ValueError, match="expected the journal of a push, found 'code'"):
        Journal(tmp_path / "other")


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
            read(url, tmp_path / url.partition(":")[0])
        with pytest.raises(ValueError, match="found '1' again"):
            write(url, store, replace=True)
    pq.write_table(
        pa.table({"id": ["1", None], "embedding": rows[:2].tolist()}), tmp_path / "b.parquet"
    )
    with pytest.raises(ValueError, match="expected an id in every row"):
        read(f"parquet:{tmp_path}/b.parquet", tmp_path)
    served = serve("postgresql", tmp_path, postgres)
    served.run("CREATE TABLE items (id text, embedding vector(2))")
    served.run(
        "INSERT INTO items VALUES ('a', '[1,2]'), ('b', '[1,2]'), ('a', '[3,4]'), (NULL, '[5,6]')"
    )
    with pytest.raises(ValueError, match="found 1 rows without one and repeated ids: 'a'"):
        read(served.url(), tmp_path)


def test_ids_that_a_store_cannot_have(tmp_path, postgres):
    store = features(tmp_path / "new", vectors(2), ids=["photo-1", "photo-2"])
    for kind, message in (
        ("qdrant", "integers or UUIDs, got 'photo-1'; &id=KEY"),
        ("faiss", "integers, got 'photo-1'"),
    ):
        served = serve(kind, tmp_path, None)
        with pytest.raises(ValueError, match=message):
            write(served.url("v2"), store)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    served = serve("postgresql", tmp_path, postgres)
    served.fill(vectors(2))
    with pytest.raises(ValueError, match="invalid input syntax for type integer"):
        write(served.url("v2"), store)
    assert served.dump("v2") is None
    served = serve("milvus", tmp_path, None)
    bell = features(tmp_path / "bell", vectors(1), ids=["a\x07"])
    with pytest.raises(ValueError, match="cannot ask for ids with control characters"):
        write(served.url("v2"), bell)
    long = features(tmp_path / "long", vectors(1), ids=["a" * 513])
    with pytest.raises(ValueError, match="expected ids up to 512 bytes"):
        write(served.url("v2"), long)
    assert served.dump("v2") is None
    url = served.fill(vectors(2))
    with pytest.raises(ValueError, match="expected integer ids, got 'photo-1'"):
        write(url, store, replace=True)


def test_a_password_is_used_and_written_nowhere(tmp_path, postgres, capfd):
    from fclearn.cli import main

    served = serve("postgresql", tmp_path, postgres)
    served.fill(vectors(COUNT))
    url = served.url("v2").replace("postgres:@", "postgres:secret@") + "&password=secret"
    store = features(tmp_path / "new", vectors(COUNT, seed=1))
    result = write(url, store)
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
    result = write(served.url("v2") + "&type=halfvec", features(tmp_path / "new", new))
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
    result = write(url, features(tmp_path / "new", vectors(COUNT, seed=1)))
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
    first = write(url, features(tmp_path / "a", rows[1:], ids=ids[1:]))
    second = write(url, features(tmp_path / "b", rows[:1], ids=ids[:1]))
    pulled = read(url, tmp_path, "new")
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
        write(served.url("v2"), features(tmp_path / "new", vectors(3)), journal=tmp_path / "book")


def test_a_journal_belongs_to_one_push(tmp_path):
    served = serve("parquet", tmp_path, None)
    served.fill(vectors(3))
    store = features(tmp_path / "new", vectors(3, seed=1))
    write(served.url("v2"), store, journal=tmp_path / "book")
    with pytest.raises(ValueError, match=r"journal of another push \(store differ\)"):
        write(served.url("v3"), store, journal=tmp_path / "book")
    changed = features(tmp_path / "new", vectors(3, seed=2))
    with pytest.raises(ValueError, match=r"journal of another push \(checksum differ\)"):
        write(served.url("v2"), changed, journal=tmp_path / "book")


def test_a_pull_begun_with_other_settings(tmp_path):
    served = serve("parquet", tmp_path, None)
    url = served.fill(vectors(COUNT))
    stop = RuntimeError("stop")

    def stopping(*_):
        raise stop

    with open_store(url) as store, pytest.raises(RuntimeError, match="stop"):
        pull(store, tmp_path / "out", model="a", batch_size=4, progress=stopping)
    with pytest.raises(ValueError, match="a pull begun with other settings: model"):
        read(url, tmp_path)
    (tmp_path / "out.pull" / "vectors.bin").write_bytes(b"")
    with open_store(url) as store, pytest.raises(ValueError, match="files cut short"):
        pull(store, tmp_path / "out", model="a")
    (tmp_path / "out.pull" / "progress.json").write_text("{")
    with pytest.raises(ValueError, match="not a record of progress"):
        read(url, tmp_path)


def test_postgres_ends_the_connection_in_the_middle(tmp_path, postgres):
    served = serve("postgresql", tmp_path, postgres)
    old, new = vectors(COUNT), vectors(COUNT, seed=1)
    url = served.fill(old)
    store = features(tmp_path / "new", new)
    ended = []

    def end(*_):
        ended.append(
            served.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )

    write(url, store, replace=True, progress=end)
    assert [(True,)] in ended
    assert same(served.dump(), numbered(new))
    with open_store(url) as opened:
        pulled = pull(opened, tmp_path / "out", model="m", batch_size=4, progress=end)
    assert [int(name) for name in pulled.ids] == list(range(COUNT))
    np.testing.assert_array_equal(pulled.features, new)


def test_postgres_goes_away_and_comes_back(tmp_path, postgres, monkeypatch):
    served = serve("postgresql", tmp_path, postgres)
    old, new = vectors(COUNT), vectors(COUNT, seed=1)
    url = served.fill(old)
    store = features(tmp_path / "new", new)
    monkeypatch.setattr("fclearn.stores.opening._WAITS", (0.0,))
    name = served.run("SELECT current_database()")[0][0]
    other = Served("postgresql", tmp_path)
    other.uri = served.uri.replace(name, "postgres")

    def leave(count, _):
        if count == 12:
            from served import ServedPostgres

            run = ServedPostgres.run
            run(other, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            run(
                other,
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
            )

    with pytest.raises(StoreConnectionError, match="no connection"):
        write(url, store, replace=True, progress=leave)
    from served import ServedPostgres

    ServedPostgres.run(other, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    half = served.dump()
    assert sum(np.allclose(half[n][0], new[int(n)]) for n in half) == 12
    write(url, store, replace=True)
    assert same(served.dump(), numbered(new))


SERVER = """
import sys
from milvus_lite.adapter.grpc.server import start_server_in_thread

server, db, port = start_server_in_thread(sys.argv[1], port=int(sys.argv[2]))
print(port, flush=True)
server.wait_for_termination()
"""


def start_milvus(folder, port=0):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), str(port)], stdout=subprocess.PIPE, text=True
    )
    return process, int(process.stdout.readline())


@pytest.mark.slow
def test_a_milvus_server_is_killed_and_started_again(tmp_path, monkeypatch):
    """Milvus Lite's own server, over the network, as a larger Milvus would be."""
    need("milvus")
    process, port = start_milvus(tmp_path / "served.db")
    url = f"milvus:http://127.0.0.1:{port}?collection=v2"
    rows = vectors(COUNT)
    store = features(tmp_path / "new", rows)

    def kill(count, _):
        if count == 12:
            process.kill()
            process.wait()

    try:
        with monkeypatch.context() as patch:
            patch.setattr("fclearn.stores.opening._WAITS", (0.0,))
            with pytest.raises(StoreConnectionError):
                write(url, store, progress=kill)
        process.stdout.close()
        process, again = start_milvus(tmp_path / "served.db", port)
        assert again == port
        # gRPC waits a second before it asks again at an address that failed.
        assert write(url, store).rows == COUNT
        pulled = read(url, tmp_path, "new")
        assert sorted(map(int, pulled.ids)) == list(range(COUNT))
        np.testing.assert_array_equal(pulled.features, rows[[int(n) for n in pulled.ids]])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("qdrant", "qdrant:http://127.0.0.1:9?collection=items"),
        ("milvus", "milvus:http://127.0.0.1:9?collection=items"),
        ("postgresql", "postgresql://me@127.0.0.1:9/shop?table=items"),
    ],
)
def test_a_server_that_is_not_there(kind, name, tmp_path, monkeypatch):
    need(kind)
    monkeypatch.setattr("fclearn.stores.opening._WAITS", (0.0,))
    store = features(tmp_path / "new", vectors(3))
    for action in (lambda: read(name, tmp_path), lambda: write(name, store)):
        with pytest.raises(StoreConnectionError, match=r"store .*127\.0\.0\.1"):
            action()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


@pytest.mark.skipif(
    "FCL_TEST_QDRANT" not in os.environ, reason="no server: FCL_TEST_QDRANT=http://…"
)
def test_a_qdrant_server(tmp_path):
    url = f"qdrant:{os.environ['FCL_TEST_QDRANT']}?collection=fcl-test-{os.getpid()}"
    rows = vectors(COUNT)
    result = write(url, features(tmp_path / "new", rows))
    try:
        pulled = read(url, tmp_path, "new")
        assert sorted(map(int, pulled.ids)) == list(range(COUNT))
        order = [int(name) for name in pulled.ids]
        np.testing.assert_allclose(pulled.features, rows[order], atol=2e-7)
        other = vectors(COUNT, seed=1)
        later = write(url, features(tmp_path / "b", other, "b"), replace=True, ids=["3", "4"])
        with open_store(url) as store:
            np.testing.assert_allclose(store.lookup(["4"]).vectors[0], other[4], atol=2e-7)
            assert rollback(Journal(later.journal), store).restored == 2
            np.testing.assert_allclose(store.lookup(["4"]).vectors[0], rows[4], atol=2e-7)
    finally:
        with open_store(url) as store:
            rollback(Journal(result.journal), store)
            assert store.info() is None


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
        read(f"faiss:{tmp_path}/codes.index", tmp_path)
    store = features(tmp_path / "new", vectors(COUNT), ids=[str(n) for n in range(COUNT)])
    index = faiss.index_factory(8, "HNSW8")
    index.add(vectors(COUNT))
    faiss.write_index(index, str(tmp_path / "graph.index"))
    with pytest.raises(ValueError, match="expected a flat index to replace vectors in"):
        write(f"faiss:{tmp_path}/graph.index", store, replace=True)


def test_the_journal_is_json_that_says_what_was_done(tmp_path):
    served = serve("parquet", tmp_path, None)
    served.fill(vectors(3))
    result = write(served.url("v2"), features(tmp_path / "new", vectors(3)))
    record = json.loads((result.journal / "journal.json").read_text(encoding="utf-8"))
    assert record["state"] == "done"
    assert record["store"] == served.url("v2")
    assert FeatureStore.open(record["features"]).ids == ["0", "1", "2"]
