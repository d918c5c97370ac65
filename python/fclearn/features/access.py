# SPDX-License-Identifier: Apache-2.0
"""Features as an array, wherever they are: a store, a file, an array or a tensor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.features.arrays import row_numbers, to_array
from fclearn.features.npy import Features, open_npy
from fclearn.features.store import FeatureStore

FeatureSource = FeatureStore | str | os.PathLike[str] | Tensor | Features


def as_features(x: FeatureSource, name: str = "features") -> Features:
    """Features as an array, without a copy where possible.

    Args:
        x: A `FeatureStore`, the path of one or of a ``.npy`` file, a tensor, or an array. Files
            are memory-mapped. Tensors are detached; only those on another device, and types
            that numpy lacks (bfloat16), are copied.
        name: What to call it in messages.

    Returns:
        Shape ``(N, D)``, floating: an array, or a memory map that may be larger than memory.

    Raises:
        TypeError: None of these, or not floating.
        ValueError: Not a matrix, or a file that cannot be used.

    Example:
        >>> as_features(torch.ones(3, 2)).shape
        (3, 2)
    """
    if isinstance(x, FeatureStore):
        return x.features
    if isinstance(x, str | os.PathLike):
        path = Path(x)
        return FeatureStore.open(path).features if path.is_dir() else open_npy(path)
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(
            f"{name}: expected a feature store, a path, a tensor or an array, got "
            f"{type(x).__name__}"
        )
    return to_array(x, name)


def as_tensor(
    x: FeatureSource,
    rows: slice | Sequence[int] | NDArray[np.integer] | NDArray[np.bool_] | None = None,
) -> Tensor:
    """Copy features, or some of their rows, into a tensor.

    Args:
        x: Whatever `as_features` takes.
        rows: Row numbers, a bool per row, or a slice; None for all.

    Returns:
        Shape ``(M, D)``, float32, on the CPU; never shares memory with ``x``.

    Raises:
        IndexError: Rows that do not exist.
        TypeError: As `as_features`.
        ValueError: As `as_features`.

    Example:
        >>> as_tensor(np.eye(3), rows=[2])
        tensor([[0., 0., 1.]])
    """
    features = as_features(x)
    # A slice of a memory map is read in order; row numbers would gather it row by row.
    part = (
        features
        if rows is None
        else features[rows if isinstance(rows, slice) else row_numbers(len(features), rows)]
    )
    return torch.from_numpy(np.array(part, dtype=np.float32, order="C"))


def check_rows(
    features: FeatureSource, name: str = "features", block_rows: int = 65536
) -> NDArray[np.int64]:
    """Refuse non-finite features and find the rows that are all zero, reading block by block.

    A row of zeros has no direction, so cosine similarity cannot rank it. Whether that matters is
    the caller's to decide: drop the rows, warn, or refuse them.

    Args:
        features: Whatever `as_features` takes.
        name: What to call it in messages.
        block_rows: Rows read at a time, at least 1.

    Returns:
        Row numbers of the rows whose norm is zero, ascending, shape ``(Z,)``, int64.

    Raises:
        TypeError: As `as_features`.
        ValueError: A NaN or infinity; the message names the first row with one.

    Example:
        >>> check_rows(np.array([[1.0, 0.0], [0.0, 0.0]]))
        array([1])
    """
    array = as_features(features, name)
    not_finite, zeros = first_bad_and_zeros(array, block_rows)
    if not_finite is not None:
        raise ValueError(
            f"{name}: expected finite numbers, got a NaN or infinity in row {not_finite}"
        )
    return zeros


def first_bad_and_zeros(
    features: Features, block_rows: int = 65536
) -> tuple[int | None, NDArray[np.int64]]:
    """What `check_rows` looks for, for messages that call the rows otherwise.

    Args:
        features: Shape ``(N, D)``, floating.
        block_rows: Rows read at a time, at least 1.

    Returns:
        The first row with a NaN or infinity, else None; without one, the rows of zeros, ascending,
        int64.

    Raises:
        ValueError: ``block_rows`` out of range.

    Example:
        >>> first_bad_and_zeros(np.array([[3.0, 4.0], [0.0, 0.0]]))
        (None, array([1]))
    """
    if block_rows < 1:
        raise ValueError(f"block_rows: expected at least 1, got {block_rows}")
    none = np.empty(0, dtype=np.int64)
    zeros = [none]
    for begin in range(0, features.shape[0], block_rows):
        block = np.asarray(features[begin : begin + block_rows])
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            return begin + int(bad[0]), none
        zeros.append(begin + np.flatnonzero(~block.any(axis=1)))
    return None, np.concatenate(zeros)
