# SPDX-License-Identifier: Apache-2.0
"""Feature stores: round trips, replacing, hostile files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from store_samples import FINGERPRINT, IDS, MANIFEST, overwritten, sample_rows, truncate, unit

from fclearn.features import (
    FeatureStore,
    FeatureWriter,
    Fingerprint,
    as_features,
    as_tensor,
    norms,
)
from fclearn.features import store as store_module
from fclearn.features.norms import row_norms


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("manifest_format", ["csv", "parquet"])
def test_store_round_trip(tmp_path, dtype, manifest_format):
    features = sample_rows(dtype=dtype)
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


UNIT_ROWS = unit(sample_rows(dtype=np.float64))


def with_row_3(row, rows=UNIT_ROWS):
    return np.where(np.arange(5)[:, None] == 3, row, rows)


@pytest.mark.parametrize(
    "rows",
    [
        UNIT_ROWS,
        UNIT_ROWS.astype(np.float16),
        torch.from_numpy(UNIT_ROWS).bfloat16(),
        with_row_3(0.0),
    ],
    ids=["float64", "float16", "bfloat16", "zeros"],
)
def test_rows_of_unit_length_are_taken_as_such(tmp_path, rows):
    store = FeatureStore.write(tmp_path / "s", rows, MANIFEST, Fingerprint("m", 4))
    assert np.abs(store.features - UNIT_ROWS)[:3].max() < 4e-3


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_rows_of_other_lengths_are_written_as_what_they_are(tmp_path, dtype):
    rows = with_row_3(1.5 * UNIT_ROWS).astype(dtype)
    with pytest.warns(UserWarning, match=r"row 'é' has not the unit length.*so the store says"):
        store = FeatureStore.write(tmp_path / "s", rows, MANIFEST, Fingerprint("m", 4))
    assert store.fingerprint.norm == "none"
    np.testing.assert_array_equal(store.features, rows)
    known = FeatureStore.write(tmp_path / "t", rows, MANIFEST, Fingerprint("m", 4, norm="none"))
    assert known.fingerprint == store.fingerprint


@pytest.mark.parametrize("norm", ["l2", "none"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (with_row_3(np.nan), "finite numbers, got a NaN or infinity"),
        (with_row_3([0, 0, -np.inf, 0]).astype("f2"), "finite numbers, got a NaN or infinity"),
        (with_row_3(1e300), "numbers that fit float32, got larger"),
    ],
    ids=["nan", "infinity", "overflow"],
)
def test_rows_that_are_no_features_are_refused_by_id(tmp_path, rows, message, norm):
    where = r"in row 3 \(id 'é'\)"
    with pytest.raises(ValueError, match=rf"^features: expected .*{message} {where}"):
        FeatureStore.write(tmp_path / "s", rows, MANIFEST, Fingerprint("m", 4, norm=norm))
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_other_lengths_than_it_says_still_opens(tmp_path):
    path = FeatureStore.write(tmp_path / "s", UNIT_ROWS, MANIFEST, Fingerprint("m", 4)).path
    assert overwritten(path, 3 * UNIT_ROWS).features[0, 0] == np.float32(3 * UNIT_ROWS[0, 0])


@pytest.mark.parametrize("norm", ["l2", "none"])
def test_lengths_are_measured_once(tmp_path, monkeypatch, norm):
    measured = []

    def counted(rows):
        measured.append(len(rows))
        return row_norms(rows)

    monkeypatch.setattr(norms, "row_norms", counted)
    monkeypatch.setattr(store_module, "_BLOCK_BYTES", 2 * 4 * 4)  # two rows of float32
    fingerprint = Fingerprint("m", 4, norm=norm)
    assert FeatureStore.write(tmp_path / "s", UNIT_ROWS, MANIFEST, fingerprint).dim == 4
    assert measured == [2, 2, 1]
    FeatureWriter(tmp_path / "t", 5, 4, "float32", fingerprint).write(0, UNIT_ROWS)
    assert measured == [2, 2, 1, 5]


def test_columns_of_parquet_keep_their_types(tmp_path):
    manifest = {"id": [3, 1], "score": [0.5, 1.5], "path": ["x", None]}
    store = FeatureStore.write(tmp_path / "s", sample_rows(2), manifest, FINGERPRINT, "parquet")
    assert store.ids == ["3", "1"]
    assert store.manifest["score"].dtype == np.float64
    assert store.manifest["path"] == ["x", None]
    assert store.labels is None
    assert store.groups is None


def test_lists_of_labels_are_parted_in_a_csv(tmp_path):
    several = [["b", "a"], (), {"z", "y"}, np.array([3, 4]), None, "c|d", ["", None, "e"]]
    manifest = {"id": range(7), "labels": several}
    store = FeatureStore.write(tmp_path / "s", sample_rows(7), manifest, FINGERPRINT)
    assert store.manifest["labels"] == ["b|a", "", "y|z", "3|4", "", "c|d", "e"]


@pytest.mark.parametrize(
    ("column", "cell", "match"),
    [
        ("labels", ["a", "b|c"], r"labels without '\|'.* got 'b\|c' in row 1 of column 'labels'"),
        ("tags", ["a"], "one value in each cell of a csv, got a list in row 1 of column 'tags'"),
        ("box", {"x": 1}, "got a dict in row 1 of column 'box'"),
    ],
)
def test_what_a_csv_cannot_hold_needs_parquet(tmp_path, column, cell, match):
    manifest = {"id": ["x", "y"], column: [None, cell]}
    with pytest.raises(ValueError, match=rf"{match}.*manifest_format='parquet' takes it"):
        FeatureStore.write(tmp_path / "s", sample_rows(2), manifest, FINGERPRINT)
    writer = FeatureWriter(tmp_path / "s", 2, 4, "float32", FINGERPRINT)
    writer.write(0, sample_rows(2))
    with pytest.raises(ValueError, match=match):
        writer.finish(manifest)
    assert writer.finish(manifest, "parquet").manifest_format == "parquet"


@pytest.mark.parametrize("manifest_format", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("column", "cell", "match"),
    [
        ("class_name", ("a", "b"), "one name in each cell, got a tuple in row 1 of column 'class_"),
        (
            "class_name",
            np.array(["a"]),
            "got a ndarray in row 1 of .*column 'labels' takes several",
        ),
        ("labels", {"a": 1}, "one label, or a list of them, in each cell, got a dict in row 1 of"),
        ("labels", [["a"]], "got a list in a list in row 1 of column 'labels'"),
        ("labels", ("a", {"b": 1}), "got a dict in a tuple in row 1 of column 'labels'"),
    ],
)
def test_what_no_reader_takes_for_a_class_is_refused(
    tmp_path, column, cell, match, manifest_format
):
    manifest = {"id": ["x", "y"], column: [None, cell]}
    with pytest.raises(ValueError, match=match):
        FeatureStore.write(tmp_path / "s", sample_rows(2), manifest, FINGERPRINT, manifest_format)


@pytest.mark.parametrize("manifest_format", ["csv", "parquet"])
@pytest.mark.parametrize(
    "none", [None, float("nan"), np.float32("nan"), np.datetime64("nat"), ""], ids=repr
)
def test_rows_without_a_class_have_an_empty_name(tmp_path, none, manifest_format):
    manifest = {"id": ["a", "b"], "class_name": np.array(["cat", none], dtype=object)}
    path = tmp_path / "s"
    store = FeatureStore.write(path, sample_rows(2), manifest, FINGERPRINT, manifest_format)
    assert list(store.manifest["class_name"]) == ["cat", ""]
    assert store.manifest_format == manifest_format


def test_columns_of_pandas_may_lack_cells(tmp_path):
    pd = pytest.importorskip("pandas")
    names = pd.Series(["cat", None], dtype="string")
    manifest = {"id": ["a", "b"], "class_name": names, "labels": names}
    store = FeatureStore.write(tmp_path / "s", sample_rows(2), manifest, FINGERPRINT)
    assert store.manifest["class_name"] == store.manifest["labels"] == ["cat", ""]


@pytest.mark.parametrize("manifest_format", ["csv", "parquet"])
def test_empty_store(tmp_path, manifest_format):
    manifest = {"id": [], "label": []}
    store = FeatureStore.write(
        tmp_path / "s", sample_rows(0), manifest, FINGERPRINT, manifest_format
    )
    assert (len(store), store.dim, store.ids, store.labels.shape) == (0, 4, [], (0,))
    assert store.subset([])[0].shape == (0, 4)


@pytest.mark.parametrize(
    "features",
    [
        sample_rows(dtype=np.float64),
        np.asfortranarray(sample_rows()),
        sample_rows(5, 8)[:, ::2],
        torch.from_numpy(sample_rows()).requires_grad_(),
        torch.from_numpy(sample_rows()).bfloat16(),
        sample_rows(dtype=">f4"),
    ],
    ids=["float64", "fortran", "strided", "grad", "bfloat16", "big-endian"],
)
def test_write_takes_floats_of_any_form_and_stores_float32(tmp_path, features):
    store = FeatureStore.write(tmp_path / "s", features, {"id": IDS}, FINGERPRINT)
    assert store.features.dtype == np.float32
    np.testing.assert_array_equal(store.features, as_tensor(features).numpy())


def test_subset(store):
    features, labels, ids = store.subset([3, 0])
    np.testing.assert_array_equal(features, sample_rows()[[3, 0]])
    assert labels.tolist() == [1, 2]
    assert ids == ["é", "a"]
    assert store.subset(store.labels == 1)[2] == ["é", "e"]
    assert store.subset(slice(1, 3))[2] == IDS[1:3]
    features[:] = 0  # a copy
    assert store.features.any()
    with pytest.raises(IndexError, match="out of bounds"):
        store.subset([5])


def test_write_replaces_an_older_store_and_leaves_nothing_behind(tmp_path, store):
    manifest = {"id": ["x", "y"]}
    FeatureStore.write(store.path, sample_rows(2), manifest, FINGERPRINT, "parquet")
    assert FeatureStore.open(store.path).ids == ["x", "y"]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    np.testing.assert_array_equal(
        store.features, sample_rows()
    )  # open maps outlive the replacement


def test_write_never_replaces_a_folder_of_other_things(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"found a folder with 'thesis.tex' in it"):
        FeatureStore.write(tmp_path, sample_rows(), MANIFEST, FINGERPRINT)
    with pytest.raises(ValueError, match=r"thesis.tex: expected nothing .* found a file"):
        FeatureWriter(tmp_path / "thesis.tex", 5, 4, "float32", FINGERPRINT)
    with pytest.raises(ValueError, match="got the root"):
        FeatureStore.write("/", sample_rows(), MANIFEST, FINGERPRINT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_write_that_fails_keeps_the_older_store(tmp_path, store, monkeypatch):
    rename = Path.rename

    def refuse(self, target):
        if self.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match=r"cannot write a feature store: No space left .*/store"):
        FeatureStore.write(store.path, sample_rows(2), {"id": ["x", "y"]}, FINGERPRINT)
    assert FeatureStore.open(store.path).ids == IDS
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for begin in (
        lambda path: FeatureStore.write(path, sample_rows(), MANIFEST, FINGERPRINT),
        lambda path: FeatureWriter(path, 5, 4, "float32", FINGERPRINT),
    ):
        with pytest.raises(OSError, match=r"cannot write a feature store.*file/store"):
            begin(tmp_path / "file" / "store")


@pytest.mark.parametrize(
    ("features", "manifest", "error", "match"),
    [
        (sample_rows(), {"label": [0] * 5}, ValueError, "expected a column 'id', found label"),
        (sample_rows(), {}, ValueError, "expected a column 'id', found none"),
        (sample_rows(), {"id": ["a"]}, ValueError, "expected 5 rows.* found 1 in column 'id'"),
        (
            sample_rows(),
            {"id": list("abcda")},
            ValueError,
            "distinct ids, found 'a' in rows 0 and 4",
        ),
        (sample_rows(2), {"id": ["1", 1]}, ValueError, "distinct ids, found '1' in rows 0 and 1"),
        (sample_rows(2), {"id": ["a", ""]}, ValueError, "an id in every row, found none in row 1"),
        (sample_rows(1), {"id": ["a"], "": [1]}, ValueError, "columns with names, found ''"),
        (sample_rows(1), {"id": ["a"], "label": [0.5]}, ValueError, "integers in column 'label'"),
        (sample_rows(1), {"id": ["a"], "group": [True]}, ValueError, "integers in column 'group'"),
        (
            sample_rows(5, 3),
            MANIFEST,
            ValueError,
            "expected 4 columns, as the fingerprint says, got 3",
        ),
        (sample_rows()[0], MANIFEST, ValueError, r"expected shape \[N, D\], got \[4\]"),
        (sample_rows().astype(int), MANIFEST, TypeError, "expected floating numbers, got int64"),
        ([[1.0]], MANIFEST, TypeError, "expected a tensor or an array, got list"),
    ],
)
def test_write_refuses_what_does_not_fit(tmp_path, features, manifest, error, match):
    with pytest.raises(error, match=match):
        FeatureStore.write(tmp_path / "s", features, manifest, FINGERPRINT)
    assert not list(tmp_path.iterdir())


def test_write_refuses_another_manifest_format(tmp_path):
    with pytest.raises(ValueError, match="expected 'csv' or 'parquet', got 'json'"):
        FeatureStore.write(tmp_path / "s", sample_rows(), MANIFEST, FINGERPRINT, "json")


def _pickled(path):
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)


def _npz(path):
    with path.open("wb") as file:
        np.savez(file, x=sample_rows())


def _header(text):
    def write(path):
        header = text.encode().ljust(117) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)

    return write


@pytest.mark.parametrize(
    ("file", "break_it", "match"),
    [
        ("features.npy", truncate, "cannot be mapped"),
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
        ("features.npy", lambda path: np.save(path, sample_rows()[0]), r"\[N, D\], found \[4\]"),
        (
            "features.npy",
            lambda path: np.save(path, sample_rows() > 0),
            "floating numbers, found bool",
        ),
        (
            "features.npy",
            lambda path: np.save(path, sample_rows(dtype=np.float64)),
            "row-major float32 or float16, found row-major <f8",
        ),
        (
            "features.npy",
            lambda path: np.save(path, np.asfortranarray(sample_rows())),
            "found column-major <f4",
        ),
        ("features.npy", Path.unlink, "expected a .npy file, found nothing"),
        ("features.npy", lambda path: np.save(path, sample_rows(6)), "expected 6 rows.* found 5"),
        ("features.npy", lambda path: np.save(path, sample_rows(5, 3)), "expected dim 3.* found 4"),
        ("fingerprint.json", Path.unlink, "expected the fingerprint.* found nothing"),
        ("fingerprint.json", truncate, "Expecting|delimiter"),
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
    store = FeatureStore.write(tmp_path / "s", sample_rows(), MANIFEST, FINGERPRINT, "parquet")
    truncate(store.path / "manifest.parquet")
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
