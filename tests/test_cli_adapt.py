# SPDX-License-Identifier: Apache-2.0
"""Verbs adapt and export on small stores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from store_samples import overwritten, unit

from fclearn.adapters import load_adapter
from fclearn.cli import adapt_run
from fclearn.features import FeatureStore, FeatureWriter, Fingerprint
from fclearn.probe import NEW_TO_OLD, probe


@pytest.fixture
def stores(tmp_path):
    """Old and new features of the same items, the new ones in another order and of more items."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 9
    new = torch.eye(9)[labels] + 0.2 * torch.randn(90, 9, generator=generator)
    old = new @ torch.randn(9, 6, generator=generator) + 0.1 * torch.randn(
        90, 6, generator=generator
    )
    ids = [f"item{i}" for i in range(90)]
    FeatureStore.write(
        tmp_path / "old",
        old[:80],
        {"id": ids[:80], "label": labels[:80].numpy()},
        Fingerprint("old-model", 6, norm="none"),
    )
    order = torch.randperm(90, generator=generator).tolist()
    FeatureStore.write(
        tmp_path / "new",
        new[order],
        {"id": [ids[i] for i in order], "label": labels[order].numpy()},
        Fingerprint("new-model", 9, norm="none"),
    )
    return tmp_path


def _fit(stores, *more, out="adapter.safetensors"):
    return [
        *("adapt", "--old", stores / "old", "--new", stores / "new"),
        *("--out", stores / out, *more),
    ]


def test_fit_map_and_refuse_the_wrong_features(stores, fcl):
    code, result, error = fcl(*_fit(stores, "--adapter", "ridge", "--json"))
    assert code == 0
    assert result["rows"] == 80
    assert result["check"]["mapped"]["direction"].startswith("new query")
    said = "measured on 2 of the 9 classes, held out: none of their items were fitted on\nthere, 18"
    assert f"first {said} queries among 18 rows: mAP" in error
    assert "Only 2 classes were held out" in error
    assert "--split items measures that" in error
    assert "% by the old model alone" in error
    mapped_path = stores / "mapped"
    command = ["adapt", "--apply", stores / "adapter.safetensors", "--out", mapped_path]
    assert fcl(*command, "--features", stores / "new")[0] == 0
    mapped = FeatureStore.open(mapped_path)
    new = FeatureStore.open(stores / "new")
    assert mapped.ids == new.ids
    assert mapped.fingerprint.model == "old-model"
    assert mapped.fingerprint.preprocessing == "new-model by ridge"
    expected = load_adapter(stores / "adapter.safetensors").transform(np.array(new.features))
    np.testing.assert_allclose(mapped.features, expected, atol=1e-6)
    # Mapped new features lie near the old ones of the same items.
    row = {name: i for i, name in enumerate(mapped.ids)}
    old = FeatureStore.open(stores / "old")
    matched = mapped.features[[row[name] for name in old.ids]]
    assert (unit(old.features) * matched).sum(1).mean() > 0.9
    code, _, error = fcl(*command[:-1], stores / "wrong", "--features", stores / "old")
    assert code == 2
    assert "refusing to mix features" in error
    code, _, error = fcl(*command, "--features", stores / "new", "--split", "items")
    assert code == 2
    assert "--split: expected --old and --new, which are split, not --apply" in error


def test_the_other_direction_and_clusters(stores, fcl):
    more = ["--direction", "old-to-new", "--clusters", 9, "--adapter", "compat-head", "--no-check"]
    code, result, _ = fcl(*_fit(stores, *more, "--json"))
    assert code == 0
    assert "check" not in result
    adapter = load_adapter(stores / "adapter.safetensors")
    assert (adapter.source_dim, adapter.target.model) == (6, "new-model")


def test_heads_that_faiss_takes(stores, fcl):
    faiss = pytest.importorskip("faiss")
    more = ["--head", "linear", "--orthogonal", "--json"]
    code, result, _ = fcl(*_fit(stores, *more))
    assert code == 0
    adapter = load_adapter(stores / "adapter.safetensors")
    assert (adapter.name, adapter.direction) == ("compat-head", "new-to-old")
    weight, _ = adapter.affine()
    torch.testing.assert_close(weight.T @ weight, torch.eye(6), atol=1e-5, rtol=0)
    # What was measured first is what was written: not the usual head.
    _, usual, _ = fcl(*_fit(stores, "--json", out="usual.safetensors"))
    assert result["check"]["mapped"]["metrics"] != usual["check"]["mapped"]["metrics"]
    index = faiss.IndexFlatIP(6)
    index.add(unit(FeatureStore.open(stores / "old").features))
    faiss.write_index(index, str(stores / "old.faiss"))
    export = ["--out", stores / "new.faiss", "--index", stores / "old.faiss"]
    assert fcl("export", stores / "adapter.safetensors", *export)[0] == 0
    code, _, error = fcl("export", stores / "usual.safetensors", *export)
    assert code == 2
    assert "affine maps only" in error


def test_class_names_serve_where_there_are_no_numbers(stores, fcl):
    old = FeatureStore.open(stores / "old")
    assert fcl(*_fit(stores))[0] == 0
    names = {"id": old.ids, "class_name": [f"class {label}" for label in old.labels]}
    FeatureStore.write(stores / "old", np.array(old.features), names, old.fingerprint)
    assert fcl(*_fit(stores, out="named.safetensors"))[0] == 0
    files = [(stores / f"{name}.safetensors").read_bytes() for name in ("adapter", "named")]
    assert files[0] == files[1]


def test_what_cannot_be_measured_first_says_how_to_go_on(stores, fcl):
    old = FeatureStore.open(stores / "old")
    few = {"id": old.ids, "label": np.arange(80) % 3}
    FeatureStore.write(stores / "old", np.array(old.features), few, old.fingerprint)
    code, _, error = fcl(*_fit(stores))
    assert code == 2
    said = "--split items holds out items, --no-check fits without"
    assert f"got 3 in all ({said})" in error
    assert fcl(*_fit(stores, "--no-check"))[0] == 0
    pairs = {"id": old.ids, "label": np.arange(80) // 2}
    FeatureStore.write(stores / "old", np.array(old.features), pairs, old.fingerprint)
    code, _, error = fcl(*_fit(stores, "--split", "items", out="other.safetensors"))
    assert code == 2
    assert "on held-out items first: labels: expected classes of three items or more" in error
    assert error.endswith("(--no-check fits without)\n")


@pytest.mark.parametrize("groups", [False, True])
def test_measured_first_on_items_of_the_same_classes(stores, fcl, groups):
    old = FeatureStore.open(stores / "old")
    if groups:  # of two items of one class
        group = {**old.manifest, "group": np.arange(80) // 18 * 9 + np.arange(80) % 9}
        FeatureStore.write(stores / "old", np.array(old.features), group, old.fingerprint)
    by_class, by_item = (
        fcl(*_fit(stores, "--adapter", "ridge", "--split", split, "--json", "--replace"))
        for split in ("classes", "items")
    )
    code, result, error = by_item
    assert code == 0
    words = "measured on held-out items of 9 classes: other items of all of them were fitted on"
    assert f"first {words}\n" in error
    assert "classes were held out" not in error
    assert "--split classes measures that" in error
    assert (result["split"], result["split_text"]) == ("items", words)
    direct = probe(
        old=np.array(old.features),
        new=FeatureStore.open(stores / "new").features[_rows(stores, old.ids)],
        labels=old.labels,
        groups=group["group"] if groups else None,
        split="items",
        fit_share=0.8,
        adapters=["ridge"],
        budget=0,
    )
    mapped = next(way for way in direct.ways if way.direction == NEW_TO_OLD)
    assert result["check"]["mapped"]["metrics"] == pytest.approx(mapped.metrics)
    # What is written is fitted on all, whatever was held out before.
    assert by_class[1]["split"] == "classes"
    assert by_class[1]["rows"] == result["rows"] == 80


def _rows(stores, ids):
    new = FeatureStore.open(stores / "new").ids
    return [new.index(name) for name in ids]


def test_export(stores, fcl):
    faiss = pytest.importorskip("faiss")
    assert fcl(*_fit(stores, "--adapter", "procrustes", "--no-check"))[0] == 0
    old = FeatureStore.open(stores / "old")
    index = faiss.IndexFlatIP(6)
    index.add(unit(old.features))
    faiss.write_index(index, str(stores / "old.faiss"))
    export = ["export", stores / "adapter.safetensors", "--out"]
    code, result, _ = fcl(*export, stores / "new.faiss", "--index", stores / "old.faiss", "--json")
    assert code == 0
    assert result["source_dim"] == 9
    assert faiss.read_index(str(stores / "new.faiss")).d == 9
    # An export may be written again; no other file, and no adapter, is overwritten.
    assert fcl(*export, stores / "new.faiss", "--index", stores / "old.faiss")[0] == 0
    faiss.write_index(index, str(stores / "other.faiss"))
    (stores / "link.faiss").symlink_to("old.faiss")
    (stores / "notes.txt").write_text("not an index")
    before = (stores / "old.faiss").read_bytes()
    for out, part in (
        ("old.faiss", "out: expected another file than"),
        ("link.faiss", "out: expected another file than"),
        ("../" + stores.name + "/old.faiss", "out: expected another file than"),
        ("other.faiss", "expected no file, or one that an export wrote, whole"),
        ("notes.txt", "expected no file, or one that an export wrote, whole"),
        ("adapter.safetensors", "--out: expected another file than"),
    ):
        code, _, error = fcl(*export, stores / out, "--index", stores / "old.faiss")
        assert code == 2
        assert part in error
    for name in ("old.faiss", "other.faiss"):
        assert (stores / name).read_bytes() == before
    assert (stores / "notes.txt").read_text() == "not an index"
    assert load_adapter(stores / "adapter.safetensors").name == "procrustes"
    code, _, error = fcl(*export, stores / "adapter.pb")
    assert code == 2
    assert "expected a name ending in .onnx" in error
    pytest.importorskip("onnx")
    assert fcl(*export, stores / "adapter.onnx")[0] == 0
    assert (stores / "adapter.onnx").stat().st_size > 100
    assert fcl(*export, stores / "adapter.onnx")[0] == 0
    (stores / "model.onnx").write_text("of another")
    code, _, error = fcl(*export, stores / "model.onnx")
    assert code == 2
    assert "expected no file, or one that an export wrote, whole" in error
    assert (stores / "model.onnx").read_text() == "of another"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--adapter", "rigde"], "--adapter: unknown name 'rigde'; did you mean 'ridge'"),
        (["--direction", "sideways"], "--direction: expected one of"),
        (["--clusters", 1], "clusters: expected 2 to 80"),
        (["--head", "square"], "head: expected one of ['linear', 'low-rank', 'mlp'], got 'square'"),
        (["--adapter", "ridge", "--orthogonal"], "--head, --orthogonal: expected --adapter compat"),
        (["--adapter", "mean-shift"], "--adapter mean-shift: needs models of one dim"),
        (["--apply", "x"], "--apply: expected --features, and neither --old nor --new"),
        (["--features", "x"], "expected --old and --new to fit, or --apply and --features"),
        (["--split", "rows"], "--split: expected one of ['classes', 'items'], got 'rows'"),
        (["--split", "items", "--no-check"], "--split: expected --check, which it is of, got --no"),
    ],
)
def test_refused(stores, fcl, more, message):
    code, _, error = fcl(*_fit(stores, *more))
    assert code == 2
    assert message in error


def test_labels_are_asked_for(stores, fcl):
    old = FeatureStore.open(stores / "old")
    FeatureStore.write(stores / "old", np.array(old.features), {"id": old.ids}, old.fingerprint)
    code, _, error = fcl(*_fit(stores))
    assert code == 2
    assert "'class_name' or 'label' in the manifest, or --clusters" in error
    assert fcl(*_fit(stores, "--adapter", "ridge", "--no-check"))[0] == 0


@pytest.mark.parametrize("verb", ["adapt", "probe"])
@pytest.mark.parametrize("side", ["old", "new"])
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0.0, "row {} has norm zero, so it has no direction: id {!r}"),
        (np.nan, "expected finite numbers, got a NaN or infinity in row {}: id {!r}"),
    ],
)
def test_a_row_without_a_direction_is_named_as_its_store_knows_it(
    stores, fcl, verb, side, number, said
):
    # Ten rows without a class are left out, and the new rows stand in another order.
    old = FeatureStore.open(stores / "old")
    labels = {"id": old.ids, "label": np.where(np.arange(80) < 10, -1, old.labels)}
    FeatureStore.write(stores / "old", np.array(old.features), labels, old.fingerprint)
    named = old.ids[30]
    store = FeatureStore.open(stores / side)
    row = store.ids.index(named)
    rows = np.array(store.features)
    rows[row] = number
    overwritten(stores / side, rows)
    command = _fit(stores) if verb == "adapt" else ["probe", *_fit(stores)[1:5]]
    code, _, error = fcl(*command)
    assert code == 2
    assert error.endswith(f"fcl: error: {stores / side}: {said.format(row, named)}\n")


def _retold(path, rows=None, **changes):
    """A store again, with another fingerprint and maybe other rows."""
    store = FeatureStore.open(path)
    rows = np.array(store.features) if rows is None else rows
    fingerprint = replace(store.fingerprint, **changes)
    return FeatureStore.write(path, rows, dict(store.manifest), fingerprint)


@pytest.mark.parametrize("side", ["old", "new"])
@pytest.mark.parametrize("verb", ["adapt", "probe", "plan"])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_features_that_the_cosine_does_not_rank_are_refused_alike(stores, fcl, verb, side, metric):
    _retold(stores / side, metric=metric)
    command = [verb, "--old", stores / "old", "--new", stores / "new"]
    if verb == "plan":  # the gallery is the store of more items
        command = [verb, "--old-features", stores / "new", "--new-features", stores / "old"]
    command += [] if verb == "probe" else ["--out", stores / "out"]
    expected = "expected features compared by the cosine, or of unit length; the fingerprint says"
    said = f"fcl: error: {stores / side}: {expected} metric '{metric}', norm"
    assert fcl(*command) == (2, None, f"{said} 'none'\n")

    rows = FeatureStore.open(stores / side).features
    length = np.linalg.norm(rows[0])
    _retold(stores / side, unit(rows), norm="l2")
    assert fcl(*command)[0] == 0
    command += [] if verb == "probe" else ["--replace"]
    overwritten(stores / side, rows)
    assert fcl(*command) == (2, None, f"{said} 'l2', but row 0 has length {length:.4g}\n")


def test_mapped_rows_say_how_they_are_compared(stores, fcl):
    rows = FeatureStore.open(stores / "old").features
    _retold(stores / "old", unit(rows), norm="l2", metric="l2")
    assert fcl(*_fit(stores, "--adapter", "ridge", "--no-check"))[0] == 0
    file = stores / "adapter.safetensors"
    command = ["adapt", "--apply", file, "--features", stores / "new", "--out", stores / "mapped"]
    assert fcl(*command)[0] == 0
    mapped = FeatureStore.open(stores / "mapped").fingerprint
    assert (mapped.metric, mapped.norm) == ("l2", "l2")

    # Fitted from Python, where nobody looks: these rows would be ranked by their lengths.
    adapter = load_adapter(file)
    adapter.target = replace(adapter.target, norm="none")
    adapter.save(file)
    code, _, error = fcl(*command[:-1], stores / "other")
    assert code == 2
    assert "adapter 'ridge', where it leads: expected features compared by the cosine" in error


def test_half_a_store_by_another_adapter_is_not_gone_on_with(stores, fcl, monkeypatch):
    fit = _fit(stores, "--adapter", "ridge", "--no-check")
    assert fcl(*fit)[0] == 0
    out = ["--features", stores / "new", "--out", stores / "mapped"]
    command = ["adapt", "--apply", stores / "adapter.safetensors", *out]
    whole = FeatureWriter.write

    def stopped(writer, first, rows):
        if first:
            raise KeyboardInterrupt
        whole(writer, first, rows)

    monkeypatch.setattr(adapt_run, "_BLOCK_ROWS", 30)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "write", stopped)
        assert fcl(*command)[0] == 130
    overwritten(stores / "old", -np.array(FeatureStore.open(stores / "old").features))
    assert fcl(*fit, "--replace")[0] == 0
    code, _, error = fcl(*command)
    assert code == 2
    assert "refusing to continue a partial store" in error
    assert "by the adapter of checksum" in error
