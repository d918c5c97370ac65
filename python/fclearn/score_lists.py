# SPDX-License-Identifier: Apache-2.0
"""What a search service that gives no vectors says of images: ranked lists with scores."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fclearn.features.ids import row_of_id
from fclearn.graph import KnnGraph
from fclearn.wording import some

_COLUMNS = "query-id Q0 document-id rank score tag"
# Ranks above are not those of lists; int64 holds what is below.
_MOST = 2**62


def read_score_lists(path: str | os.PathLike[str], ids: Sequence[object]) -> KnnGraph:
    r"""Read a TREC run file in which training images were searched for among each other.

    An image's own id in its list is left out, and so are lists and members that are no training
    images: a service may hold more than these. As in trec_eval, ranks are ignored, except where
    the scores of every list are equal: then the service has only ranks, and 1/rank stands for the
    score (``metadata["scores"]`` is ``"1/rank"``).

    Args:
        path: Text in UTF-8, ``query-id Q0 document-id rank score tag`` a line, parted by blanks;
            the higher a score, the more alike. In any order.
        ids: Of the N training images, distinct, without blanks; compared as text.

    Returns:
        A graph of N nodes: row i lists the images found for image i, best first, with float64
        scores in the service's own unit.

    Raises:
        ValueError: A line of other columns, a rank or a score that is no number or not finite, an
            image twice in a list (the line is named); no id in common; images without a list of
            others (they are named and counted); ids that repeat or hold blanks.
        OSError: The file cannot be read.

    Example:
        >>> from pathlib import Path
        >>> lines = ["a Q0 c 1 0.9 old", "a Q0 b 2 0.5 old", "b Q0 c 1 7 old", "c Q0 a 1 0.9 old"]
        >>> _ = Path("run.txt").write_text("\n".join(lines))
        >>> graph = read_score_lists("run.txt", ["a", "b", "c"])
        >>> graph.crow_indices.tolist(), graph.col_indices.tolist(), graph.values.tolist()
        ([0, 2, 3, 4], [2, 1, 2, 0], [0.9, 0.5, 7.0, 0.9])
    """
    rows = row_of_id(ids, "ids")
    for name in rows:
        if name.split() != [name]:
            raise ValueError(f"ids: expected ids without blanks, as run files have, got {name!r}")
    entries = _read(path, rows)
    order = np.lexsort((entries.ranks, -entries.scores, entries.rows))
    counts = np.bincount(entries.rows, minlength=len(rows))
    lacking = [name for name, row in rows.items() if counts[row] == 0]
    if lacking:
        raise ValueError(
            f"{path}: no list of other images for {len(lacking)} of the {len(rows)} images: "
            + some(lacking)
        )
    crow = np.concatenate([[0], np.cumsum(counts)])
    scores, metadata = entries.scores[order], {}
    if bool((np.repeat(scores[crow[:-1]], counts) == scores).all()):
        # Lists of equal scores are ordered by rank now.
        scores = 1.0 / (1 + np.arange(len(order)) - np.repeat(crow[:-1], counts))
        metadata = {"scores": "1/rank"}
    members = torch.from_numpy(entries.members[order])
    graph = KnnGraph.from_csr(torch.from_numpy(crow), members, torch.from_numpy(scores))
    return replace(graph, metadata=metadata)


class _Entries(NamedTuple):
    """Those between two training images, in the order of the file, each array ``(E,)``."""

    rows: NDArray[np.int64]
    members: NDArray[np.int64]
    ranks: NDArray[np.int64]
    scores: NDArray[np.float64]


def _read(path: str | os.PathLike[str], rows: dict[str, int]) -> _Entries:
    # Eight bytes a number: such files have a hundred lines an image.
    whole, scores = array("q"), array("d")
    queries_known = documents_known = False
    first = None
    for number, (query, document, rank, score) in _lines(path):
        first = first or (query, document)
        row, member = rows.get(query), rows.get(document)
        queries_known |= row is not None
        documents_known |= member is not None
        if row is not None and member is not None and row != member:
            whole.extend((row, member, rank, number))
            scores.append(score)
    if first is None:
        raise ValueError(f"{path}: expected lines of '{_COLUMNS}', found none")
    for name, known, example in (
        ("query", queries_known, first[0]),
        ("document", documents_known, first[1]),
    ):
        if not known:
            raise ValueError(
                f"{path}: expected {name} ids of the {len(rows)} images, as "
                f"{next(iter(rows), 'none')!r}, got {example!r} and others: none is an image's"
            )
    columns = np.array(whole, np.int64).reshape(-1, 4)
    entries = _Entries(columns[:, 0], columns[:, 1], columns[:, 2], np.array(scores, np.float64))
    _refuse_repeated(path, entries, columns[:, 3], rows)
    return entries


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, tuple[str, str, int, float]]]:
    """Line number, and query, document, rank and score of each line that is not blank."""
    try:
        with open(path, encoding="utf-8-sig") as file:  # noqa: PTH123
            for number, line in enumerate(file, 1):
                fields = line.split()
                if fields:
                    yield number, _parsed(fields, f"{path}, line {number}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text file in UTF-8: {error}") from error


def _parsed(fields: list[str], where: str) -> tuple[str, str, int, float]:
    if len(fields) != len(_COLUMNS.split()):
        raise ValueError(f"{where}: expected '{_COLUMNS}', got {len(fields)} columns")
    query, _, document, rank, score, _ = fields
    try:
        place, value = int(rank), float(score)
    except ValueError:
        raise ValueError(
            f"{where}: expected an integer rank and a number as score, got {rank!r} and {score!r}"
        ) from None
    if not 0 <= place < _MOST:
        raise ValueError(f"{where}: expected a rank from 0 or 1 on, got {rank!r}")
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite score, got {score!r}")
    return query, document, place, value


def _refuse_repeated(
    path: str | os.PathLike[str],
    entries: _Entries,
    numbers: NDArray[np.int64],
    rows: dict[str, int],
) -> None:
    keys = entries.rows * len(rows) + entries.members
    _, first = np.unique(keys, return_index=True)
    if len(first) == len(keys):
        return
    again = int(np.setdiff1d(np.arange(len(keys)), first)[0])
    names = list(rows)
    query, document = names[entries.rows[again]], names[entries.members[again]]
    raise ValueError(
        f"{path}, line {numbers[again]}: {document!r} is listed twice for query {query!r}"
    )
