# SPDX-License-Identifier: Apache-2.0
"""Old features and their classes as loss modules and pseudo classifiers hold them: checked once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def frozen_rows(name: str, rows: Tensor | np.ndarray) -> Tensor:
    """Rows as a detached tensor ``(N, D)``; arrays are copied as float32.

    Raises:
        TypeError: Neither a tensor nor an array.
        ValueError: Not floating of shape (N, D), or a row with a NaN or an infinity.
    """
    if isinstance(rows, np.ndarray) and rows.dtype.kind == "f":
        # A copy: read-only arrays, such as memory maps, cannot be shared with torch.
        rows = torch.from_numpy(np.array(rows, dtype=np.float32, order="C"))
    if not isinstance(rows, Tensor | np.ndarray):
        raise TypeError(f"{name}: expected a tensor or an array, got {type(rows).__name__}")
    if isinstance(rows, np.ndarray) or rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(
            f"{name}: expected floating of shape (N, D), got {rows.dtype} of {list(rows.shape)}"
        )
    check_finite(name, rows)
    return rows.detach()


def check_finite(name: str, rows: Tensor) -> None:
    """Refuse a NaN or an infinity: of one such row all losses become NaN.

    Raises:
        ValueError: There is one; the message names the row.
    """
    if rows.is_meta or isinstance(rows, FakeTensor):  # without values
        return
    finite = rows.isfinite().all(1)
    if not bool(finite.all()):
        raise ValueError(f"{name}: row {int((~finite).nonzero()[0])} has a NaN or an infinity")


def class_numbers(labels: object, num_rows: int) -> Tensor:
    """Classes ``(N,)`` as int64, from integers in any form.

    Args:
        labels: A tensor, an array or a list.
        num_rows: N.

    Raises:
        ValueError: Not N integers, or a number from 2^63 on.
    """
    try:
        classes = labels if isinstance(labels, Tensor) else torch.tensor(labels)
        got = f"{classes.dtype} of {list(classes.shape)}"
    except (TypeError, ValueError, RuntimeError, OverflowError):  # texts, lists in lists
        classes, got = None, type(labels).__name__
        if isinstance(labels, np.ndarray):
            got = f"{labels.dtype} of {list(labels.shape)}"
    if (
        classes is None
        or classes.shape != (num_rows,)
        or classes.dtype == torch.bool
        or classes.is_floating_point()
        or classes.is_complex()
    ):
        raise ValueError(f"labels: expected integers of shape ({num_rows},), got {got}")
    numbers = classes.to(torch.int64)
    if classes.dtype == torch.uint64 and bool((numbers < 0).any()):
        raise ValueError("labels: expected numbers below 2^63")
    return numbers
