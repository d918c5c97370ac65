# SPDX-License-Identifier: Apache-2.0
"""Images with labels, ids and groups, row-aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.datasets.files import FileImages
from fclearn.datasets.rows import LabelledSet


@dataclass(frozen=True)
class ImageDataset(LabelledSet):
    """Row-aligned images, labels, ids and groups.

    Attributes:
        images: Shape ``(N, H, W)`` (grey) or ``(N, H, W, 3)`` (RGB), uint8; may be memory-mapped,
            or files that are decoded when they are needed.
        labels: Class per image, shape ``(N,)``, int64 in ``[0, len(class_names))``.
        ids: One distinct string per image: the row's identity across old and new features.
        groups: Optional, shape ``(N,)``, int64: images of one group may be near-copies (weights of
            one font, frames of one camera), so a fair gallery leaves out the query's own group.
        class_names: Name of each label.
        group_names: Name of each group.
        files: Of each image, where they are files; `fclearn.embed` notes them in its store, for the
            pictures of reports.

    Raises:
        TypeError: Images that are not uint8, labels that are not integers.
        ValueError: Shapes that disagree, labels out of range, ids that repeat.

    Example:
        >>> import numpy as np
        >>> from fclearn.datasets import ImageDataset
        >>> data = ImageDataset(np.zeros((3, 8, 8), np.uint8), np.array([0, 1, 1]),
        ...                     ids=["a", "b", "c"], class_names=["cat", "dog"])
        >>> data.subset([2]).ids, data.select_classes([1]).labels.tolist()
        (['c'], [0, 0])
    """

    images: NDArray[np.uint8] | FileImages
    labels: NDArray[np.int64]
    ids: list[str]
    groups: NDArray[np.int64] | None = None
    class_names: Sequence[str] = ()
    group_names: Sequence[str] = ()
    files: Sequence[Path] | None = None

    def __post_init__(self) -> None:
        """Check that everything is aligned."""
        shape = self.images.shape
        if self.images.dtype != np.uint8:
            raise TypeError(f"images: expected dtype uint8, got {self.images.dtype}")
        if len(shape) not in {3, 4} or (len(shape) == 4 and shape[3] != 3):
            raise ValueError(f"images: expected shape [N, H, W] or [N, H, W, 3], got {list(shape)}")
        self._check(shape[0], "image")
        if self.files is not None and len(self.files) != shape[0]:
            raise ValueError(f"files: expected {shape[0]}, one per image, got {len(self.files)}")

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return 1 if self.images.ndim == 3 else 3

    def tensor(self, index: NDArray[np.int64] | Sequence[int]) -> Tensor:
        """Images of some rows as float32 in [0, 1], shape ``(B, channels, H, W)``.

        Args:
            index: Row numbers.
        """
        rows = np.asarray(index, dtype=np.int64)
        batch = torch.from_numpy(np.ascontiguousarray(self.images[rows]))
        batch = batch[:, None] if self.channels == 1 else batch.permute(0, 3, 1, 2)
        return batch.to(torch.float32) / 255

    def prefetch(self, index: NDArray[np.int64]) -> None:
        """Say which rows `tensor` will be asked for next, so that files are decoded meanwhile.

        Args:
            index: Row numbers.
        """
        if isinstance(self.images, FileImages):
            self.images.prefetch(index)

    def start_epoch(self, epoch: int) -> None:
        """Say which epoch begins: images that are cropped at random are cropped anew.

        Args:
            epoch: From 0.
        """
        if isinstance(self.images, FileImages):
            self.images.start_epoch(epoch)

    def array(self) -> NDArray[np.uint8]:
        """All images, shape as of ``images``; decodes them if they are files."""
        return self.images.load() if isinstance(self.images, FileImages) else self.images

    def _part(
        self, rows: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str]
    ) -> ImageDataset:
        return ImageDataset(
            self.images.take(rows) if isinstance(self.images, FileImages) else self.images[rows],
            labels,
            self._part_ids(rows),
            self._part_groups(rows),
            names,
            self.group_names,
            None if self.files is None else [self.files[row] for row in rows],
        )


def split_classes(num_classes: int, *sizes: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """Disjoint random sets of classes: the same for the same seed, on every machine.

    Args:
        num_classes: How many classes there are.
        sizes: Classes in each set; what is left over makes one more set, which may be empty.
        seed: Of the shuffle.

    Returns:
        ``len(sizes) + 1`` sorted arrays of labels, int64.

    Raises:
        ValueError: Sizes that are negative or exceed the number of classes.

    Example:
        >>> [len(part) for part in split_classes(10, 2, 5, seed=0)]
        [2, 5, 3]
    """
    if min(sizes, default=0) < 0 or sum(sizes) > num_classes:
        raise ValueError(f"sizes: expected at most {num_classes} classes in all, got {sizes}")
    order = np.random.default_rng(seed).permutation(num_classes)
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes))]
