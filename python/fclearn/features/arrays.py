# SPDX-License-Identifier: Apache-2.0
"""Rows and matrices in whatever form the caller has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.features.npy import Features

_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


def row_numbers(
    num_rows: int, index: slice | Sequence[int] | NDArray[np.integer] | NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Row numbers ``(M,)``, int64, that an index of any kind selects."""
    if not isinstance(index, slice):
        index = np.asarray(index)
        index = index if index.size else index.astype(np.int64)  # an empty list is float64
    return np.arange(num_rows, dtype=np.int64)[index]


def to_array(features: object, name: str) -> Features:
    """Features of a tensor or an array as an array ``(N, D)``, copied only if torch must.

    Args:
        features: Tensor on any device, or array.
        name: What to call it in messages.

    Raises:
        TypeError: Neither, or not floating.
        ValueError: Not a matrix.
    """
    if isinstance(features, Tensor):
        features = features.detach().cpu()
        if features.is_floating_point() and features.dtype not in _NUMPY_FLOATS:
            features = features.float()  # numpy has no bfloat16
        features = features.numpy()
    if not isinstance(features, np.ndarray):
        raise TypeError(f"{name}: expected a tensor or an array, got {type(features).__name__}")
    if features.dtype.kind != "f":
        raise TypeError(f"{name}: expected floating numbers, got {features.dtype}")
    if features.ndim != 2:
        raise ValueError(f"{name}: expected shape [N, D], got {list(features.shape)}")
    return features
