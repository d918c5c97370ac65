# SPDX-License-Identifier: Apache-2.0
"""Feature stores: round trips, replacing, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from store_samples import FINGERPRINT, IDS, MANIFEST, sample_rows

from fclearn.features import (
    FeatureStore,
    FeatureWriter,
    as_tensor,
)


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
        (sample_rows(), {"label": [0] * 5}, ValueError, "expected a column 'id', found 'label'"),
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
