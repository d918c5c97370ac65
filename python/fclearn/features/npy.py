# SPDX-License-Identifier: Apache-2.0
"""Matrices in ``.npy`` files: opened without unpickling, created at their full size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

Features = NDArray[np.floating[Any]]


def open_npy(path: Path, mode: Literal["r", "r+"] = "r") -> np.memmap[Any, np.dtype[Any]]:
    """Memory-map a matrix of floating numbers.

    Args:
        path: A ``.npy`` file.
        mode: ``"r"`` to read, ``"r+"`` to write in place.

    Returns:
        Shape ``(N, D)``, floating.

    Raises:
        ValueError: No such file, not a ``.npy`` file, truncated, pickled, or not a floating matrix.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: expected a .npy file, found {'a folder' if path.is_dir() else 'nothing'}"
        )
    try:
        _check_header_size(path)
        # Never unpickles: object arrays cannot be mapped.
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a hostile header can fail in many ways inside numpy
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: expected a whole .npy file of floating numbers, but it cannot be mapped: "
            f"{reason}"
        ) from error
    if array.ndim != 2:
        raise ValueError(f"{path}: expected an array of shape [N, D], found {list(array.shape)}")
    if array.dtype.kind != "f":
        raise ValueError(f"{path}: expected floating numbers, found {array.dtype}")
    # Opened for reading first, because mapping a truncated file for writing would extend it.
    return array if mode == "r" else np.lib.format.open_memmap(path, mode=mode)


def _check_header_size(path: Path) -> None:
    """Refuse a header longer than its file: numpy would take memory for it before it read it."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        size = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
        if size > path.stat().st_size:
            raise ValueError(f"its header says that it is {size} bytes long")


def create_npy(
    path: Path, num_rows: int, dim: int, dtype: DTypeLike
) -> np.memmap[Any, np.dtype[Any]]:
    """Make a ``.npy`` file of zeros, its space on disk reserved, and map it for writing.

    Args:
        path: File to make or replace.
        num_rows: Rows, N.
        dim: Columns, D.
        dtype: Of the numbers.

    Returns:
        Shape ``(N, D)``.

    Raises:
        OSError: The file cannot be made or the disk is full.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=(num_rows, dim))
    if hasattr(os, "posix_fallocate"):
        # Writing to a mapped hole of a full disk would kill the process without a message.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
