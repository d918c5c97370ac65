# SPDX-License-Identifier: Apache-2.0
"""A small store, its parts, and ways to break its files."""

from __future__ import annotations

import numpy as np

from fclearn.features import FeatureStore, Fingerprint

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


def norm_of(rows):
    """What a fingerprint says of rows."""
    norms = np.linalg.norm(np.asarray(rows, dtype=np.float64), axis=1)
    return "l2" if np.allclose(norms, 1, atol=1e-3) else "none"


def overwritten(path, rows):
    """A store with rows that no writer takes, such as NaN, or lengths the fingerprint denies."""
    np.save(path / "features.npy", np.asarray(rows, dtype=np.float32))
    return FeatureStore.open(path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])
