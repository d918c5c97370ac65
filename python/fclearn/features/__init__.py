# SPDX-License-Identifier: Apache-2.0
"""Stored features: vectors, a row-aligned manifest and a fingerprint in one folder.

`FeatureStore` reads and writes one, `FeatureWriter` fills one block by block, and `as_features`
takes features in any form.
"""

from __future__ import annotations

from fclearn.features.access import FeatureSource, as_features, as_tensor, check_rows
from fclearn.features.fingerprint import METRICS, Fingerprint
from fclearn.features.manifest import Manifest
from fclearn.features.npy import Features
from fclearn.features.store import FeatureStore
from fclearn.features.writer import FeatureWriter

__all__ = [
    "METRICS",
    "FeatureSource",
    "FeatureStore",
    "FeatureWriter",
    "Features",
    "Fingerprint",
    "Manifest",
    "as_features",
    "as_tensor",
    "check_rows",
]
