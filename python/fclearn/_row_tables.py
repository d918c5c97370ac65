# SPDX-License-Identifier: Apache-2.0
"""What loss terms have by row of the training set: looked up, and checked before a training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fclearn._loss_terms import LossTerm


def check_rows(rows: Tensor, embeddings: Tensor) -> None:
    """Refuse another number of rows than of embeddings, which torch might broadcast.

    Args:
        rows: Numbers of the images of a batch, shape ``(B,)``, int64.
        embeddings: Theirs, shape ``(B, D)``.

    Raises:
        ValueError: Another number.
    """
    if rows.shape != embeddings.shape[:1]:
        raise ValueError(
            f"rows: expected shape [{len(embeddings)}], one per embedding, got {list(rows.shape)}"
        )


def at_rows(table: Tensor, rows: Tensor, embeddings: Tensor) -> Tensor:
    """What a table of all training images has for those of a batch.

    Args:
        table: Shape ``(N, …)``.
        rows: As `check_rows`, also the following.
        embeddings: Those of the batch.

    Raises:
        ValueError: As `check_rows`.

    Example:
        >>> import torch
        >>> at_rows(torch.eye(3), torch.tensor([2]), torch.zeros(1, 5))
        tensor([[0., 0., 1.]])
    """
    check_rows(rows, embeddings)
    return table[rows]


def wrong_table(module: nn.Module, num_rows: int) -> tuple[str, int] | None:
    """Name and length of a table by row that is not of so many rows; None: there is none."""
    for part in module.modules():
        for name in getattr(part, "by_row", ()):
            table = getattr(part, name)
            if table is not None and len(table) != num_rows:
                return f"{name} of {type(part).__name__}", len(table)
    return None


def check_terms(terms: Sequence[LossTerm], labels: Tensor) -> None:
    """Refuse terms that were made for other training images.

    Args:
        terms: Of a training.
        labels: Those of its images, shape ``(N,)``, int64.

    Raises:
        ValueError: Another number of images, or other labels; the message names the term.
    """
    for number, term in enumerate(terms):
        path = f"losses[{number}]"
        wrong = wrong_table(term.module, len(labels))
        if wrong is not None:
            raise ValueError(
                f"{path}: expected one row per image of the dataset ({len(labels)}) in the "
                f"{wrong[0]}, got {wrong[1]}"
            )
        if term.labels is None:
            continue
        if len(term.labels) != len(labels):
            raise ValueError(
                f"{path}: expected a term for the {len(labels)} images of the dataset, "
                f"got one for {len(term.labels)} labels"
            )
        other = (term.labels.cpu() != labels).nonzero()
        if len(other):
            row = int(other[0])
            raise ValueError(
                f"{path}: expected the labels of the dataset, got {int(term.labels[row])} for row "
                f"{row}, which has {int(labels[row])} ({len(other)} such): Assets and dataset must "
                "have the same images in the same order"
            )
