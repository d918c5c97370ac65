# SPDX-License-Identifier: Apache-2.0
"""Feature stores that are damaged or were made to harm are refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from store_samples import FINGERPRINT, IDS, MANIFEST, sample_rows, truncate

from fclearn.features import (
    FeatureStore,
    as_features,
)


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
        ("manifest.csv", lambda path: path.write_text("name\nx\n"), "column 'id', found 'name'"),
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
