# SPDX-License-Identifier: Apache-2.0
"""A small store, its parts, and ways to break its files."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fclearn.features import FeatureStore, Fingerprint
from fclearn.features.norms import is_unit, row_norms

FINGERPRINT = Fingerprint("old-api", 4, norm="none", preprocessing="resize 32")
IDS = ["a", 'b,"x"', "c\r\nd", "é", "e"]
MANIFEST = {
    "id": IDS,
    "label": [2, 0, -100, 1, 1],
    "group": np.array([0, 0, 1, 1, 2], dtype=np.int32),
    "class_name": ["two", "zero", "", "one", "one"],
}


def sample_rows(num_rows=5, dim=4, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((num_rows, dim)).astype(dtype)


def unit(rows):
    """Rows brought to unit length in float64: an array of an array, a tensor of a tensor."""
    rows = rows.double() if isinstance(rows, Tensor) else np.asarray(rows, dtype=np.float64)
    return rows / (rows * rows).sum(-1, keepdims=True) ** 0.5


def norm_of(rows):
    """What a fingerprint says of rows."""
    return "l2" if is_unit(row_norms(np.asarray(rows))).all() else "none"


def overwritten(path, rows):
    """A store with rows that no writer takes, such as NaN, or lengths the fingerprint denies."""
    np.save(path / "features.npy", np.asarray(rows, dtype=np.float32))
    return FeatureStore.open(path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])
