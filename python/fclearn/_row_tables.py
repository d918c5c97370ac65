# SPDX-License-Identifier: Apache-2.0
"""What loss terms have by row of the training set: looked up, and checked before a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fclearn._loss_terms import LossTerm


def check_rows(rows: Tensor, embeddings: Tensor) -> None:
    """Refuse no rows, or another number than of embeddings, which torch might broadcast.

    Args:
        rows: Numbers of the images of a batch, shape ``(B,)``, int64.
        embeddings: Theirs, shape ``(B, D)``.

    Raises:
        ValueError: None, or another number.
    """
    if rows is None:
        raise ValueError("rows: expected the number of each image in the training set, got None")
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
        TypeError: Rows that are no tensor.
        ValueError: As `check_rows`; on the CPU also numbers out of range. Negative ones do not
            count from the end.

    Example:
        >>> import torch
        >>> at_rows(torch.eye(3), torch.tensor([2]), torch.zeros(1, 5))
        tensor([[0., 0., 1.]])
    """
    check_rows(rows, embeddings)
    try:
        # Not table[rows], which takes negative rows from the end.
        return table.index_select(0, rows.to(table.device))
    except (AttributeError, IndexError, RuntimeError):
        _explain(rows, len(table))
        raise


def _explain(rows: Tensor, num_rows: int) -> None:
    """Why a look-up failed: sought once it has, as looking at every step would cost each."""
    if not isinstance(rows, Tensor):
        raise TypeError(f"rows: expected a tensor, got {type(rows).__name__}") from None
    if rows.dtype not in {torch.int32, torch.int64}:
        raise ValueError(f"rows: expected integers, got {rows.dtype}") from None
    if rows.device.type == "cpu":
        bad = rows[(rows < 0) | (rows >= num_rows)]
        if len(bad):
            raise ValueError(
                f"rows: expected numbers of training rows in [0, {num_rows}), got {int(bad[0])}"
            ) from None


def check_terms(
    terms: Sequence[LossTerm], labels: Tensor, *, argument: str = "losses", given: str = "dataset"
) -> None:
    """Refuse terms that were made for other training rows.

    Args:
        terms: Of a training.
        labels: Class of every training row, shape ``(N,)``, int64.
        argument: What the caller calls the terms, for messages.
        given: What the caller has the labels from.

    Raises:
        ValueError: Another number of rows, other labels, or a ``by_row`` that does not name tensors
            or arrays of its module; the message names the term.
    """
    for number, term in enumerate(terms):
        path = f"{argument}[{number}]"
        for name, length in _tables(term.module, path):
            if length != len(labels):
                raise ValueError(
                    f"{path}: expected {len(labels)} rows, as in {given}, in the {name}, "
                    f"got {length}"
                )
        if term.labels is None:
            continue
        if len(term.labels) != len(labels):
            raise ValueError(
                f"{path}: expected a term for {len(labels)} rows, as in {given}, "
                f"got one for {len(term.labels)}"
            )
        before, now = term.labels.cpu(), labels.cpu()
        other = (before != now).nonzero()
        if len(other):
            row = int(other[0])
            raise ValueError(
                f"{path}: expected the classes in {given}, got {int(before[row])} for row "
                f"{row}, which has {int(now[row])} ({len(other)} such): Assets and {given} must "
                "have the same rows in the same order"
            )


def _tables(module: nn.Module, path: str) -> Iterator[tuple[str, int]]:
    """Name and number of rows of what the module, or a part of it, looks up by row."""
    for part in module.modules():
        kind, names = type(part).__name__, getattr(part, "by_row", ())
        # A text is a sequence, too: of its letters.
        if not isinstance(names, tuple | list):
            raise ValueError(
                f"{path}: expected by_row of {kind} to be a tuple of names of its tensors, "
                f"got {names!r}"
            )
        for name in names:
            expected = f"{path}: expected by_row of {kind} to name tensors or arrays of its own"
            if not isinstance(name, str) or not hasattr(part, name):
                raise ValueError(f"{expected}, got {name!r}")
            table = getattr(part, name)
            if table is None:
                continue
            shape = getattr(table, "shape", None)  # also of memory-mapped arrays
            if not isinstance(shape, tuple) or not shape:
                of = f" of shape {list(shape)}" if isinstance(shape, tuple) else ""
                raise ValueError(
                    f"{expected}, with a row per image, got {name!r}, a {type(table).__name__}{of}"
                )
            yield f"{name} of {kind}", shape[0]
