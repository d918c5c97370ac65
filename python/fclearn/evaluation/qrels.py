# SPDX-License-Identifier: Apache-2.0
"""Relevance judgements of TREC: which documents are right for a query, and how right."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fclearn.evaluation.relevance import Judged
from fclearn.features.ids import row_of_id


@dataclass(frozen=True)
class Qrels:
    r"""Judgements by query id and document id.

    Attributes:
        grades: ``grades[query_id][document_id]``; above zero is relevant, zero and below is not
            (as trec_eval has it: negative grades mark spam).

    Example:
        >>> _ = Path("qrels.txt").write_text("q1 0 a 2\nq1 0 b 0\nq2 0 a 1\n")
        >>> Qrels.read("qrels.txt").grades
        {'q1': {'a': 2, 'b': 0}, 'q2': {'a': 1}}
    """

    grades: Mapping[str, Mapping[str, int]]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Qrels:
        """Read a TREC qrels file: ``query-id iteration document-id grade`` a line.

        Args:
            path: UTF-8, with or without a byte order mark; columns parted by blanks, and the
                iteration is ignored.

        Raises:
            ValueError: Not such a file (the line is named), or a pair judged twice.
            OSError: It cannot be read.
        """
        grades: dict[str, dict[str, int]] = {}
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected a text file in UTF-8: {error}") from error
        for number, line in enumerate(text.splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            where = f"{path}, line {number}"
            if len(fields) != 4:
                raise ValueError(
                    f"{where}: expected 'query-id iteration document-id grade', got {len(fields)} "
                    "columns"
                )
            try:
                grade = int(fields[3])
            except ValueError:
                raise ValueError(f"{where}: expected an integer grade, got {fields[3]!r}") from None
            judged = grades.setdefault(fields[0], {})
            if fields[2] in judged:
                raise ValueError(f"{where}: {fields[2]!r} is judged twice for query {fields[0]!r}")
            judged[fields[2]] = grade
        if not grades:
            raise ValueError(f"{path}: expected judgements, found none")
        return cls(grades)

    def relevance(self, query_ids: Sequence[object], gallery_ids: Sequence[object]) -> Judged:
        """Positives as gallery rows.

        Args:
            query_ids: Shape ``(Q,)``, distinct; compared as text.
            gallery_ids: Shape ``(G,)``, distinct.

        Raises:
            ValueError: Ids that repeat; no query or no document in common with the judgements.
        """
        queries = row_of_id(query_ids, "query_ids")
        rows = row_of_id(gallery_ids, "gallery_ids")
        if not any(query in queries for query in self.grades):
            raise ValueError(
                f"query_ids: expected ids of the qrels, as {next(iter(self.grades))!r}, got "
                f"{next(iter(queries), 'none')!r} and others: none of {len(self.grades)} is here"
            )
        lists: list[list[tuple[int, int]]] = []
        for query in queries:
            judged = self.grades.get(query, {})
            lists.append(
                sorted((rows.get(name, -1), grade) for name, grade in judged.items() if grade > 0)
            )
        pairs = np.array([pair for each in lists for pair in each], np.int64).reshape(-1, 2)
        if len(pairs) and (pairs[:, 0] < 0).all():
            raise ValueError(
                f"gallery_ids: expected ids of the qrels, got {next(iter(rows), 'none')!r} and "
                f"others: none of {len(pairs)} relevant documents is here"
            )
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in lists])])
        return Judged(offsets, pairs[:, 0], pairs[:, 1].astype(np.float64))
