# SPDX-License-Identifier: Apache-2.0
"""Feature stores: round trips, kills, hostile files, and features in every form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fclearn.features import (
    FeatureStore,
    FeatureWriter,
    Fingerprint,
    as_features,
    as_tensor,
    check_rows,
)

FINGERPRINT = Fingerprint("old-api", 4, preprocessing="resize 32")
IDS = ["a", 'b,"x"', "c\r\nd", "é", "e"]
MANIFEST = {
    "id": IDS,
    "label": [2, 0, -100, 1, 1],
    "group": np.array([0, 0, 1, 1, 2], dtype=np.int32),
    "class_name": ["two", "zero", "", "one", "one"],
}


def _rows(num_rows=5, dim=4, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((num_rows, dim)).astype(dtype)


@pytest.fixture
def store(tmp_path):
    return FeatureStore.write(tmp_path / "store", _rows(), MANIFEST, FINGERPRINT)


# Fingerprints


def test_fingerprint_survives_json():
    assert Fingerprint.from_dict(json.loads(json.dumps(FINGERPRINT.to_dict()))) == FINGERPRINT


def test_fingerprint_names_missing_and_unknown_keys():
    values = {**FINGERPRINT.to_dict(), "size": 3}
    del values["metric"]
    with pytest.raises(ValueError, match="missing metric; unknown size"):
        Fingerprint.from_dict(values)
    with pytest.raises(TypeError, match="expected a mapping, got list"):
        Fingerprint.from_dict([])


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"dim": 0}, ValueError, "dim: expected at least 1, got 0"),
        ({"dim": "4"}, TypeError, "dim: expected an integer, got '4'"),
        ({"dim": True}, TypeError, "dim: expected an integer"),
        ({"norm": "l1"}, ValueError, "norm: expected 'l2' or 'none', got 'l1'"),
        ({"model": None}, TypeError, "model: expected text, got None"),
    ],
)
def test_fingerprint_checks_its_fields(changes, error, match):
    with pytest.raises(error, match=match):
        Fingerprint.from_dict({**FINGERPRINT.to_dict(), **changes})


def test_fingerprints_that_differ_are_never_mixed():
    FINGERPRINT.check_same(Fingerprint.from_dict(FINGERPRINT.to_dict()), "merge")
    other = Fingerprint("new", 8, preprocessing="resize 32")
    with pytest.raises(
        ValueError,
        match=r"^merge: refusing to mix features: model 'old-api' and 'new', dim 4 and 8$",
    ):
        FINGERPRINT.check_same(other, "merge")


# Round trips


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("manifest_format", ["csv", "parquet"])
def test_store_round_trip(tmp_path, dtype, manifest_format):
    features = _rows(dtype=dtype)
    FeatureStore.write(tmp_path / "deep" / "s", features, MANIFEST, FINGERPRINT, manifest_format)
    store = FeatureStore.open(tmp_path / "deep" / "s")
    assert isinstance(store.features, np.memmap)
    assert store.features.dtype == dtype
    np.testing.assert_array_equal(store.features, features)
    assert store.ids == IDS
    assert store.labels.dtype == store.groups.dtype == np.int64
    assert store.labels.tolist() == MANIFEST["label"]
    assert store.groups.tolist() == [0, 0, 1, 1, 2]
    assert list(store.manifest["class_name"]) == MANIFEST["class_name"]
    assert store.fingerprint == FINGERPRINT
    assert (len(store), store.dim, store.path) == (5, 4, tmp_path / "deep" / "s")
    assert "5 x 4" in repr(store)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["s"]
    with pytest.raises(ValueError, match="read-only"):
        store.features[0, 0] = 1


def test_columns_of_parquet_keep_their_types(tmp_path):
    manifest = {"id": [3, 1], "score": [0.5, 1.5], "path": ["x", None]}
    store = FeatureStore.write(tmp_path / "s", _rows(2), manifest, FINGERPRINT, "parquet")
    assert store.ids == ["3", "1"]
    assert store.manifest["score"].dtype == np.float64
    assert store.manifest["path"] == ["x", None]
    assert store.labels is None
    assert store.groups is None


@pytest.mark.parametrize("manifest_format", ["csv", "parquet"])
def test_empty_store(tmp_path, manifest_format):
    manifest = {"id": [], "label": []}
    store = FeatureStore.write(tmp_path / "s", _rows(0), manifest, FINGERPRINT, manifest_format)
    assert (len(store), store.dim, store.ids, store.labels.shape) == (0, 4, [], (0,))
    assert store.subset([])[0].shape == (0, 4)


@pytest.mark.parametrize(
    "features",
    [
        _rows(dtype=np.float64),
        np.asfortranarray(_rows()),
        _rows(5, 8)[:, ::2],
        torch.from_numpy(_rows()).requires_grad_(),
        torch.from_numpy(_rows()).bfloat16(),
        _rows(dtype=">f4"),
    ],
    ids=["float64", "fortran", "strided", "grad", "bfloat16", "big-endian"],
)
def test_write_takes_floats_of_any_form_and_stores_float32(tmp_path, features):
    store = FeatureStore.write(tmp_path / "s", features, {"id": IDS}, FINGERPRINT)
    assert store.features.dtype == np.float32
    np.testing.assert_array_equal(store.features, as_tensor(features).numpy())


def test_subset(store):
    features, labels, ids = store.subset([3, 0])
    np.testing.assert_array_equal(features, _rows()[[3, 0]])
    assert labels.tolist() == [1, 2]
    assert ids == ["é", "a"]
    assert store.subset(store.labels == 1)[2] == ["é", "e"]
    assert store.subset(slice(1, 3))[2] == IDS[1:3]
    features[:] = 0  # a copy
    assert store.features.any()
    with pytest.raises(IndexError, match="out of bounds"):
        store.subset([5])


# Writing


def test_write_replaces_an_older_store_and_leaves_nothing_behind(tmp_path, store):
    manifest = {"id": ["x", "y"]}
    FeatureStore.write(store.path, _rows(2), manifest, FINGERPRINT, "parquet")
    assert FeatureStore.open(store.path).ids == ["x", "y"]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    np.testing.assert_array_equal(store.features, _rows())  # open maps outlive the replacement


def test_write_never_replaces_a_folder_of_other_things(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"found a folder with 'thesis.tex' in it"):
        FeatureStore.write(tmp_path, _rows(), MANIFEST, FINGERPRINT)
    with pytest.raises(ValueError, match=r"thesis.tex: expected nothing .* found a file"):
        FeatureWriter(tmp_path / "thesis.tex", 5, 4, "float32", FINGERPRINT)
    with pytest.raises(ValueError, match="got the root"):
        FeatureStore.write("/", _rows(), MANIFEST, FINGERPRINT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_write_that_fails_keeps_the_older_store(tmp_path, store, monkeypatch):
    rename = Path.rename

    def refuse(self, target):
        if self.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match=r"cannot write a feature store: No space left .*/store"):
        FeatureStore.write(store.path, _rows(2), {"id": ["x", "y"]}, FINGERPRINT)
    assert FeatureStore.open(store.path).ids == IDS
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for begin in (
        lambda path: FeatureStore.write(path, _rows(), MANIFEST, FINGERPRINT),
        lambda path: FeatureWriter(path, 5, 4, "float32", FINGERPRINT),
    ):
        with pytest.raises(OSError, match=r"cannot write a feature store.*file/store"):
            begin(tmp_path / "file" / "store")


@pytest.mark.parametrize(
    ("features", "manifest", "error", "match"),
    [
        (_rows(), {"label": [0] * 5}, ValueError, "expected a column 'id', found label"),
        (_rows(), {}, ValueError, "expected a column 'id', found none"),
        (_rows(), {"id": ["a"]}, ValueError, "expected 5 rows.* found 1 in column 'id'"),
        (_rows(), {"id": list("abcda")}, ValueError, "distinct ids, found 'a' in rows 0 and 4"),
        (_rows(2), {"id": ["1", 1]}, ValueError, "distinct ids, found '1' in rows 0 and 1"),
        (_rows(2), {"id": ["a", ""]}, ValueError, "an id in every row, found none in row 1"),
        (_rows(1), {"id": ["a"], "": [1]}, ValueError, "columns with names, found ''"),
        (_rows(1), {"id": ["a"], "label": [0.5]}, ValueError, "integers in column 'label'"),
        (_rows(1), {"id": ["a"], "group": [True]}, ValueError, "integers in column 'group'"),
        (_rows(5, 3), MANIFEST, ValueError, "expected 4 columns, as the fingerprint says, got 3"),
        (_rows()[0], MANIFEST, ValueError, r"expected shape \[N, D\], got \[4\]"),
        (_rows().astype(int), MANIFEST, TypeError, "expected floating numbers, got int64"),
        ([[1.0]], MANIFEST, TypeError, "expected a tensor or an array, got list"),
    ],
)
def test_write_refuses_what_does_not_fit(tmp_path, features, manifest, error, match):
    with pytest.raises(error, match=match):
        FeatureStore.write(tmp_path / "s", features, manifest, FINGERPRINT)
    assert not list(tmp_path.iterdir())


def test_write_refuses_another_manifest_format(tmp_path):
    with pytest.raises(ValueError, match="expected 'csv' or 'parquet', got 'json'"):
        FeatureStore.write(tmp_path / "s", _rows(), MANIFEST, FINGERPRINT, "json")


# Opening what is broken


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def _pickled(path):
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)


def _npz(path):
    with path.open("wb") as file:
        np.savez(file, x=_rows())


def _header(text):
    def write(path):
        header = text.encode().ljust(117) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)

    return write


@pytest.mark.parametrize(
    ("file", "break_it", "match"),
    [
        ("features.npy", _truncate, "cannot be mapped"),
        ("features.npy", lambda path: path.write_bytes(b""), "cannot be mapped"),
        ("features.npy", lambda path: path.write_bytes(b"\x80\x04K\x01."), "cannot be mapped"),
        ("features.npy", _pickled, "cannot be mapped"),
        ("features.npy", _npz, "cannot be mapped"),
        ("features.npy", _header("{'descr': '<f4', 'fortran_order': False,"), "cannot be mapped"),
        (
            "features.npy",
            _header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }"),
            "cannot be mapped",
        ),
        (
            "features.npy",
            _header("{'descr': '<f4', 'fortran_order': False, 'shape': (9**18, 4), }"),
            "cannot be mapped",
        ),
        ("features.npy", lambda path: np.save(path, _rows()[0]), r"\[N, D\], found \[4\]"),
        ("features.npy", lambda path: np.save(path, _rows() > 0), "floating numbers, found bool"),
        (
            "features.npy",
            lambda path: np.save(path, _rows(dtype=np.float64)),
            "row-major float32 or float16, found row-major <f8",
        ),
        (
            "features.npy",
            lambda path: np.save(path, np.asfortranarray(_rows())),
            "found column-major <f4",
        ),
        ("features.npy", Path.unlink, "expected a .npy file, found nothing"),
        ("features.npy", lambda path: np.save(path, _rows(6)), "expected 6 rows.* found 5"),
        ("features.npy", lambda path: np.save(path, _rows(5, 3)), "expected dim 3.* found 4"),
        ("fingerprint.json", Path.unlink, "expected the fingerprint.* found nothing"),
        ("fingerprint.json", _truncate, "Expecting|delimiter"),
        ("fingerprint.json", lambda path: path.write_text("{}"), "missing model, dim"),
        ("fingerprint.json", lambda path: path.write_text("[" * 100_000), "recursion|Expecting"),
        ("manifest.csv", Path.unlink, "either manifest.csv or manifest.parquet, found neither"),
        ("manifest.csv", lambda path: path.write_text(""), "expected a column 'id', found none"),
        ("manifest.csv", lambda path: path.write_text("name\nx\n"), "column 'id', found name"),
        ("manifest.csv", lambda path: path.write_text("id,id\nx,y\n"), "distinct columns"),
        ("manifest.csv", lambda path: path.write_text("id\nx,y\n"), "1 cells in line 2, found 2"),
        ("manifest.csv", lambda path: path.write_text('id\n"x'), "unexpected end of data"),
        ("manifest.csv", lambda path: path.write_bytes(b"id\n\xff\n"), "can't decode"),
        ("manifest.csv", lambda path: path.write_text("id\na\nb\n"), "expected 5 rows.* found 2"),
        (
            "manifest.csv",
            lambda path: path.write_text("id\na\nb\na\nc\nd\n"),
            "distinct ids, found 'a' in rows 0 and 2",
        ),
        (
            "manifest.csv",
            lambda path: path.write_text("id,label\na,0\nb,1\nc,1.5\nd,1\ne,0\n"),
            "integers in column 'label'.*'1.5'",
        ),
        (
            "manifest.csv",
            lambda path: path.write_text("id,label\na,0\nb,1\nc,9999999999999999999\nd,1\ne,0\n"),
            "integers in column 'label'",
        ),
        ("manifest.parquet", lambda path: path.write_text(""), "found both"),
    ],
)
def test_a_broken_store_is_refused_in_one_line_that_names_the_file(store, file, break_it, match):
    path = store.path / file
    break_it(path)
    with pytest.raises(ValueError, match=match) as error:
        FeatureStore.open(store.path)
    assert str(store.path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_broken_parquet_manifest_is_refused(tmp_path):
    store = FeatureStore.write(tmp_path / "s", _rows(), MANIFEST, FINGERPRINT, "parquet")
    _truncate(store.path / "manifest.parquet")
    with pytest.raises(ValueError, match=r"manifest.parquet: cannot read the manifest"):
        FeatureStore.open(store.path)


def test_open_refuses_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected the folder of a feature store, found a file"):
        FeatureStore.open(tmp_path / "file")
    with pytest.raises(ValueError, match="expected the folder of a feature store, found nothing"):
        FeatureStore.open(tmp_path / "none")


def test_open_never_unpickles(tmp_path, store):
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (marker,))

    np.save(store.path / "features.npy", np.array([[Hostile()]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"features\.npy"):
        FeatureStore.open(store.path)
    with pytest.raises(ValueError, match=r"features\.npy"):
        as_features(store.path / "features.npy")
    assert not marker.exists()


def test_a_spreadsheet_may_have_added_a_byte_order_mark(store):
    path = store.path / "manifest.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert FeatureStore.open(store.path).ids == IDS


# The writer


def _writer(tmp_path, **changes):
    settings = {"num_rows": 5, "dim": 4, "dtype": "float32", "fingerprint": FINGERPRINT}
    return FeatureWriter(tmp_path / "s", **{**settings, **changes})


def test_writer_fills_in_any_order(tmp_path):
    writer = _writer(tmp_path)
    assert writer.missing() == [(0, 5)]
    writer.write(3, _rows()[3:4])
    writer.write(0, torch.from_numpy(_rows()[:1]).double())
    assert writer.missing() == [(1, 3), (4, 5)]
    writer.write(0, _rows()[:2])
    writer.write(2, _rows()[2:5])
    assert writer.missing() == []
    store = writer.finish(MANIFEST, "parquet")
    np.testing.assert_array_equal(store.features, _rows())
    assert store.ids == IDS
    assert sorted(path.name for path in store.path.iterdir()) == [
        "features.npy",
        "fingerprint.json",
        "manifest.parquet",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_writer_resumes(tmp_path):
    first = _writer(tmp_path)
    first.write(1, _rows()[1:3])
    del first
    (tmp_path / "s.partial" / ".progress.json.killed.tmp").write_text("{")
    second = _writer(tmp_path)
    assert second.missing() == [(0, 1), (3, 5)]
    second.write(0, _rows()[:1])
    second.write(3, _rows()[3:])
    np.testing.assert_array_equal(second.finish(MANIFEST).features, _rows())


def test_an_unfinished_store_does_not_open_or_finish(tmp_path):
    writer = _writer(tmp_path)
    writer.write(0, _rows()[:2])
    with pytest.raises(ValueError, match="3 of 5 are missing, the first is 2"):
        writer.finish(MANIFEST)
    with pytest.raises(ValueError, match="found nothing"):
        FeatureStore.open(tmp_path / "s")
    with pytest.raises(ValueError, match=r"fingerprint.json: expected .* found nothing"):
        FeatureStore.open(tmp_path / "s.partial")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_rows": 6}, "num_rows 5 before, 6 now"),
        ({"dtype": "float16"}, "dtype 'float32' before, 'float16' now"),
        ({"fingerprint": Fingerprint("new", 4)}, "fingerprint model 'old-api' before, 'new' now"),
        ({"dim": 8, "fingerprint": Fingerprint("old-api", 8)}, "dim 4 before, 8 now"),
        ({"source": "weights 2"}, "source '' before, 'weights 2' now"),
    ],
)
def test_writer_refuses_the_partial_store_of_another_run(tmp_path, changes, match):
    _writer(tmp_path).write(0, _rows()[:2])
    with pytest.raises(ValueError, match=f"refusing to continue.*{match}.*to start over"):
        _writer(tmp_path, **changes)
    assert _writer(tmp_path).missing() == [(2, 5)]


@pytest.mark.parametrize(
    ("file", "break_it", "match"),
    [
        ("progress.json", lambda path: path.write_text("{"), "not a record of progress"),
        ("progress.json", lambda path: path.write_text("[]"), "not a record of progress"),
        (
            "progress.json",
            lambda path: path.write_text(path.read_text().replace("[0, 2]", "[0, 9]")),
            r"rows in \[0, 5\), found \[\(0, 9\)\]",
        ),
        ("features.npy", _truncate, "cannot be mapped"),
        (
            "features.npy",
            lambda path: np.save(path, _rows(4)),
            r"shape \[5, 4\], found .* \[4, 4\]",
        ),
        ("notes.txt", lambda path: path.write_text("mine"), "a folder with 'notes.txt' in it"),
    ],
)
def test_writer_refuses_a_broken_partial_store(tmp_path, file, break_it, match):
    _writer(tmp_path).write(0, _rows()[:2])
    break_it(tmp_path / "s.partial" / file)
    with pytest.raises(ValueError, match=match):
        _writer(tmp_path)


def test_writer_killed_before_its_first_record_starts_over(tmp_path):
    _writer(tmp_path)
    (tmp_path / "s.partial" / "progress.json").unlink()
    assert _writer(tmp_path).missing() == [(0, 5)]


def test_writer_killed_inside_finish_loses_nothing(tmp_path, monkeypatch):
    writer = _writer(tmp_path)
    writer.write(0, _rows())

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fclearn.features.writer.install", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.finish(MANIFEST)
    assert not (tmp_path / "s").exists()
    again = _writer(tmp_path)
    assert again.missing() == []
    np.testing.assert_array_equal(again.finish(MANIFEST, "parquet").features, _rows())


def test_writer_survives_sigkill(tmp_path):
    script = f"""
import os, signal
from test_features import _rows, FeatureWriter, FINGERPRINT
writer = FeatureWriter({str(tmp_path / "s")!r}, 5, 4, "float32", FINGERPRINT)
writer.write(0, _rows()[:3])
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = [str(Path(__file__).parent), *sys.path]
    code = f"import sys; sys.path[:0] = {path!r}\n{script}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    writer = _writer(tmp_path)
    assert writer.missing() == [(3, 5)]
    writer.write(3, _rows()[3:])
    np.testing.assert_array_equal(writer.finish(MANIFEST).features, _rows())


@pytest.mark.parametrize(
    ("begin", "block", "error", "match"),
    [
        (0, _rows(2, 3), ValueError, r"expected shape \[B, 4\], got \[2, 3\]"),
        (4, _rows(2), ValueError, r"expected rows in \[0, 5\), got 4 to 5"),
        (-1, _rows(2), ValueError, r"expected rows in \[0, 5\), got -1 to 0"),
        (0, _rows(2).astype(int), TypeError, "block: expected floating numbers, got int64"),
        (0, _rows(2) + 1e6, ValueError, "expected numbers that fit float16, got larger"),
    ],
)
def test_writer_refuses_blocks_that_do_not_fit(tmp_path, begin, block, error, match):
    writer = _writer(tmp_path, dtype="float16")
    with pytest.raises(error, match=match):
        writer.write(begin, block)
    assert writer.missing() == [(0, 5)]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dtype": "float64"}, "expected float32 or float16, got float64"),
        ({"num_rows": -1}, "num_rows: expected at least 0, got -1"),
        ({"dim": 5}, "dim: expected 4, the fingerprint's, got 5"),
    ],
)
def test_writer_checks_its_arguments(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        _writer(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


# Features in every form


def test_as_features_takes_every_form(store):
    path = store.path / "features.npy"
    for form in (store, store.path, str(store.path), path, str(path), torch.from_numpy(_rows())):
        features = as_features(form)
        assert isinstance(features, np.ndarray)
        np.testing.assert_array_equal(features, _rows())


def test_as_features_copies_nothing(store):
    array, tensor = _rows(), torch.ones(3, 2, requires_grad=True)
    assert as_features(array) is array
    assert as_features(store) is store.features
    assert isinstance(as_features(store.path), np.memmap)
    assert as_features(tensor).ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        ([[1.0]], TypeError, "old: expected a feature store, a path, .* got list"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "old: expected floating numbers"),
        (np.ones(3), ValueError, r"old: expected shape \[N, D\], got \[3\]"),
        ("no/such/file.npy", ValueError, r"no/such/file.npy: expected a .npy file, found nothing"),
    ],
)
def test_as_features_refuses(x, error, match):
    with pytest.raises(error, match=match):
        as_features(x, "old")


def test_as_tensor_copies_rows_as_float32(store):
    array = _rows(dtype=np.float64)
    for rows in (None, [4, 0], slice(1, 3), array[:, 0] > 0):
        tensor = as_tensor(array, rows)
        assert tensor.dtype == torch.float32
        kept = array if rows is None else array[rows]
        np.testing.assert_array_equal(tensor.numpy(), kept.astype(np.float32))
    assert as_tensor(array, []).shape == (0, 4)
    float32 = torch.ones(2, 2)
    as_tensor(float32).zero_()
    assert float32.all()
    as_tensor(store).zero_()
    assert store.features.any()


@pytest.mark.parametrize("block_rows", [1, 3, 100])
def test_check_rows_finds_zeros_and_the_first_bad_row(block_rows):
    rows = _rows(10)
    rows[[2, 7]] = 0
    rows[4] = 1e-30  # its square underflows, but it has a direction
    found = check_rows(rows, block_rows=block_rows)
    assert found.dtype == np.int64
    assert found.tolist() == [2, 7]
    rows[8, 1], rows[5, 3] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"^gallery: expected finite .* in row 5$"):
        check_rows(rows, "gallery", block_rows=block_rows)


def test_check_rows_of_nothing_and_of_half(tmp_path):
    assert check_rows(_rows(0)).tolist() == []
    np.save(tmp_path / "half.npy", np.eye(3, dtype=np.float16) * 0)
    assert check_rows(tmp_path / "half.npy").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="block_rows: expected at least 1, got 0"):
        check_rows(_rows(), block_rows=0)
