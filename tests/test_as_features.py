# SPDX-License-Identifier: Apache-2.0
"""Features in every form a caller may have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from store_samples import sample_rows

from fclearn.features import (
    as_features,
    as_tensor,
    check_rows,
)


def test_as_features_takes_every_form(store):
    path = store.path / "features.npy"
    for form in (
        store,
        store.path,
        str(store.path),
        path,
        str(path),
        torch.from_numpy(sample_rows()),
    ):
        features = as_features(form)
        assert isinstance(features, np.ndarray)
        np.testing.assert_array_equal(features, sample_rows())


def test_as_features_copies_nothing(store):
    array, tensor = sample_rows(), torch.ones(3, 2, requires_grad=True)
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
    array = sample_rows(dtype=np.float64)
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
    rows = sample_rows(10)
    rows[[2, 7]] = 0
    rows[4] = 1e-30  # its square underflows, but it has a direction
    found = check_rows(rows, block_rows=block_rows)
    assert found.dtype == np.int64
    assert found.tolist() == [2, 7]
    rows[8, 1], rows[5, 3] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"^gallery: expected finite .* in row 5$"):
        check_rows(rows, "gallery", block_rows=block_rows)


def test_check_rows_of_nothing_and_of_half(tmp_path):
    assert check_rows(sample_rows(0)).tolist() == []
    np.save(tmp_path / "half.npy", np.eye(3, dtype=np.float16) * 0)
    assert check_rows(tmp_path / "half.npy").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="block_rows: expected at least 1, got 0"):
        check_rows(sample_rows(), block_rows=0)
