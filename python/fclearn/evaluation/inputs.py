# SPDX-License-Identifier: Apache-2.0
"""What callers say is right for a query, in any of its forms, as a `Relevance`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.evaluation.keys import join_keys, junk_lists
from fclearn.evaluation.qrels import Qrels
from fclearn.evaluation.relevance import Judged, Relevance, SameLabel, SharedLabels
from fclearn.evaluation.types import Ints, Labels, PerRow


def build_relevance(
    labels: tuple[Labels | None, Labels | None],
    qrels: Qrels | str | os.PathLike[str] | None,
    positives: Sequence[Sequence[int]] | None,
    ids: tuple[PerRow | None, PerRow | None],
    sizes: tuple[int, int],
    grades: Sequence[Sequence[float]] | None = None,
) -> Relevance:
    """The one form of relevance that was given.

    Args:
        labels: Of query and gallery.
        qrels: Judgements, or their file.
        positives: Right gallery rows of each query.
        ids: Of query and gallery, for the judgements.
        sizes: Rows of query and gallery.
        grades: Of the positives.

    Raises:
        TypeError: As `join_keys`.
        ValueError: None or several of the forms; as `join_keys` and `Qrels.relevance`; grades of
            something else than the positives.
    """
    has_labels = labels[0] is not None or labels[1] is not None
    if has_labels + (qrels is not None) + (positives is not None) != 1:
        raise ValueError(
            "query_labels and gallery_labels, qrels or positives: expected exactly one of the three"
        )
    if grades is not None and positives is None:
        raise ValueError("grades: expected positives, which they are of")
    if qrels is not None:
        if ids[0] is None or ids[1] is None:
            raise ValueError("qrels: expected query_ids and gallery_ids, which it speaks of")
        if not isinstance(qrels, Qrels):
            qrels = Qrels.read(Path(qrels))
        return qrels.relevance(_as_list(ids[0]), _as_list(ids[1]))
    if positives is not None:
        pairs = junk_lists(positives, sizes, "positives")
        counts = np.bincount(pairs.query, minlength=sizes[0])
        worth = np.ones(len(pairs.row)) if grades is None else _by_row(grades, positives, counts)
        return Judged(np.concatenate([[0], np.cumsum(counts)]), pairs.row, worth)
    if labels[0] is None or labels[1] is None:
        raise ValueError("query_labels and gallery_labels: expected both")
    several = [_is_several(labels[0]), _is_several(labels[1])]
    if several == [False, False]:
        return SameLabel(join_keys("labels", labels[0], labels[1], sizes))  # type: ignore[arg-type]
    if several != [True, True]:
        raise ValueError(
            "query_labels and gallery_labels: expected one label per row on both sides, or several "
            "on both"
        )
    return _shared(labels[0], labels[1], sizes)


def _by_row(
    grades: Sequence[Sequence[float]], positives: Sequence[Sequence[int]], counts: Ints
) -> NDArray[np.float64]:
    """Grades of all positives, query by query and in each by row.

    Args:
        grades: As given.
        positives: As given.
        counts: Different rows of each query.
    """
    if len(grades) != len(positives):
        raise ValueError(
            f"grades: expected a list for each of the {len(positives)} queries, got {len(grades)}"
        )
    lists = [np.empty(0)]
    for query, (one, rows) in enumerate(zip(grades, positives, strict=True)):
        values = np.asarray(one, dtype=np.float64)
        if len(rows) != counts[query]:
            raise ValueError(f"positives: expected each row once, got repeats for query {query}")
        if values.shape != (len(rows),):
            raise ValueError(
                f"grades: expected one for each of the {len(rows)} positives of query {query}, got "
                f"shape {list(values.shape)}"
            )
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"grades: expected numbers above 0, got {one} for query {query}")
        lists.append(values[np.argsort(np.asarray(rows))])
    return np.concatenate(lists)


def _is_several(labels: Labels) -> bool:
    if isinstance(labels, Tensor | np.ndarray):
        return labels.ndim == 2 and labels.dtype in (torch.bool, np.dtype(np.bool_))
    first = next(iter(labels), None)
    return isinstance(first, list | tuple | set | frozenset)


def _shared(query: Labels, gallery: Labels, sizes: tuple[int, int]) -> SharedLabels:
    sides = [
        _flatten(labels, f"{name}_labels", size)
        for name, labels, size in zip(("query", "gallery"), (query, gallery), sizes, strict=True)
    ]
    joined = join_keys("labels", sides[0][1], sides[1][1], (len(sides[0][1]), len(sides[1][1])))
    lists = []
    for (counts, _), labels in zip(sides, (joined.query, joined.gallery), strict=True):
        # Ascending and once each within a row, whatever order they came in.
        row = np.repeat(np.arange(len(counts)), counts)
        pairs = np.unique(np.stack([row, labels], axis=1), axis=0)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=len(counts)))])
        lists.append((offsets, pairs[:, 1]))
    return SharedLabels(lists[0], lists[1])


def _flatten(labels: Labels, name: str, size: int) -> tuple[Ints, NDArray[np.generic]]:
    """How many labels each row has, and all of them, row by row."""
    if len(labels) != size:
        raise ValueError(
            f"{name}: expected labels for each of the {size} rows of "
            f"{name.partition('_')[0]}, got {len(labels)}"
        )
    if isinstance(labels, Tensor | np.ndarray):
        table = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
        row, column = np.nonzero(table)
        return np.bincount(row, minlength=size), column
    counts = np.array([len(each) for each in labels], dtype=np.int64)  # type: ignore[arg-type]
    every = [label for each in labels for label in each]  # type: ignore[union-attr]
    return counts, np.array(every) if every else np.empty(0, np.int64)


def _as_list(ids: PerRow) -> list[object]:
    return ids.tolist() if isinstance(ids, Tensor | np.ndarray) else list(ids)
