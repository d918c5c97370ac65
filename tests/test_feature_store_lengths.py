# SPDX-License-Identifier: Apache-2.0
"""Lengths of the rows that a feature store is given, and what it says of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from store_samples import MANIFEST, overwritten, sample_rows, unit

from fclearn.features import (
    FeatureStore,
    FeatureWriter,
    Fingerprint,
    norms,
)
from fclearn.features import store as store_module
from fclearn.features.norms import row_norms

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
