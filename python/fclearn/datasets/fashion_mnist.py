# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST from its idx files: ten classes, for a one-minute smoke test."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from fclearn.datasets.base import ImageDataset

# Where the Debian package dataset-fashion-mnist puts the files.
DEFAULT_PATH = "/usr/share/datasets/fashion-mnist"
_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_UINT8 = 8  # type code of the idx format


def load_fashion_mnist(
    path: str | os.PathLike[str] = DEFAULT_PATH, *, part: str = "train"
) -> ImageDataset:
    """Read ``<part>-images-idx3-ubyte.gz`` and its labels.

    Args:
        path: Folder of the four idx files.
        part: ``"train"`` (60,000 images) or ``"test"`` (10,000).

    Returns:
        Grey 28 x 28 images.

    Raises:
        ValueError: An unknown part, a missing or damaged file.

    References:
        Xiao, Rasul, Vollgraf, *Fashion-MNIST*, 2017.
    """
    prefixes = {"train": "train", "test": "t10k"}
    if part not in prefixes:
        raise ValueError(f"part: expected 'train' or 'test', got {part!r}")
    folder = Path(path)
    images = _read_idx(folder / f"{prefixes[part]}-images-idx3-ubyte.gz", 3)
    labels = _read_idx(folder / f"{prefixes[part]}-labels-idx1-ubyte.gz", 1)
    if len(images) != len(labels):
        raise ValueError(f"Fashion-MNIST in {folder}: {len(images)} images, {len(labels)} labels")
    ids = [f"{part}/{row}" for row in range(len(images))]
    return ImageDataset(images, labels.astype(np.int64), ids, class_names=_CLASSES)


def _read_idx(file: Path, ndim: int) -> np.ndarray:
    if not file.is_file():
        raise ValueError(
            f"Fashion-MNIST: {file} is missing; on Debian: apt install dataset-fashion-mnist"
        )
    try:
        data = gzip.decompress(file.read_bytes())
        zeros, kind, dims = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{ndim}I", data[4 : 4 + 4 * ndim])
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise ValueError(f"Fashion-MNIST: {file} is damaged: {error}") from error
    if (zeros, kind, dims) != (0, _UINT8, ndim) or len(data) != 4 + 4 * ndim + math.prod(shape):
        raise ValueError(f"Fashion-MNIST: {file} is not an idx file of {ndim} dims")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)
