# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST's files."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from fclearn.datasets import (
    fashion_mnist,
    load_fashion_mnist,
)


def _write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fashion(tmp_path):
    random = np.random.default_rng(0)
    for prefix, count in (("train", 12), ("t10k", 4)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        _write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        labels = (np.arange(count) % 10).astype(np.uint8)
        _write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return tmp_path


def test_fashion_mnist(fashion):
    train, test = load_fashion_mnist(fashion), load_fashion_mnist(fashion, part="test")
    assert train.images.shape == (12, 28, 28)
    assert train.labels.tolist() == [*range(10), 0, 1]
    assert train.ids[3] == "train/3"
    assert test.ids[3] == "test/3"
    assert len(test) == 4
    assert train.num_classes == 10
    first = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    assert np.array_equal(train.images, first)
    assert train.tensor([0, 1]).shape == (2, 1, 28, 28)


def test_fashion_mnist_refuses_missing_files(fashion, tmp_path):
    with pytest.raises(ValueError, match="part: expected 'train' or 'test', got 'val'"):
        load_fashion_mnist(fashion, part="val")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"labels.* is missing; .*apt install dataset-fashion"):
        load_fashion_mnist(fashion)
    assert fashion_mnist.DEFAULT_PATH.startswith("/usr/share")


def test_fashion_mnist_refuses_damaged_files(fashion):
    file = fashion / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[20] ^= 0xFF
    body = gzip.decompress(whole)
    # Dims whose product wraps around 64 bits to zero.
    wrapped = body[:4] + struct.pack(">3I", 2**31, 2**31, 4)
    for content in (
        b"",
        b"hello",
        whole[:100],
        bytes(flipped),
        gzip.compress(b""),
        gzip.compress(body[:-1]),
        gzip.compress(b"\0\0\x0d" + body[3:]),
        gzip.compress(wrapped),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"train-images.* is (damaged|not an idx file)"):
            load_fashion_mnist(fashion)


def test_fashion_mnist_refuses_other_labels(fashion):
    file = fashion / "train-labels-idx1-ubyte.gz"
    _write_idx(file, np.zeros(11, np.uint8))
    with pytest.raises(ValueError, match="12 images, 11 labels"):
        load_fashion_mnist(fashion)
    _write_idx(file, np.full(12, 10, np.uint8))
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 10\)"):
        load_fashion_mnist(fashion)
