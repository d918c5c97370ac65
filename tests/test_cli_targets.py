# SPDX-License-Identifier: Apache-2.0
"""What a verb finds at ``--out``: nothing is replaced unasked, nor ever a thing of another kind."""

from __future__ import annotations

import numpy as np
import pytest
from cli_samples import refused, write_store

from fclearn.adapters import load_adapter
from fclearn.features import FeatureStore
from fclearn.graph import KnnGraph

LABELS = np.arange(48) % 8


@pytest.fixture
def stores(fcl, tmp_path):
    """Two models' stores of the same rows, a graph of the old one and an adapter between them."""
    rng = np.random.default_rng(0)
    old = rng.standard_normal((8, 6))[LABELS] + 0.5 * rng.standard_normal((48, 6))
    write_store(tmp_path / "old", old, LABELS, "old-v1")
    write_store(tmp_path / "new", old @ rng.standard_normal((6, 6)), LABELS, "new-v1")
    write_store(tmp_path / "gone", old[::-1], LABELS, "gone-v0")
    for command in commands(tmp_path):
        if command[0] == "graph" or "--old" in command:
            assert fcl(*command, "--out", tmp_path / made_by(command))[0] == 0
    return tmp_path


def commands(root):
    """Verbs on stores, without where they write to."""
    return [
        ["graph", root / "old", "--k", 2],
        ["adapt", "--old", root / "old", "--new", root / "new", "--adapter", "ridge", "--no-check"],
        ["walk", root / "graph.safetensors", root / "old"],
        ["adapt", "--apply", root / "adapter.safetensors", "--features", root / "new"],
    ]


def made_by(command):
    return "graph.safetensors" if command[0] == "graph" else "adapter.safetensors"


def contents(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def never(*_arguments, **_options):
    raise AssertionError("work was done before the refusal")


@pytest.fixture
def idle(stores, monkeypatch):  # noqa: ARG001 - which are made by such work
    """Work would be an error."""
    monkeypatch.setattr("fclearn.graph.KnnGraph.build", never)
    monkeypatch.setattr("fclearn.adapters.Ridge.fit", never)
    monkeypatch.setattr("fclearn.adapters.Ridge.transform", never)
    monkeypatch.setattr("fclearn.out_of_core.walk_file", never)
    monkeypatch.setattr("fclearn.embedding.embed_batches", never)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.usefixtures("idle")
def test_a_store_is_not_replaced_unasked(fcl, stores, number):
    before = contents(stores)
    command = [*commands(stores)[number], "--out", stores / "gone"]
    said = f"--out: {stores / 'gone'}: expected nothing there, found the feature store of model "
    assert refused(fcl(*command), said, "'gone-v0': give another name, or --replace")
    assert contents(stores) == before


@pytest.mark.parametrize("number", [2, 3])
def test_a_store_is_replaced_by_a_store_if_told_to(fcl, stores, number):
    command = [*commands(stores)[number], "--out", stores / "gone"]
    assert fcl(*command, "--replace")[0] == 0
    assert FeatureStore.open(stores / "gone").fingerprint.model == "old-v1"
    assert "already; --replace " in fcl(*command)[2]
    # Now it is there, and another would replace it only if told to.
    FeatureStore.write(
        stores / "new",
        np.array(FeatureStore.open(stores / "new").features[::-1]),
        FeatureStore.open(stores / "new").manifest,
        FeatureStore.open(stores / "new").fingerprint,
    )
    other = [*command, "--steps", 3] if number == 2 else command
    assert refused(fcl(*other), "found the feature store of model 'old-v1'")


@pytest.mark.parametrize("number", [2, 3])
def test_a_store_that_is_made_is_not_made_again(fcl, stores, number, monkeypatch):
    command = [*commands(stores)[number], "--out", stores / "out", "--json"]
    code, facts, _ = fcl(*command)
    assert code == 0
    before = contents(stores)
    with monkeypatch.context() as patch:
        patch.setattr("fclearn.adapters.Ridge.transform", never)
        patch.setattr("fclearn.out_of_core.walk_file", never)
        code, again, said = fcl(*command)
    assert (code, again) == (0, facts)
    assert f"{stores / 'out'} has these rows by this " in said
    assert contents(stores) == before
    assert fcl(*command, "--replace")[1] == facts
    # A store of the same rows, model and options of which nothing says what made it.
    (stores / "out" / "source.txt").unlink()
    assert refused(fcl(*command), "expected nothing there, found the feature store")


@pytest.mark.parametrize(
    ("number", "changed"),
    [(2, "rows"), (3, "rows"), (2, "manifest"), (3, "manifest"), (2, "file"), (3, "file"),
     (2, "options")],
)  # fmt: skip
def test_a_store_that_would_be_another_is_refused(fcl, stores, number, changed):
    command = [*commands(stores)[number], "--out", stores / "out"]
    assert fcl(*command)[0] == 0
    store = FeatureStore.open(stores / ("old" if number == 2 else "new"))
    rows, columns = np.array(store.features), dict(store.manifest)
    if changed == "options":
        command += ["--damping", 0.3]
    elif changed == "file":
        first = commands(stores)[number - 2]
        more = ["--k", 3] if number == 2 else ["--adapter", "procrustes"]
        assert fcl(*first, *more, "--out", stores / made_by(first), "--replace")[0] == 0
    else:
        rows = rows[::-1] if changed == "rows" else rows
        columns |= {"more": store.ids} if changed == "manifest" else {}
        FeatureStore.write(store.path, rows, columns, store.fingerprint)
    assert refused(fcl(*command), "expected nothing there, found the feature store of model")


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("kind", ["file", "folder", "half", "input"])
@pytest.mark.usefixtures("idle")
def test_nothing_but_another_store_is_replaced_by_a_store(fcl, stores, number, kind):
    out = stores / "out"
    if kind == "input":
        out = stores / ("old" if number == 2 else "new")
    elif kind == "file":
        out.write_text("notes")
    else:
        out.mkdir()
        (out / ("features.npy" if kind == "half" else "notes.txt")).write_text("mine")
    before = contents(stores)
    for more in ([], ["--replace"]):
        said = "stays as it is" if kind == "input" else "expected nothing or a feature store"
        assert refused(fcl(*commands(stores)[number], "--out", out, *more), said)
    assert contents(stores) == before


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.usefixtures("idle")
def test_a_file_is_not_replaced_unasked(fcl, stores, number):
    before = contents(stores)
    command = commands(stores)[number]
    kind = ["a graph", "an adapter"][number]
    said = f"expected nothing there, found {kind}: give another name, or --replace"
    assert refused(fcl(*command, "--out", stores / made_by(command)), said)
    assert contents(stores) == before


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_is_replaced_by_one_of_its_kind_if_told_to(fcl, stores, number):
    command = commands(stores)[number]
    file = stores / made_by(command)
    other = [["--k", 5], ["--direction", "old-to-new"]][number]
    assert fcl(*command, *other, "--out", file, "--replace")[0] == 0
    if number == 0:
        assert KnnGraph.load(file).num_edges == 5 * len(LABELS)
    else:
        assert load_adapter(file).direction == "old-to-new"


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", ["notes", "of a store", "other kind", "folder"])
@pytest.mark.usefixtures("idle")
def test_no_other_file_is_replaced(fcl, stores, number, kind):
    (stores / "notes.txt").write_text("mine")
    out = {
        "notes": stores / "notes.txt",
        "of a store": stores / "old" / "features.npy",
        "other kind": stores / ["adapter.safetensors", "graph.safetensors"][number],
        "folder": stores / "gone",
    }[kind]
    before = contents(stores)
    wanted = ["a graph", "an adapter"][number]
    said = "found a folder" if kind == "folder" else f"expected nothing or {wanted} to replace"
    for more in ([], ["--replace"]):
        assert refused(fcl(*commands(stores)[number], "--out", out, *more), f"{out}: ", said)
    assert contents(stores) == before


def test_embedding_replaces_no_store_unasked(fcl, work, photos, stores, monkeypatch):
    command = ["embed", work / "old", photos, "--out", stores / "gone"]
    with monkeypatch.context() as patch:
        patch.setattr("fclearn.embedding.embed_batches", never)
        assert refused(fcl(*command), "found the feature store of model 'gone-v0'", "--replace")
        assert refused(fcl(*command[:-1], photos, "--replace"), "stays as it is")
    assert FeatureStore.open(stores / "gone").fingerprint.model == "gone-v0"
    assert fcl(*command, "--replace")[0] == 0
    assert FeatureStore.open(stores / "gone").ids == FeatureStore.open(work / "old-store").ids


def test_an_empty_folder_is_nothing(fcl, stores):
    (stores / "out").mkdir()
    assert fcl(*commands(stores)[2], "--out", stores / "out")[0] == 0
