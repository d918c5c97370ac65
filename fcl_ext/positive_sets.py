# SPDX-License-Identifier: Apache-2.0
"""The rows of a feature bank that count as positives of a label."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fcl_ext._explain import need_tensors
from fcl_ext._loss_checks import can_look

# Sets are an array with a place for every label, used or not: 128 MiB of it any bank may have.
_FREE_LABELS = 2**24
_LABELS_PER_ROW = 16


def num_labels_of(name: str, labels: Tensor) -> int:
    """The largest label + 1, of labels whose sets fit in memory.

    Args:
        name: Of the labels, for the message.
        labels: Shape ``(R,)``, int64; negative for none.

    Raises:
        ValueError: A label from ``max(2^24, 16 R)`` on.

    Example:
        >>> num_labels_of("labels", torch.tensor([3, -1, 0]))
        4
    """
    if not len(labels):
        return 0
    largest = int(labels.max())
    if torch.compiler.is_compiling():  # not known while a compiler traces
        return largest + 1
    limit = max(_FREE_LABELS, _LABELS_PER_ROW * len(labels))
    if largest >= limit:
        raise ValueError(
            f"{name}: expected numbers below {limit} for {len(labels)} rows, as memory grows with "
            f"the largest, got {largest}; number the classes, as by "
            "numpy.unique(labels, return_inverse=True)"
        )
    return max(largest + 1, 0)


class PositiveSets(NamedTuple):
    """For each label the rows of a feature bank that count as its positives, as CSR.

    Attributes:
        crow_indices: Shape ``(L + 1,)``, int64.
        col_indices: Rows of the bank, shape ``(E,)``, int64.
        log_weights: Shape ``(E,)`` with weights summing to 1 per label, or None for a plain mean.
    """

    crow_indices: Tensor
    col_indices: Tensor
    log_weights: Tensor | None = None

    def are_plain(self) -> bool:
        """Whether each label has its rows once, in order, without weights, as of `from_labels`.

        False also for sets that are not on the CPU: it would wait for the device.

        Example:
            >>> import torch
            >>> from fcl_ext import PositiveSets
            >>> PositiveSets.from_labels(torch.tensor([1, 0, 1])).are_plain()
            True
            >>> PositiveSets(torch.tensor([0, 2]), torch.tensor([1, 1])).are_plain()
            False
        """
        crow, col, log_weights = self
        fits = all(one.device.type == "cpu" and one.dtype == torch.int64 for one in (crow, col))
        if log_weights is not None or not fits:
            return False
        falls = col[1:] <= col[:-1]
        # From one label to the next they may.
        falls[crow[(crow > 0) & (crow < len(col))] - 1] = False
        return not bool(falls.any())

    @classmethod
    def from_labels(cls, feature_labels: Tensor, num_labels: int | None = None) -> PositiveSets:
        """The rows of one's own class.

        Args:
            feature_labels: Shape ``(R,)``, int64 >= 0.
            num_labels: L; default the largest label + 1. Memory grows with it, so that labels that
                are large ids are refused: number the classes, as
                ``numpy.unique(labels, return_inverse=True)`` does.

        Raises:
            TypeError: Labels that are no tensor.
            ValueError: Another shape or dtype, a negative label (CPU tensors), or, where
                ``num_labels`` is not given, one from ``max(2^24, 16 R)`` on.
        """
        need_tensors("PositiveSets.from_labels", feature_labels=feature_labels)
        if feature_labels.dim() != 1 or feature_labels.dtype != torch.int64:
            raise ValueError(
                "feature_labels: expected shape [R] and dtype int64, got "
                f"{list(feature_labels.shape)} and {feature_labels.dtype}"
            )
        if num_labels is None:
            num_labels = num_labels_of("feature_labels", feature_labels)
        sorted_labels, order = torch.sort(feature_labels, stable=True)
        if can_look(feature_labels) and len(sorted_labels) and sorted_labels[0] < 0:
            row = int(order[0])
            raise ValueError(
                f"feature_labels: expected labels >= 0, got {int(sorted_labels[0])} in row {row}"
            )
        bounds = torch.arange(num_labels + 1, device=feature_labels.device)
        return cls(torch.searchsorted(sorted_labels, bounds), order)
