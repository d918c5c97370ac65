# SPDX-License-Identifier: Apache-2.0
"""Samples of scores, checked."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def sorted_scores(scores: ArrayLike, name: str) -> Floats:
    """Scores of any shape as ascending float64 ``(n,)``.

    Raises:
        TypeError: Not real numbers.
        ValueError: None at all, or a NaN or infinity among them.
    """
    array = np.asarray(scores)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    if array.size == 0:
        raise ValueError(f"{name}: expected at least one score, got shape {list(array.shape)}")
    ordered = np.sort(array.reshape(-1).astype(np.float64))
    if not np.isfinite(ordered[[0, -1]]).all():  # sorting moves NaN to the end
        raise ValueError(f"{name}: expected finite scores, got a NaN or infinity")
    return ordered
