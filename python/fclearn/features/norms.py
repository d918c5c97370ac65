# SPDX-License-Identifier: Apache-2.0
"""Rows as a store keeps them, and their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

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


def other_length(norms: NDArray[np.float64]) -> int | None:
    """The first of these lengths that is neither 1 nor 0; None where there is none.

    Rows of zeros pass for unit length: that is what normalising leaves of them.

    Args:
        norms: From `row_norms`, shape ``(N,)``.

    Example:
        >>> other_length(np.array([1.0, 0.0, 5.0]))
        2
    """
    other = ~is_unit(norms) & (norms > 0)
    return int(other.argmax()) if other.any() else None


def stored_rows(
    block: Features,
    dtype: DTypeLike,
    name: str,
    first: int = 0,
    ids: Sequence[str] | NDArray[Any] | None = None,
) -> tuple[Features, NDArray[np.float64]]:
    """Rows in the type of a store, and their lengths, if the type can hold them.

    Args:
        block: Shape ``(B, D)``, floating.
        dtype: Of the store.
        name: What to call the rows in messages.
        first: Number of the first row, for messages.
        ids: Of all rows of the store, for messages.

    Returns:
        Rows ``(B, D)``, ``block`` itself where it has the type; lengths ``(B,)``, float64, finite.

    Raises:
        ValueError: A NaN, an infinity or a number too large for the type; the message names the
            first such row.

    Example:
        >>> stored_rows(np.array([[3.0, 4.0]]), "float32", "features")
        (array([[3., 4.]], dtype=float32), array([5.]))
    """
    with np.errstate(over="ignore"):
        rows = block.astype(dtype, copy=False)
    norms = row_norms(rows)
    bad = ~np.isfinite(norms)
    if bad.any():
        at = int(bad.argmax())
        row = first + at
        fitted = np.isfinite(block[at]).all()
        expected = f"numbers that fit {rows.dtype}" if fitted else "finite numbers"
        found = "larger" if fitted else "a NaN or infinity"
        where = f"row {row}" if ids is None else f"row {row} (id {ids[row]!r})"
        raise ValueError(f"{name}: expected {expected}, got {found} in {where}")
    return rows, norms
