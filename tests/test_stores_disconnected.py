# SPDX-License-Identifier: Apache-2.0
"""Servers that are lost, come back, or were never there."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from opened_stores import COUNT, opened_pull, opened_push

from fclearn.stores import Journal, StoreConnectionError, open_store, pull, rollback
from served import Served, features, need, numbered, same, serve, vectors


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

    opened_push(url, store, replace=True, progress=end)
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
        opened_push(url, store, replace=True, progress=leave)
    from served import ServedPostgres

    ServedPostgres.run(other, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    half = served.dump()
    assert sum(np.allclose(half[n][0], new[int(n)]) for n in half) == 12
    opened_push(url, store, replace=True)
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
                opened_push(url, store, progress=kill)
        process.stdout.close()
        process, again = start_milvus(tmp_path / "served.db", port)
        assert again == port
        # gRPC waits a second before it asks again at an address that failed.
        assert opened_push(url, store).rows == COUNT
        pulled = opened_pull(url, tmp_path / "out", model="new")
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
    for action in (lambda: opened_pull(name, tmp_path / "out"), lambda: opened_push(name, store)):
        with pytest.raises(StoreConnectionError, match=r"store .*127\.0\.0\.1"):
            action()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


@pytest.mark.skipif(
    "FCL_TEST_QDRANT" not in os.environ, reason="no server: FCL_TEST_QDRANT=http://…"
)
def test_a_qdrant_server(tmp_path):
    url = f"qdrant:{os.environ['FCL_TEST_QDRANT']}?collection=fcl-test-{os.getpid()}"
    rows = vectors(COUNT)
    result = opened_push(url, features(tmp_path / "new", rows))
    try:
        pulled = opened_pull(url, tmp_path / "out", model="new")
        assert sorted(map(int, pulled.ids)) == list(range(COUNT))
        order = [int(name) for name in pulled.ids]
        np.testing.assert_allclose(pulled.features, rows[order], atol=2e-7)
        other = vectors(COUNT, seed=1)
        later = opened_push(url, features(tmp_path / "b", other, "b"), replace=True, ids=["3", "4"])
        with open_store(url) as store:
            np.testing.assert_allclose(store.lookup(["4"]).vectors[0], other[4], atol=2e-7)
            assert rollback(Journal(later.journal), store).restored == 2
            np.testing.assert_allclose(store.lookup(["4"]).vectors[0], rows[4], atol=2e-7)
    finally:
        with open_store(url) as store:
            rollback(Journal(result.journal), store)
            assert store.info() is None
