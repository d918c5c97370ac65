# SPDX-License-Identifier: Apache-2.0
"""Stores that are damaged, hostile or something else are refused, and run nothing."""

from __future__ import annotations

import pickle
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from opened_stores import COUNT, opened_pull, opened_push

from fclearn.stores import Journal, open_store, rollback
from served import features, numbered, same, serve, vectors
from support import run_apart


@pytest.mark.parametrize("kind", ["faiss", "parquet"])
@pytest.mark.parametrize("keep", [0, 3, 20, 200, -1])
def test_a_file_that_was_cut_short(kind, keep, tmp_path):
    served = serve(kind, tmp_path, None)
    url = served.fill(vectors(COUNT))
    path = next(path for path in tmp_path.iterdir() if path.is_file())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="not a whole"):
        opened_pull(url, tmp_path / "out")
    with pytest.raises(ValueError, match="not a whole"):
        opened_push(url, features(tmp_path / "new", vectors(COUNT)), replace=True)


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
        opened_pull(url, tmp_path / "out")
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
    done = run_apart(DAMAGE, tmp_path / "g.index", factory)
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
        opened_pull(url, tmp_path / "out")
    with pytest.raises(ValueError, match="refusing to open"):
        opened_push(url, features(tmp_path / "new", vectors(3)), replace=True)
    assert not marker.exists()


def test_a_damaged_qdrant_database(tmp_path):
    served = serve("qdrant", tmp_path, None)
    url = served.fill(vectors(3))
    (tmp_path / "qdrant" / "collection" / "old" / "storage.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(ValueError, match="refusing to open"):
        opened_pull(url, tmp_path / "out")


def test_a_qdrant_folder_left_in_the_middle_of_a_transaction(tmp_path):
    served = serve("qdrant", tmp_path, None)
    url = served.fill(vectors(COUNT))
    folder = tmp_path / "qdrant" / "collection" / "old"
    before = (folder / "storage.sqlite").read_bytes()
    left = tmp_path / "left"
    with sqlite3.connect(folder / "storage.sqlite") as connection:
        connection.execute("PRAGMA cache_size = 1")  # so that pages are written before the commit
        connection.execute("UPDATE points SET point = zeroblob(length(point))")
        shutil.copytree(folder, left)  # as a process killed at this instant leaves it
        connection.rollback()
    connection.close()
    assert (left / "storage.sqlite-journal").exists()
    assert (left / "storage.sqlite").read_bytes() != before
    shutil.rmtree(folder)
    left.rename(folder)
    out = tmp_path / "out"
    opened_pull(url, out)
    assert same(served.dump(), numbered(vectors(COUNT)))


def test_a_hostile_journal_runs_nothing(tmp_path):
    served = serve("qdrant", tmp_path, None)
    url = served.fill(vectors(COUNT))
    result = opened_push(url, features(tmp_path / "new", vectors(COUNT, seed=1)), replace=True)
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
