# SPDX-License-Identifier: Apache-2.0
"""What every data set is: rows with labels, ids and groups, whatever a row holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_Self = TypeVar("_Self", bound="LabelledSet")


class LabelledSet(ABC):
    """Row-aligned labels, ids and groups of images, or of features in their place.

    Attributes:
        labels: Class per row, shape ``(N,)``, int64 in ``[0, len(class_names))``.
        ids: One distinct string per row: its identity across old and new features.
        groups: Optional, shape ``(N,)``, int64: rows of one group may be near-copies.
        class_names: Name of each label.
        group_names: Name of each group.
    """

    labels: NDArray[np.int64]
    ids: list[str]
    groups: NDArray[np.int64] | None
    class_names: Sequence[str]
    group_names: Sequence[str]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of class names."""
        return len(self.class_names)

    @property
    @abstractmethod
    def channels(self) -> int:
        """What an encoder must know of a row: channels of an image, width of features."""

    @abstractmethod
    def tensor(self, index: NDArray[np.int64] | Sequence[int]) -> Tensor:
        """Some rows as float32, shape ``(B, channels, H, W)``.

        Args:
            index: Row numbers.
        """

    @abstractmethod
    def array(self) -> NDArray[Any]:
        """All rows, as they are stored."""

    @abstractmethod
    def _part(
        self: _Self, rows: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str]
    ) -> _Self:
        """Some rows under other labels."""

    def prefetch(self, index: NDArray[np.int64]) -> None:  # noqa: B027  (most need nothing)
        """Say which rows `tensor` will be asked for next.

        Args:
            index: Row numbers.
        """

    def start_epoch(self, epoch: int) -> None:  # noqa: B027
        """Say which epoch begins.

        Args:
            epoch: From 0.
        """

    def subset(self: _Self, index: NDArray[np.int64] | NDArray[np.bool_] | Sequence[int]) -> _Self:
        """Rows ``index`` (integers or a mask), all class names kept.

        Args:
            index: Row numbers, or a bool per row.
        """
        # An empty list would be an array of floats, which cannot index.
        rows = np.arange(len(self))[np.asarray(index) if len(index) else slice(0)]
        return self._part(rows, self.labels[rows], self.class_names)

    def select_classes(self: _Self, classes: Sequence[int] | NDArray[np.int64]) -> _Self:
        """All rows of these classes, relabelled ``0 … len(classes) - 1`` in the order given.

        Args:
            classes: Labels to keep, distinct.

        Raises:
            ValueError: A class that does not exist, or the same one twice.
        """
        wanted = np.asarray(classes, dtype=np.int64)
        if len(np.unique(wanted)) != len(wanted) or (
            len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.num_classes
        ):
            raise ValueError(
                f"classes: expected distinct labels in [0, {self.num_classes}), got {wanted}"
            )
        new_label = np.full(self.num_classes, -1, dtype=np.int64)
        new_label[wanted] = np.arange(len(wanted))
        rows = np.flatnonzero(new_label[self.labels] >= 0)
        names = [self.class_names[label] for label in wanted]
        return self._part(rows, new_label[self.labels[rows]], names)

    def relabelled(self: _Self, labels: NDArray[np.int64], class_names: Sequence[str]) -> _Self:
        """The same rows under other labels.

        Args:
            labels: Shape ``(N,)``, int64.
            class_names: Name of each label.

        Raises:
            ValueError: As the data set itself.
        """
        return self._part(np.arange(len(self)), labels, class_names)

    def _part_ids(self, rows: NDArray[np.int64]) -> list[str]:
        return [self.ids[row] for row in rows]

    def _part_groups(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        return None if self.groups is None else self.groups[rows]

    def _check(self, num_rows: int, what: str) -> None:
        """Refuse labels, ids or groups that do not fit the rows."""
        if self.labels.dtype != np.int64:
            raise TypeError(f"labels: expected dtype int64, got {self.labels.dtype}")
        if self.labels.shape != (num_rows,):
            raise ValueError(f"labels: expected shape [{num_rows}], got {list(self.labels.shape)}")
        if len(self.ids) != num_rows:
            raise ValueError(f"ids: expected {num_rows}, one per {what}, got {len(self.ids)}")
        if len(set(self.ids)) != len(self.ids):
            twice = Counter(self.ids).most_common(1)[0][0]
            raise ValueError(f"ids: expected distinct ids, got {twice!r} twice")
        if self.groups is not None and self.groups.shape != (num_rows,):
            raise ValueError(f"groups: expected shape [{num_rows}], got {list(self.groups.shape)}")
        if num_rows and not 0 <= self.labels.min() <= self.labels.max() < self.num_classes:
            raise ValueError(
                f"labels: expected values in [0, {self.num_classes}) (one per class name), got "
                f"{self.labels.min()} to {self.labels.max()}"
            )
