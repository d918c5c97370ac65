# SPDX-License-Identifier: Apache-2.0
"""Lengths of rows: what a fingerprint's norm says, held against the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fclearn.features.fingerprint import Fingerprint
from fclearn.features.npy import Features

# Rows that were normalised, then rounded to bfloat16, which has the widest steps: 2**-8.
_TOLERANCE = 4e-3


def row_norms(rows: Features) -> NDArray[np.float64]:
    """Length of each row, shape ``(N,)``, float64: of float32 rows it is finite where they are.

    Example:
        >>> row_norms(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
        array([5., 0.])
    """
    squared: NDArray[np.float64] = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.sqrt(squared)


def is_unit(norms: NDArray[np.float64], error: float = 0.0) -> NDArray[np.bool_]:
    """Whether each of these lengths is 1, up to the rounding of half precision.

    Args:
        norms: Lengths, of any shape.
        error: How much further off they may be, as of rows that were decoded.

    Example:
        >>> is_unit(np.array([1.001, 1.2, 0.0]))
        array([ True, False, False])
    """
    return np.abs(norms - 1) <= _TOLERANCE + error


def other_length(rows: Features) -> int | None:
    """The first row that is neither of unit length nor zero; None where there is none.

    Rows of zeros pass for unit length: that is what normalising leaves of them.

    Example:
        >>> other_length(np.array([[0.0, 1.0], [0.0, 0.0], [3.0, 4.0]]))
        2
    """
    norms = row_norms(rows)
    other = ~is_unit(norms) & (norms > 0)
    return int(other.argmax()) if other.any() else None


def to_stored(
    block: Features,
    dtype: DTypeLike,
    fingerprint: Fingerprint,
    name: str,
    first: int = 0,
    ids: Sequence[str] | NDArray[Any] | None = None,
) -> Features:
    """Rows in the type of a store, if they are what the store may hold.

    Args:
        block: Shape ``(B, D)``, floating.
        dtype: Of the store.
        fingerprint: Of the store.
        name: What to call the rows in messages.
        first: Number of the first row, for messages.
        ids: Of all rows of the store, for messages.

    Returns:
        Shape ``(B, D)``; ``block`` itself where it has the type.

    Raises:
        ValueError: A NaN, an infinity, a number too large for the type, or a length that is not
            the fingerprint's; the message names the first such row.

    Example:
        >>> to_stored(np.array([[3.0, 4.0]]), "float32", Fingerprint("m", 2), "features")
        Traceback (most recent call last):
        ...
        ValueError: features: expected rows of unit length, as the fingerprint's norm 'l2' says, \
got length 5 in row 0: normalise the rows, or give Fingerprint(..., norm="none")
    """
    with np.errstate(over="ignore"):
        rows = block.astype(dtype, copy=False)

    def where(at: int) -> str:
        row = first + at
        return f"row {row}" if ids is None else f"row {row} (id {ids[row]!r})"

    bad = ~np.isfinite(row_norms(rows))
    if bad.any():
        at = int(bad.argmax())
        fitted = np.isfinite(block[at]).all()
        expected = f"numbers that fit {rows.dtype}" if fitted else "finite numbers"
        found = "larger" if fitted else "a NaN or infinity"
        raise ValueError(f"{name}: expected {expected}, got {found} in {where(at)}")
    other = other_length(rows) if fingerprint.norm == "l2" else None
    if other is not None:
        length = float(row_norms(rows[other : other + 1])[0])
        raise ValueError(
            f"{name}: expected rows of unit length, as the fingerprint's norm 'l2' says, got "
            f"length {length:.4g} in {where(other)}: normalise the rows, or give "
            'Fingerprint(..., norm="none")'
        )
    return rows
