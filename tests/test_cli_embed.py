# SPDX-License-Identifier: Apache-2.0
"""``fcl embed`` on a few real drawings, and the models it refuses."""

from __future__ import annotations

import json

import numpy as np
from cli_samples import refused

from fclearn.features import FeatureStore


def test_stores_of_two_models_differ_in_fingerprint(work):
    old, new = FeatureStore.open(work / "old-store"), FeatureStore.open(work / "new-store")
    assert old.ids == new.ids
    assert old.fingerprint != new.fingerprint
    np.testing.assert_allclose(np.linalg.norm(new.features, axis=1), 1, atol=1e-6)


def test_embed_says_what_it_wrote(work, photos, fcl, tmp_path):
    store = tmp_path / "half"
    name = sorted(folder.name for folder in photos.iterdir())[1]
    code, result, _ = fcl(
        *("embed", work / "new", photos, "--out", store, "--json"),
        *("--class", name, "--dtype", "float16", "--batch-size", 2),
    )
    assert code == 0
    opened = FeatureStore.open(store)
    assert result["rows"] == len(opened) == len(list((photos / name).iterdir()))
    assert result["dim"] == 8
    assert opened.features.dtype == np.float16
    assert set(opened.manifest["class_name"]) == {name}


def test_refused_models(work, photos, fcl, tmp_path):
    store = tmp_path / "store"
    assert refused(fcl("embed", tmp_path, photos, "--out", store), "expected a model written by")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.json", "model.safetensors"):
        (model / name).write_bytes((work / "old" / name).read_bytes())
    weights = (model / "model.safetensors").read_bytes()
    for damaged in (weights[:-4], b"", (work / "new" / "model.safetensors").read_bytes()):
        (model / "model.safetensors").write_bytes(damaged)
        assert refused(fcl("embed", model, photos, "--out", store), "damaged, or not the weights")
    (model / "model.json").write_text('{"encoder": "small-cnn", "dimm": 3}', encoding="utf-8")
    assert refused(fcl("embed", model, photos, "--out", store), "unknown key 'dimm'")
    assert not store.exists()


def test_refused_embeddings(work, fcl, tmp_path):
    out = ["--out", tmp_path / "store"]
    assert refused(fcl("embed", work / "old", "iconss", *out), "data: expected icons, fashion-")
    dtype = ["--dtype", "int8"]
    assert refused(fcl("embed", work / "old", "icons", *dtype, *out), "--dtype: expected float32")
    unknown = ["--class", "no such icon"]
    assert refused(fcl("embed", work / "old", "icons", *unknown, *out), "no class 'no such icon'")


def test_embedding_again_does_nothing(work, photos, fcl, tmp_path, monkeypatch):
    command = ["embed", work / "old", photos, "--out", tmp_path / "store", "--json"]
    code, facts, _ = fcl(*command)
    assert code == 0
    embedded = []
    monkeypatch.setattr(
        "fclearn.embedding.embed_batches", lambda *_args, **_options: embedded.append(1)
    )
    code, again, error = fcl(*command)
    assert (code, again, embedded) == (0, facts, [])
    assert "has these rows by this model already; --replace embeds them again" in error
    # Another dtype, or another model's store, is not this.
    for other in ([*command, "--dtype", "float16"], ["embed", work / "new", *command[2:]]):
        code, _, error = fcl(*other)
        assert code == 2
        assert "--replace" in error


def test_reports_of_photos_show_them_wherever_the_stores_are(
    work, photos, fcl, tmp_path, monkeypatch
):
    monkeypatch.chdir(photos.parent)
    stores = []
    for name in ("old", "new"):
        assert fcl("embed", work / name, photos.name, "--out", tmp_path / f"{name}-made")[0] == 0
        stores.append((tmp_path / f"{name}-made").rename(tmp_path / name))
    opened = FeatureStore.open(stores[0])
    assert opened.manifest["path"] == [str(photos / name) for name in opened.ids]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    evaluate = ["eval", "--old-query", stores[0], "--new-query", stores[1], "--num-bootstrap", 10]
    assert fcl(*evaluate, "--report", tmp_path / "run")[0] == 0
    shown = json.loads((tmp_path / "run" / "retrieval_examples.json").read_text())
    assert shown
    assert all(one["image"] for one in shown)
    # Stores of before do not say where their images are.
    for store in map(FeatureStore.open, stores):
        columns = {name: store.manifest[name] for name in ("id", "label", "class_name")}
        FeatureStore.write(store.path, np.array(store.features), columns, store.fingerprint)
    assert fcl(*evaluate, "--report", tmp_path / "without")[0] == 0
    assert json.loads((tmp_path / "without" / "retrieval_examples.json").read_text()) == []
