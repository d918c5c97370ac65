# SPDX-License-Identifier: Apache-2.0
"""ImageDataset: subsets, classes, splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fclearn.datasets import (
    ImageDataset,
    split_classes,
)


def _dataset(num=6, *, rgb=False, **changes):
    shape = (num, 8, 10, 3) if rgb else (num, 8, 10)
    arguments = {
        "images": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
        "labels": np.arange(num) % 3,
        "ids": [f"image-{row}" for row in range(num)],
        "groups": np.arange(num) // 2,
        "class_names": ["ant", "bee", "cat"],
        "group_names": ["x", "y", "z"],
    }
    return ImageDataset(**{**arguments, **changes})


def test_dataset_facts():
    grey, rgb = _dataset(), _dataset(rgb=True)
    assert (len(grey), grey.num_classes, grey.channels, rgb.channels) == (6, 3, 1, 3)


@pytest.mark.parametrize("rgb", [False, True])
def test_tensor_is_the_pixels_over_255(rgb):
    data = _dataset(rgb=rgb)
    batch = data.tensor([4, 1])
    assert batch.dtype == torch.float32
    assert batch.shape == (2, 3 if rgb else 1, 8, 10)
    pixels = data.images[[4, 1]].astype(np.float64) / 255
    expected = pixels.transpose(0, 3, 1, 2) if rgb else pixels[:, None]
    np.testing.assert_allclose(batch.numpy(), expected, rtol=1e-6)
    batch.zero_()
    assert data.images[4].any()
    assert data.tensor([]).shape == (0, 3 if rgb else 1, 8, 10)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ([5, 0], [5, 0]),
        (np.array([False, True, False, False, True, False]), [1, 4]),
        ([-1], [5]),
        ([], []),
    ],
)
def test_subset_keeps_rows_aligned(index, rows):
    data = _dataset()
    part = data.subset(index)
    assert part.ids == [data.ids[row] for row in rows]
    assert part.labels.tolist() == data.labels[rows].tolist()
    assert part.groups.tolist() == data.groups[rows].tolist()
    assert np.array_equal(part.images, data.images[rows])
    assert (part.class_names, part.group_names) == (data.class_names, data.group_names)
    assert _dataset(groups=None).subset(index).groups is None


def test_select_classes_relabels_in_the_order_given():
    data = _dataset()
    part = data.select_classes([2, 0])
    assert list(part.class_names) == ["cat", "ant"]
    assert part.ids == ["image-0", "image-2", "image-3", "image-5"]
    assert part.labels.tolist() == [1, 0, 1, 0]
    assert part.groups.tolist() == [0, 1, 1, 2]
    assert len(data.select_classes([])) == 0


@pytest.mark.parametrize("classes", [[0, 0], [3], [-1]])
def test_select_classes_refuses(classes):
    with pytest.raises(ValueError, match=r"classes: expected distinct labels in \[0, 3\), got"):
        _dataset().select_classes(classes)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"images": np.zeros((6, 8, 8))}, TypeError, "images: expected dtype uint8, got float64"),
        (
            {"images": np.zeros((6, 8, 8, 4), np.uint8)},
            ValueError,
            r"images: expected shape \[N, H, W\] or \[N, H, W, 3\], got \[6, 8, 8, 4\]",
        ),
        ({"images": np.zeros((6, 8), np.uint8)}, ValueError, r"images: .* got \[6, 8\]"),
        ({"labels": np.zeros(6)}, TypeError, "labels: expected dtype int64, got float64"),
        (
            {"labels": np.zeros(5, np.int64)},
            ValueError,
            r"labels: expected shape \[6\], got \[5\]",
        ),
        (
            {"labels": np.array([0, 1, 2, 3, 0, 0])},
            ValueError,
            r"labels: expected values in \[0, 3\) \(one per class name\), got 0 to 3",
        ),
        ({"labels": np.array([0, 1, -1, 0, 0, 0])}, ValueError, r"got -1 to 1"),
        ({"ids": ["a"]}, ValueError, "ids: expected 6, one per image, got 1"),
        ({"ids": list("abcdbe")}, ValueError, "ids: expected distinct ids, got 'b' twice"),
        (
            {"groups": np.zeros((6, 1), np.int64)},
            ValueError,
            r"groups: expected shape \[6\], got \[6, 1\]",
        ),
    ],
)
def test_dataset_refuses(changes, kind, message):
    with pytest.raises(kind, match=message):
        _dataset(**changes)


def test_split_classes_partitions_and_repeats():
    parts = split_classes(20, 5, 8, seed=3)
    assert [len(part) for part in parts] == [5, 8, 7]
    assert sorted(np.concatenate(parts)) == list(range(20))
    assert all((np.diff(part) > 0).all() for part in parts)
    again = split_classes(20, 5, 8, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    other = split_classes(20, 5, 8, seed=4)
    assert not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))
    assert [len(part) for part in split_classes(3, 3)] == [3, 0]


@pytest.mark.parametrize("sizes", [(11,), (6, 5), (-1,)])
def test_split_classes_refuses(sizes):
    with pytest.raises(ValueError, match="sizes: expected at most 10 classes in all"):
        split_classes(10, *sizes)
