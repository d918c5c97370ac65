# SPDX-License-Identifier: Apache-2.0
"""Similarities of stored rows to class means, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fclearn.features import FeatureSource, as_features, as_tensor

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Numbers of a block: rows times the larger of dims and classes.
_BLOCK_ELEMENTS = 2**23


def nearest_two(features: FeatureSource, classes: Ints) -> Floats:
    """Cosines to the two nearest class means, the nearest first, float64 ``(N, 2)``.

    Raises:
        ValueError: A single class.
    """
    means = _means(features, classes)
    if len(means) < 2:
        raise ValueError("labels: expected at least 2 classes, got 1")
    best = [(rows @ means.T).topk(2, dim=1).values for rows, _ in _blocks(features, len(means))]
    return np.asarray(torch.cat(best).numpy())


def own_similarity(features: FeatureSource, classes: Ints) -> Floats:
    """Cosine of each row to the mean of its own class, else to the nearest, float64 ``(N,)``."""
    means = _means(features, classes)
    labels = torch.from_numpy(classes)
    found = []
    for rows, part in _blocks(features, 1 if (classes >= 0).all() else len(means)):
        own = (rows * means[labels[part]]).sum(1)
        is_none = labels[part] < 0
        own[is_none] = (rows[is_none] @ means.T).amax(1)
        found.append(own)
    return np.asarray(torch.cat(found).numpy())


def _means(features: FeatureSource, classes: Ints) -> Tensor:
    """Unit class means. One that cancels to zero is left so: every row is as far from it."""
    means = torch.zeros(int(classes.max()) + 1, as_features(features).shape[1]).double()
    labels = torch.from_numpy(classes)
    for rows, part in _blocks(features, 1):
        is_known = labels[part] >= 0
        means.index_add_(0, labels[part][is_known], rows[is_known])
    return F.normalize(means, dim=1)


def _blocks(features: FeatureSource, width: int) -> Iterator[tuple[Tensor, slice]]:
    size, dim = as_features(features).shape
    step = max(1, _BLOCK_ELEMENTS // max(dim, width))
    for start in range(0, size, step):
        part = slice(start, min(start + step, size))
        yield F.normalize(as_tensor(features, part).double(), dim=1), part
