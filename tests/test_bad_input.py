# SPDX-License-Identifier: Apache-2.0
"""What comparing and adapting verbs make of bad stores and hostile files: one clear line, no code.

Every case goes through the command, as a user would meet it.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil

import numpy as np
import pytest

from fclearn.cli import main
from fclearn.evaluation import evaluate_retrieval
from fclearn.features import FeatureStore, Fingerprint

ROWS, DIM = 48, 6
LABELS = np.arange(ROWS) % 8
IDS = [f"i{row}" for row in range(ROWS)]
FEW = ["--num-bootstrap", "10"]


def features(seed, dim=DIM):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((8, dim))[LABELS] + 0.5 * rng.standard_normal((ROWS, dim))
    return rows.astype(np.float32)


def write(path, rows, model, ids=IDS, labels=LABELS, **columns):
    manifest = {"id": list(ids), "label": labels, **columns}
    return FeatureStore.write(path, rows, manifest, Fingerprint(model, rows.shape[1], norm="none"))


@pytest.fixture
def stores(tmp_path):
    write(tmp_path / "old", features(0), "old-v1")
    write(tmp_path / "new", features(1), "new-v1")
    return tmp_path


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Run a command that must be refused; its one line."""
    monkeypatch.setenv("FCL_DEBUG", "0")
    # Where a payload would leave its mark.
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = main([str(part) for part in arguments])
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.startswith("fcl: error: ")
        assert err.count("\n") == 1, err
        assert not (tmp_path / "owned").exists()
        return err

    return run


def verbs(old, new, out):
    """Every verb that reads an old and a new store."""
    return {
        "eval": ["eval", "--old-query", old, "--new-query", new, *FEW],
        "chain": ["eval", "--model", old, "--model", new, *FEW],
        "probe": ["probe", "--old", old, "--new", new, "--adapters", "ridge", *FEW],
        "adapt": ["adapt", "--old", old, "--new", new, "--adapter", "ridge", "--no-check",
                  "--out", out / "adapter.safetensors"],
        "plan": ["plan", "--old-features", old, "--new-features", new, "--out", out / "plan",
                 "--num-random", "2", *FEW],
    }  # fmt: skip


VERBS = ("eval", "chain", "probe", "adapt", "plan")


@pytest.mark.parametrize("verb", VERBS)
def test_ids_that_are_missing_are_named(stores, refused, verb):
    others = [*IDS[:-2], "x1", "x2"]
    write(stores / "new", features(1), "new-v1", ids=others)
    line = refused(*verbs(stores / "old", stores / "new", stores)[verb])
    # A plan matches the sample's ids to the gallery's, the others the other way round.
    missing = ("'x1'", "'x2'") if verb == "plan" else ("'i46'", "'i47'")
    for part in (*missing, "no features for 2 of the 48 ids"):
        assert part in line


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("side", ["old", "new"])
def test_ids_twice_are_named(stores, refused, verb, side):
    manifest = stores / side / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("i7,", "i3,"))
    line = refused(*verbs(stores / "old", stores / "new", stores)[verb])
    assert f"{stores / side}" in line
    assert "expected distinct ids, found 'i3' in rows 3 and 7" in line


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("side", ["old", "new"])
def test_rows_with_nan_are_named(stores, refused, verb, side):
    rows = np.load(stores / side / "features.npy")
    rows[5, 2] = np.nan
    np.save(stores / side / "features.npy", rows)
    line = refused(*verbs(stores / "old", stores / "new", stores)[verb])
    assert "5" in line
    assert "NaN" in line


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("side", ["old", "new"])
@pytest.mark.parametrize("state", ["cut", "no features", "no fingerprint", "no manifest", "rows"])
def test_half_written_stores_are_named(stores, refused, verb, side, state):
    folder = stores / side
    if state == "cut":
        file = folder / "features.npy"
        file.write_bytes(file.read_bytes()[:-10])
    elif state == "rows":
        manifest = folder / "manifest.csv"
        manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-3]))
    else:
        names = {"no features": "features.npy", "no fingerprint": "fingerprint.json"}
        (folder / names.get(state, "manifest.csv")).unlink()
    line = refused(*verbs(stores / "old", stores / "new", stores)[verb])
    assert str(folder) in line


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("side", ["old", "new"])
def test_a_store_still_being_written_is_refused(stores, refused, verb, side):
    """What `FeatureWriter` leaves under its own name until it has finished."""
    (stores / side / "progress.json").write_text('{"done": [[0, 10]]}')
    (stores / side / "manifest.csv").unlink()
    line = refused(*verbs(stores / "old", stores / "new", stores)[verb])
    assert str(stores / side) in line


@pytest.mark.parametrize("verb", ["eval", "chain", "probe", "plan"])
def test_empty_galleries_are_refused(stores, refused, verb):
    empty = np.empty((0, DIM), np.float32)
    for name in ("old", "new"):
        write(stores / f"{name}-empty", empty, f"{name}-v1", ids=[], labels=[])
    line = refused(*verbs(stores / "old-empty", stores / "new-empty", stores)[verb])
    assert "expected" in line
    if verb == "eval":
        pair = [*verbs(stores / "old", stores / "new", stores)["eval"]]
        line = refused(*pair, "--old-gallery", stores / "old-empty")
        assert "gallery: expected at least one row" in line


def test_a_narrower_new_store_is_refused_where_it_would_be_compared(stores, refused):
    write(stores / "narrow", features(1, dim=4), "narrow")
    for verb in ("eval", "chain"):
        line = refused(*verbs(stores / "old", stores / "narrow", stores)[verb])
        assert "4" in line
        assert "6" in line


def test_fingerprints_that_differ_are_named(stores, refused):
    old, new = stores / "old", stores / "new"
    write(stores / "gallery", features(0), "old-v2")
    line = refused("eval", "--old-query", old, "--old-gallery", stores / "gallery",
                   "--new-query", new)  # fmt: skip
    for part in ("--old-query and --old-gallery", "model 'old-v1' and 'old-v2'"):
        assert part in line
    line = refused("eval", "--query", old, "--gallery", stores / "gallery")
    assert "model 'old-v1' and 'old-v2'" in line
    # An adapter knows what it was fitted on.
    adapter = stores / "adapter.safetensors"
    command = verbs(old, new, stores)["adapt"]
    assert main([str(part) for part in command]) == 0
    line = refused("adapt", "--apply", adapter, "--features", old, "--out", stores / "mapped")
    assert "model 'new-v1' and 'old-v1'" in line
    assert not (stores / "mapped").exists()


def test_labels_that_the_gallery_lacks_are_counted_and_the_rule_is_said(stores, capsys):
    """Queries with nothing to find count nowhere; all others count as if they were alone."""
    labels = LABELS.copy()
    labels[:4] = [100, 101, 102, 103]
    query = write(stores / "query", features(0), "old-v1", labels=labels)
    command = ["eval", "--query", query.path, "--gallery", stores / "old", "--exclude-self"]
    capsys.readouterr()
    assert main([str(part) for part in [*command, "--json", *FEW]]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["num_queries"], result["num_skipped"]) == (ROWS - 4, 4)
    assert "4 queries have nothing right in the gallery; they count nowhere" in err
    kept = evaluate_retrieval(
        features(0)[4:], features(0), query_labels=labels[4:], gallery_labels=LABELS,
        exclude_self=True, query_ids=IDS[4:], gallery_ids=IDS, metrics=("map",),
    )  # fmt: skip
    assert result["map"] == pytest.approx(kept["map"])


class Payload:
    """Makes a file if it is ever unpickled."""

    def __reduce__(self):
        return (open, ("owned", "w"))


def hostile_npy(kind):
    buffer = io.BytesIO()
    if kind == "objects":
        np.save(buffer, np.array([[Payload()]], dtype=object), allow_pickle=True)
    elif kind == "pickle":
        buffer.write(pickle.dumps(Payload()))
    elif kind == "header":
        # A header that is code, not a literal.
        code = b"__import__('pathlib').Path('owned').touch()"
        buffer.write(b"\x93NUMPY\x01\x00" + len(code).to_bytes(2, "little") + code)
    elif kind == "huge":
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999), }\n"
        buffer.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    else:
        np.save(buffer, np.zeros((ROWS, DIM), np.complex64))
    return buffer.getvalue()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["objects", "pickle", "header", "huge", "complex"])
def test_hostile_npy(stores, refused, verb, kind):
    (stores / "old" / "features.npy").write_bytes(hostile_npy(kind))
    line = refused(*verbs(stores / "old", stores / "new", stores)[verb])
    assert str(stores / "old") in line


def hostile_adapters():
    payload = pickle.dumps(Payload())
    huge = (1 << 60).to_bytes(8, "little") + b"{}"
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 999]}})
    outside = len(header).to_bytes(8, "little") + header.encode()
    return {
        "pickle": payload,
        "a pickle after a length": len(payload).to_bytes(8, "little") + payload,
        "a huge header": huge,
        "offsets outside": outside,
        "nothing": b"",
        # The start of an ONNX model: field 1, the version of its format, and a producer.
        "onnx": b"\x08\x08\x12\x07pytorch:\x00",
        "yaml": b"!!python/object/apply:builtins.open ['owned', 'w']\n",
    }


@pytest.mark.parametrize("kind", hostile_adapters())
def test_hostile_adapters(stores, refused, kind):
    path = stores / "adapter.safetensors"
    path.write_bytes(hostile_adapters()[kind])
    for command in (
        ["adapt", "--apply", path, "--features", stores / "new", "--out", stores / "mapped"],
        ["export", path, "--out", stores / "adapter.onnx"],
        ["plan", "--old-features", stores / "old", "--new-features", stores / "new", "--order",
         "predicted-error", "--forward-map", path, "--out", stores / "plan"],
    ):  # fmt: skip
        assert str(path) in refused(*command)
    assert not (stores / "adapter.onnx").exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:builtins.open ['owned', 'w']",
        "method: !!python/object/new:pathlib.Path ['owned']",
        # Aliases of aliases: a value that nobody could print.
        "[&a [x, x, x, x], &b [*a, *a, *a, *a], "
        + ", ".join(f"&c{i} [{', '.join([f'*c{i - 1}' if i else '*b'] * 9)}]" for i in range(12))
        + "]",
        "[" * 20_000,
        "\x00",
    ],
)
def test_hostile_yaml(stores, refused, text):
    path = stores / "config.yaml"
    path.write_text(text)
    line = refused("train", "--config", path)
    assert str(path) in line
    assert len(line) < 5000


def test_hostile_manifests_and_fingerprints(stores, refused):
    saved = stores / "saved"
    shutil.copytree(stores / "old", saved)
    command = verbs(stores / "old", stores / "new", stores)["eval"]
    for name, content in (
        ("fingerprint.json", pickle.dumps(Payload())),
        ("fingerprint.json", b"[" * 50_000),
        ("manifest.csv", pickle.dumps(Payload())),
        ("manifest.csv", b"id,label\n" + b"\x00\n" * ROWS),
    ):
        shutil.rmtree(stores / "old")
        shutil.copytree(saved, stores / "old")
        (stores / "old" / name).write_bytes(content)
        assert str(stores / "old" / name) in refused(*command)
    shutil.rmtree(stores / "old")
    shutil.copytree(saved, stores / "old")
    (stores / "old" / "manifest.csv").unlink()
    (stores / "old" / "manifest.parquet").write_bytes(pickle.dumps(Payload()))
    assert "manifest.parquet" in refused(*command)
