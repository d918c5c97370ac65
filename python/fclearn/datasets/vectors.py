# SPDX-License-Identifier: Apache-2.0
"""Features of a frozen model in the place of images: what a trainable head on them is fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.datasets.rows import LabelledSet


@dataclass(frozen=True)
class VectorDataset(LabelledSet):
    """Row-aligned features, labels, ids and groups.

    To a network they are images of one pixel and ``D`` channels: encoder ``"feature-head"`` of
    `fclearn.encoders.build_encoder` takes them, and everything else stays as it is with images.

    Attributes:
        vectors: Shape ``(N, D)``, float32; may be memory-mapped.
        labels: As `ImageDataset`, also the following.
        ids: One distinct string per row.
        groups: Rows of one group may be near-copies.
        class_names: Name of each label.
        group_names: Name of each group.

    Raises:
        TypeError: Vectors that are not float32, labels that are not integers.
        ValueError: Shapes that disagree, labels out of range, ids that repeat.

    Example:
        >>> data = VectorDataset(np.eye(3, dtype=np.float32), np.array([0, 1, 1]),
        ...                      ids=["a", "b", "c"], class_names=["cat", "dog"])
        >>> data.channels, data.tensor([0, 2]).shape
        (3, torch.Size([2, 3, 1, 1]))
    """

    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: list[str]
    groups: NDArray[np.int64] | None = None
    class_names: Sequence[str] = ()
    group_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check that everything is aligned."""
        if self.vectors.dtype != np.float32:
            raise TypeError(f"vectors: expected dtype float32, got {self.vectors.dtype}")
        if self.vectors.ndim != 2:
            raise ValueError(f"vectors: expected shape [N, D], got {list(self.vectors.shape)}")
        self._check(len(self.vectors), "vector")

    @property
    def channels(self) -> int:
        """Width of the vectors, D."""
        return int(self.vectors.shape[1])

    def tensor(self, index: NDArray[np.int64] | Sequence[int]) -> Tensor:
        """Some rows, shape ``(B, D, 1, 1)``, float32.

        Args:
            index: Row numbers.
        """
        rows = np.ascontiguousarray(self.vectors[np.asarray(index, dtype=np.int64)])
        return torch.from_numpy(rows)[:, :, None, None]

    def array(self) -> NDArray[np.float32]:
        """All vectors."""
        return self.vectors

    def _part(
        self, rows: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str]
    ) -> VectorDataset:
        return VectorDataset(
            self.vectors[rows],
            labels,
            self._part_ids(rows),
            self._part_groups(rows),
            names,
            self.group_names,
        )
