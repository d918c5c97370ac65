# SPDX-License-Identifier: Apache-2.0
"""Killed with SIGKILL in the middle, a push and a rollback go on: nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fclearn.stores import Journal, open_store, push, rollback
from served import KINDS, ROWS, features, numbered, same, serve, vectors

ROOT = Path(__file__).parents[1]
COUNT, BATCH = 40, 3
# Runs a push or a rollback and kills itself at the n-th call of one of the functions named: before
# it, or right after it.
SCRIPT = """
import os, signal, sys, json
from importlib import import_module
from fclearn.features import FeatureStore
from fclearn.stores import Journal, open_store, push, rollback

features, url, options, action, place, name, moment, count = json.loads(sys.argv[1])
place = import_module(place)
owner = getattr(place, name.split(".")[0]) if "." in name else place
name = name.split(".")[-1]
original, calls = getattr(owner, name), 0


def killing(*arguments, **more):
    global calls
    calls += 1
    if calls == count and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **more)
    if calls == count and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result


setattr(owner, name, killing)
with open_store(url) as store:
    if action == "push":
        push(FeatureStore.open(features), store, **options)
    else:
        rollback(Journal(features), store)
"""
_STORES = {"qdrant": "QdrantStore", "postgresql": "PostgresStore", "milvus": "MilvusStore"}
_MODULES = {"qdrant": "qdrant", "postgresql": "postgres", "milvus": "milvus"}


def killed(path, url, options, action, where):
    """Run the script with each way to die in turn; each must have died of it."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}"}
    for module, name, moment, count in where:
        given = [str(path), url, options, action, f"fclearn.stores.{module}", name, moment, count]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(given)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_a_killed_push_goes_on(kind, tmp_path, postgres):
    served = serve(kind, tmp_path, postgres)
    old, new = vectors(COUNT), vectors(COUNT, seed=1)
    url = served.fill(old)
    store = features(tmp_path / "new", new)
    chosen = [str(number) for number in np.random.default_rng(5).permutation(COUNT)[:31]]
    options = {"ids": chosen, "replace": True, "batch_size": BATCH, "journal": f"{tmp_path}/book"}
    where = [
        (_MODULES[kind], f"{_STORES[kind]}.update", "before", 2),
        (_MODULES[kind], f"{_STORES[kind]}.update", "after", 3),
        ("journal", "Journal.write_before", "after", 2),
        ("journal", "Journal.write_after", "before", 2),
    ]
    killed(store.path, url, options, "push", where)
    half = served.dump()
    changed = [n for n in half if not np.allclose(half[n][0], old[int(n)], atol=1e-6)]
    assert 0 < len(changed) < len(chosen)
    with open_store(url) as opened:
        # Another batch size must not cut the rows otherwise than the journal did.
        result = push(store, opened, **{**options, "batch_size": 7})
    assert same(served.dump(), {**numbered(old), **{n: new[int(n)] for n in chosen}})
    # Back again, killed on the way as well.
    undo = [(_MODULES[kind], f"{_STORES[kind]}.update", "after", 4)] * 2
    killed(result.journal, url, {}, "rollback", undo)
    with open_store(url) as opened:
        rollback(Journal(result.journal), opened)
    assert same(served.dump(), numbered(old))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_a_killed_push_of_something_new_goes_on_or_is_undone(kind, tmp_path, postgres):
    served = serve(kind, tmp_path, postgres)
    old, new = vectors(COUNT), vectors(COUNT, 12, seed=1)
    served.fill(old)
    url = served.url("v2")
    store = features(tmp_path / "new", new)
    options = {"batch_size": BATCH, "journal": f"{tmp_path}/book"}
    write = f"{_STORES[kind]}.{'update' if kind == 'postgresql' else 'insert'}"
    where = [
        (_MODULES[kind], f"{_STORES[kind]}.create", "before", 1),
        (_MODULES[kind], f"{_STORES[kind]}.create", "after", 1),
        (_MODULES[kind], write, "after", 4),
    ]
    killed(store.path, url, options, "push", where)
    with open_store(url) as opened:
        undone = rollback(Journal(tmp_path / "book"), opened)
    assert undone.removed == 4 * BATCH
    assert served.dump("v2") is None
    killed(store.path, url, options, "push", where[2:])
    with open_store(url) as opened:
        push(store, opened, **options)
    assert same(served.dump("v2"), numbered(new))
    assert same(served.dump(), numbered(old))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ROWS])
@pytest.mark.parametrize("replace", [False, True])
def test_a_killed_push_into_a_file_goes_on(kind, replace, tmp_path):
    served = serve(kind, tmp_path, None)
    old, new = vectors(COUNT), vectors(COUNT, seed=1)
    served.fill(old)
    name = "old" if replace else "v2"
    url, path = served.url(name), tmp_path / f"{name}.{'index' if kind == 'faiss' else 'parquet'}"
    before = path.read_bytes() if replace else None
    store = features(tmp_path / "new", new)
    options = {"replace": replace, "journal": f"{tmp_path}/book"}
    where = [
        ("push_file", "_keep", "after", 1),
        ("push_file", "digest", "after", 2),
        ("push_file", "sync_folder", "before", 1),
    ]
    where = where if replace else where[1:]
    killed(store.path, url, options, "push", where[:-1])
    if replace:
        assert path.read_bytes() == before  # whole, and still the old one
    else:
        assert not path.exists()
    killed(store.path, url, options, "push", where[-1:])
    assert same(served.dump(name), numbered(new))
    with open_store(url) as opened:
        result = push(store, opened, **options)
    assert same(served.dump(name), numbered(new))
    with open_store(url) as opened:
        rollback(Journal(result.journal), opened)
    if replace:
        assert path.read_bytes() == before
    else:
        assert not path.exists()
