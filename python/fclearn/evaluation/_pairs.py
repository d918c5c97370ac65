# SPDX-License-Identifier: Apache-2.0
"""Queries and their positives, pair by pair, in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation.keys import Exclusion
from fclearn.evaluation.metrics import Floats
from fclearn.evaluation.relevance import Relevance
from fclearn.evaluation.types import Ints

# Pairs of a query and a positive held at once, some 40 bytes each.
_MAX_PAIRS = 2**22


@dataclass(frozen=True)
class Pairs:
    """Queries and their positives, query by query; ``query`` counts from 0 within the chunk.

    Attributes:
        query: Shape ``(P,)``, ascending.
        row: Gallery row, shape ``(P,)``.
        grade: Shape ``(P,)``; None: all 1.
        score: Shape ``(P,)``; empty until somebody fills it.
        counts: Pairs of each query, shape ``(n,)``.
    """

    query: Ints
    row: Ints
    grade: Floats | None
    score: NDArray[np.float32]
    counts: Ints

    def of_queries(self, start: int, stop: int) -> slice:
        """Pairs of some consecutive queries."""
        return slice(int(self.counts[:start].sum()), int(self.counts[:stop].sum()))

    def without(self, excluded: tuple[Exclusion, ...], chunk: Ints) -> Pairs:
        """Only the pairs whose row exists for the query."""
        if not excluded:
            return self
        keep = np.ones(len(self.query), dtype=bool)
        for exclusion in excluded:
            keep &= ~exclusion.hides(chunk[self.query], self.row)
        query = self.query[keep]
        return replace(
            self,
            query=query,
            row=self.row[keep],
            grade=None if self.grade is None else self.grade[keep],
            score=self.score[keep] if len(self.score) else self.score,
            counts=np.bincount(query, minlength=len(self.counts)),
        )


def list_pairs(relevance: Relevance, chunk: Ints) -> Pairs:
    """All positives of some queries, rows ascending for each."""
    counts = relevance.counts[chunk]
    row = np.empty(int(counts.sum()), dtype=np.int64)
    grade = np.ones(len(row)) if relevance.graded else None
    at = 0
    for part in relevance.groups(chunk):
        positives, grades = relevance.positives(int(chunk[part.start]))
        end = at + (part.stop - part.start) * len(positives)
        row[at:end] = np.tile(positives, part.stop - part.start)
        if grade is not None and grades is not None:
            grade[at:end] = np.tile(grades, part.stop - part.start)
        at = end
    query = np.repeat(np.arange(len(chunk)), counts)
    return Pairs(query, row, grade, np.empty(0, np.float32), counts)


def totals(relevance: Relevance, chunk: Ints, pairs: Pairs) -> tuple[Ints, Floats | None]:
    """Positives of each query, found or not, and their grades, best first.

    Args:
        relevance: What is right.
        chunk: The queries.
        pairs: What is left of `list_pairs` of them.
    """
    if not relevance.graded or pairs.grade is None:
        return pairs.counts, None
    absent = [relevance.missing(int(query)) for query in chunk]
    num_absent = np.array([len(grades) for grades in absent], dtype=np.int64)
    query = np.concatenate([pairs.query, np.repeat(np.arange(len(chunk)), num_absent)])
    grades = np.concatenate([pairs.grade, *absent])
    return pairs.counts + num_absent, grades[np.lexsort((-grades, query))]


def split(queries: Ints, counts: Ints) -> Iterator[Ints]:
    """Cut queries so that no part has more than `_MAX_PAIRS` pairs, unless one query alone has."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(queries):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _MAX_PAIRS, side="right")))
        yield queries[start:stop]
        start = stop


def have_positives(relevance: Relevance, excluded: tuple[Exclusion, ...]) -> NDArray[np.bool_]:
    """Whether each query has a positive that is not hidden from it, shape ``(Q,)``."""
    found = relevance.counts > sum(exclusion.most_hidden() for exclusion in excluded)
    # The others may have lost all of theirs.
    doubtful = np.flatnonzero(~found & (relevance.counts > 0))
    for chunk in split(doubtful, relevance.counts[doubtful]):
        found[chunk] = list_pairs(relevance, chunk).without(excluded, chunk).counts > 0
    return found
