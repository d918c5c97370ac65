# SPDX-License-Identifier: Apache-2.0
"""Which gallery rows are right for a query: by labels, by sets of labels, or row by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation.keys import Keys
from fclearn.evaluation.types import Ints

Floats = NDArray[np.float64]


class Relevance(ABC):
    """Positives of each query.

    Attributes:
        keys: Queries of equal key have the same positives, shape ``(Q,)``, int64.
        counts: Positives in the gallery, shape ``(Q,)``, int64, before any row is excluded.
        graded: Whether positives have grades other than 1.
    """

    keys: Ints
    counts: Ints
    graded: bool

    @property
    def totals(self) -> Ints:
        """Positives of each query, in the gallery or not, shape ``(Q,)``."""
        return self.counts

    @abstractmethod
    def positives(self, query: int) -> tuple[Ints, Floats | None]:
        """Gallery rows right for a query, ascending, and their grades (None: all 1)."""

    def grades(self, queries: Ints, rows: Ints) -> Floats:
        """Grades of some gallery rows for some queries, shape ``(n, k)``; 0 where not right.

        Args:
            queries: Shape ``(n,)``.
            rows: Shape ``(n, k)``; negative ones are nobody's.
        """
        table = np.zeros(rows.shape)
        for part in self.groups(queries):
            right, grades = self.positives(int(queries[part.start]))
            if len(right) == 0:
                continue
            at = np.minimum(np.searchsorted(right, rows[part]), len(right) - 1)
            table[part] = (right[at] == rows[part]) * (1.0 if grades is None else grades[at])
        return table

    def missing(self, _query: int) -> Floats:
        """Grades of positives that are not in the gallery, so that nothing can find them."""
        return np.empty(0)

    def groups(self, queries: Ints) -> Iterator[slice]:
        """Cut queries where their keys change: each part has the same positives."""
        borders = np.flatnonzero(np.diff(self.keys[queries])) + 1
        for first, last in zip([0, *borders], [*borders, len(queries)], strict=True):
            yield slice(int(first), int(last))


def _stable_order(labels: Ints) -> Ints:
    """Rows by label, and by number within a label, shape ``(G,)``.

    Numpy sorts integers of 16 bits by radix, several times faster than wider ones.
    """
    if len(labels):
        least, most = int(labels.min()), int(labels.max())
        if most - least < 2**16:
            labels = (labels - least).astype(np.uint16)
    return np.argsort(labels, kind="stable")


class SameLabel(Relevance):
    """A positive is a gallery row of the query's label.

    Args:
        labels: Of both sides.
    """

    graded = False

    def __init__(self, labels: Keys) -> None:
        """Sort the gallery by label."""
        self._labels = labels
        self._by_label = _stable_order(labels.gallery)
        ordered = labels.gallery[self._by_label]
        self._starts = np.searchsorted(ordered, labels.query, side="left")
        self.counts = np.searchsorted(ordered, labels.query, side="right") - self._starts
        self.keys = labels.query

    def positives(self, query: int) -> tuple[Ints, None]:
        """A stretch of the sorted gallery."""
        start = self._starts[query]
        return self._by_label[start : start + self.counts[query]], None

    def grades(self, queries: Ints, rows: Ints) -> Floats:
        """Compare labels, all at once."""
        same = self._labels.gallery[rows] == self._labels.query[queries][:, None]
        return np.asarray(same & (rows >= 0), dtype=np.float64)


class SharedLabels(Relevance):
    """A positive is a gallery row that shares a label with the query; its grade is how many.

    Args:
        query: Labels of each query, CSR: offsets ``(Q + 1,)`` and label numbers, ascending.
        gallery: The same of the gallery.
    """

    graded = True

    def __init__(self, query: tuple[Ints, Ints], gallery: tuple[Ints, Ints]) -> None:
        """List the gallery rows of each label, and number the sets of labels."""
        rows = np.repeat(np.arange(len(gallery[0]) - 1), np.diff(gallery[0]))
        by_label = np.argsort(gallery[1], kind="stable")
        self._rows, self._labels = rows[by_label], gallery[1][by_label]
        self._sets = [
            tuple(query[1][begin:end].tolist())
            for begin, end in zip(query[0][:-1], query[0][1:], strict=True)
        ]
        numbers: dict[tuple[int, ...], int] = {}
        self.keys = np.array(
            [numbers.setdefault(labels, len(numbers)) for labels in self._sets], dtype=np.int64
        )
        sizes = np.empty(len(numbers), dtype=np.int64)
        for query_row in np.unique(self.keys, return_index=True)[1]:
            sizes[self.keys[query_row]] = len(self.positives(int(query_row))[0])
        self.counts = sizes[self.keys]

    def positives(self, query: int) -> tuple[Ints, Floats]:
        """The union of the rows of the query's labels."""
        labels = np.array(self._sets[query], dtype=np.int64)
        starts = np.searchsorted(self._labels, labels, side="left")
        ends = np.searchsorted(self._labels, labels, side="right")
        parts = [self._rows[a:b] for a, b in zip(starts, ends, strict=True)]
        rows, shared = np.unique(
            np.concatenate([np.empty(0, np.int64), *parts]), return_counts=True
        )
        return rows, shared.astype(np.float64)


class Judged(Relevance):
    """Positives named row by row, with grades.

    Args:
        offsets: Positives of each query, CSR offsets ``(Q + 1,)``.
        rows: Gallery rows, ascending within each query; -1 first, for those not in the gallery.
        grades: Of the rows, above zero.
    """

    graded = True

    def __init__(self, offsets: Ints, rows: Ints, grades: Floats) -> None:
        """Keep the lists."""
        self._offsets, self._rows, self._grades = offsets, rows, grades
        self.keys = np.arange(len(offsets) - 1)
        query = np.repeat(self.keys, np.diff(offsets))
        self._absent = np.bincount(query[rows < 0], minlength=len(self.keys))
        self.counts = np.diff(offsets) - self._absent

    @property
    def totals(self) -> Ints:
        """Length of each query's list."""
        return np.diff(self._offsets)

    @property
    def num_missing(self) -> int:
        """Positives that are not in the gallery, over all queries."""
        return int(self._absent.sum())

    def positives(self, query: int) -> tuple[Ints, Floats]:
        """A stretch of the lists."""
        part = slice(self._offsets[query] + self._absent[query], self._offsets[query + 1])
        return self._rows[part], self._grades[part]

    def missing(self, query: int) -> Floats:
        """The rest of that stretch."""
        start = self._offsets[query]
        return self._grades[start : start + self._absent[query]]
