# SPDX-License-Identifier: Apache-2.0
"""Clusters in the place of classes, where nobody has labelled anything."""

from __future__ import annotations

import importlib

import numpy as np
import torch
from numpy.typing import NDArray

from fclearn.features import FeatureSource, as_tensor

__all__ = ["kmeans_labels"]

# k-means looks at this many rows per cluster at most; more changes centres by nothing that counts.
_ROWS_PER_CLUSTER = 256


def kmeans_labels(
    features: FeatureSource, num_clusters: int, *, iterations: int = 20, seed: int = 0
) -> NDArray[np.int64]:
    """Cluster per row, by spherical k-means (faiss).

    Args:
        features: Shape ``(N, D)``, floating; rows count at unit length.
        num_clusters: C, from 2 to N.
        iterations: Of k-means.
        seed: Of its start.

    Returns:
        Shape ``(N,)``, int64, 0 .. the number of clusters that have rows - 1.

    Raises:
        ModuleNotFoundError: faiss is missing.
        ValueError: A number of clusters out of range, NaN or infinite features.

    Example:
        >>> rows = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)
        >>> labels = kmeans_labels(rows, 2)
        >>> sorted(set(labels[:4])) != sorted(set(labels[4:]))
        True
    """
    try:
        faiss = importlib.import_module("faiss")
    except ModuleNotFoundError:
        raise ModuleNotFoundError("faiss is missing: pip install faiss-cpu") from None
    rows = as_tensor(features)
    if not 2 <= num_clusters <= len(rows):
        raise ValueError(
            f"clusters: expected 2 to {len(rows)}, the number of rows, got {num_clusters}"
        )
    bad = (~rows.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(f"features: row {int(bad[0])} holds a NaN or infinite value")
    unit = torch.nn.functional.normalize(rows, dim=1).contiguous().numpy()
    kmeans = faiss.Kmeans(
        unit.shape[1],
        num_clusters,
        niter=iterations,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=_ROWS_PER_CLUSTER,
    )
    kmeans.train(unit)
    nearest = kmeans.index.search(unit, 1)[1][:, 0]
    # A cluster may end without rows: numbers close up.
    return np.unique(nearest, return_inverse=True)[1].astype(np.int64)
