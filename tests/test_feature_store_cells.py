# SPDX-License-Identifier: Apache-2.0
"""Cells of the manifest that a feature store writes: labels, names of classes, other columns."""

from __future__ import annotations

import numpy as np
import pytest
from store_samples import FINGERPRINT, sample_rows

from fclearn.features import (
    FeatureStore,
    FeatureWriter,
)


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
    ("labels", "expected"),
    [
        (["a|b", ["c|d", 3], None], [["a", "b"], ["c|d", "3"], []]),
        ([[1, "b"], {"y", "x"}, ()], [["1", "b"], ["x", "y"], []]),
        (np.array([["a", "b"], ["c", ""], ["d", "e"]]), [["a", "b"], ["c"], ["d", "e"]]),
        ([1, "b", float("nan")], [["1"], ["b"], []]),
        ([[], None, ""], [[], [], []]),
    ],
)
def test_labels_are_lists_of_text_in_parquet(tmp_path, labels, expected):
    manifest = {"id": range(3), "labels": labels}
    store = FeatureStore.write(tmp_path / "s", sample_rows(3), manifest, FINGERPRINT, "parquet")
    assert store.manifest["labels"] == expected
    again = FeatureStore.write(
        tmp_path / "t", sample_rows(3), store.manifest, FINGERPRINT, "parquet"
    )
    assert again.manifest["labels"] == expected


@pytest.mark.parametrize("manifest_format", ["csv", "parquet"])
def test_names_of_classes_are_text(tmp_path, manifest_format):
    manifest = {"id": ["x", "y"], "class_name": ["a", 3]}
    path = tmp_path / "s"
    store = FeatureStore.write(path, sample_rows(2), manifest, FINGERPRINT, manifest_format)
    assert store.manifest["class_name"] == ["a", "3"]


def test_a_column_that_parquet_cannot_hold_is_named(tmp_path):
    rows, path = sample_rows(2), tmp_path / "s"
    boxes = np.arange(8.0).reshape(2, 4)
    manifest = {"id": ["x", "y"], "box": boxes}
    store = FeatureStore.write(path, rows, manifest, FINGERPRINT, "parquet")
    assert store.manifest["box"] == boxes.tolist()
    for cells in (["a", ["b"]], ["a", 3], boxes.reshape(2, 2, 2)):
        with pytest.raises(ValueError, match="expected what parquet can hold in column 'tags': "):
            FeatureStore.write(path, rows, {**manifest, "tags": cells}, FINGERPRINT, "parquet")
    assert "tags" not in FeatureStore.open(path).manifest


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
