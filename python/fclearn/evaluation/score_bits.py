# SPDX-License-Identifier: Apache-2.0
"""float32 scores as integers that sort as they do, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SIGN = np.int32(-(2**31))


def sort_bits(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Integers that compare as the numbers do, any shape; -0 is 0.

    Args:
        scores: Not NaN.

    Example:
        >>> bits = sort_bits(np.array([-np.inf, -1, -0.0, 0, 1e-45], dtype=np.float32))
        >>> np.diff(bits.astype(np.int64)) > 0
        array([ True,  True, False,  True])
    """
    bits = (scores + np.float32(0)).view(np.int32)
    # All ones below zero, else the sign alone.
    flip = (bits >> 31) | _SIGN
    flip ^= bits
    return np.asarray(flip.view(np.uint32))


def from_sort_bits(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The numbers that `sort_bits` was given."""
    signed = bits.view(np.int32)
    return np.asarray((signed ^ (~(signed >> 31) | _SIGN)).view(np.float32))
