# SPDX-License-Identifier: Apache-2.0
"""Labels, ids, groups and junk lists, and the gallery rows they rule out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.evaluation.types import Ints, PerRow

_Sides: TypeAlias = tuple[PerRow | None, PerRow | None]


class Exclusion(Protocol):
    """Gallery rows that do not exist for a query."""

    def hidden(self, queries: Ints, rows: slice) -> Tensor:
        """Which rows of a block are hidden from each query, bool ``(n, rows)``."""
        ...

    def hides(self, queries: Ints, rows: Ints) -> NDArray[np.bool_]:
        """Whether each row is hidden from the query beside it; shapes broadcast."""
        ...

    def most_hidden(self) -> int:
        """Most rows hidden from one query."""
        ...


@dataclass(frozen=True)
class Keys:
    """Integers that say which rows belong together: labels, ids or groups of both sides.

    Attributes:
        query: Shape ``(Q,)``, int64.
        gallery: Shape ``(G,)``, int64.
    """

    query: Ints
    gallery: Ints

    def hidden(self, queries: Ints, rows: slice) -> Tensor:
        """Rows that share the query's key."""
        return torch.from_numpy(self.query[queries][:, None] == self.gallery[rows])

    def hides(self, queries: Ints, rows: Ints) -> NDArray[np.bool_]:
        """Whether each row shares the key of the query beside it."""
        return np.asarray(self.query[queries] == self.gallery[rows])

    def most_hidden(self) -> int:
        """Size of the largest set of gallery rows that share a query's key."""
        ordered = np.sort(self.gallery)
        sizes = np.searchsorted(ordered, self.query, "right") - np.searchsorted(ordered, self.query)
        return int(sizes.max())


@dataclass(frozen=True)
class Junk:
    """Rows that are neither right nor wrong for a query, and leave its ranking.

    Attributes:
        query: Query of each pair, shape ``(J,)``, int64, ascending.
        row: Its junk row, ascending within a query, shape ``(J,)``.
        num_gallery: Rows of the gallery.
    """

    query: Ints
    row: Ints
    num_gallery: int

    def hidden(self, queries: Ints, rows: slice) -> Tensor:
        """Junk rows of a block."""
        mask = torch.zeros(len(queries), rows.stop - rows.start, dtype=torch.bool)
        for at, query in enumerate(queries):
            begin, end = np.searchsorted(self.query, [query, query + 1])
            junk = self.row[begin:end]
            junk = junk[(junk >= rows.start) & (junk < rows.stop)]
            mask[at, torch.from_numpy(junk - rows.start)] = True
        return mask

    def hides(self, queries: Ints, rows: Ints) -> NDArray[np.bool_]:
        """Whether each row is junk for the query beside it."""
        return np.isin(
            queries * self.num_gallery + rows, self.query * self.num_gallery + self.row
        ) & (rows >= 0)

    def most_hidden(self) -> int:
        """Length of the longest list."""
        return int(np.bincount(self.query).max()) if len(self.query) else 0


def junk_lists(junk: Sequence[Sequence[int]], sizes: tuple[int, int], name: str = "junk") -> Junk:
    """Gallery rows listed for each query as pairs.

    Args:
        junk: Gallery rows for each query.
        sizes: Rows of query and gallery.
        name: Argument to name in messages.

    Raises:
        TypeError: Rows that are not integers.
        ValueError: Not one list per query, or rows that do not exist.
    """
    if len(junk) != sizes[0]:
        raise ValueError(
            f"{name}: expected a list of gallery rows for each of the {sizes[0]} queries, got "
            f"{len(junk)} lists"
        )
    lists = [np.unique(np.asarray(rows)) for rows in junk]
    for query, rows in enumerate(lists):
        if len(rows) and rows.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected row numbers, got {rows.dtype} for query {query}")
        if len(rows) and not 0 <= rows[0] <= rows[-1] < sizes[1]:
            raise ValueError(
                f"{name}: expected rows in [0, {sizes[1]}), got {rows[0]} to {rows[-1]} for query "
                f"{query}"
            )
    counts = [len(rows) for rows in lists]
    every = np.concatenate([np.empty(0, np.int64), *(rows.astype(np.int64) for rows in lists)])
    return Junk(np.repeat(np.arange(sizes[0]), counts), every, sizes[1])


def join_keys(what: str, query: PerRow, gallery: PerRow, sizes: tuple[int, int]) -> Keys:
    """Labels, ids or groups of both sides as integers that are equal where the values are.

    Raises:
        TypeError: Neither integers nor strings, or integers on one side and strings on the other.
        ValueError: Not one value per row.
    """
    sides = []
    for name, values, size in zip(("query", "gallery"), (query, gallery), sizes, strict=True):
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if array.dtype == object and all(isinstance(value, str) for value in array.flat):
            array = array.astype(np.str_)
        if array.shape != (size,):
            raise ValueError(
                f"{name}_{what}: expected one value for each of the {size} rows of {name}, got "
                f"shape {list(array.shape)}"
            )
        if array.dtype.kind not in "iuU":
            raise TypeError(f"{name}_{what}: expected integers or strings, got {array.dtype}")
        sides.append(array)
    if (sides[0].dtype.kind == "U") != (sides[1].dtype.kind == "U"):
        raise TypeError(
            f"query_{what} and gallery_{what}: expected the same kind, got {sides[0].dtype} and "
            f"{sides[1].dtype}"
        )
    if sides[0].dtype.kind == "U":
        numbered: Ints = np.unique(np.concatenate(sides), return_inverse=True)[1]
        return Keys(numbered[: sizes[0]], numbered[sizes[0] :])
    return Keys(sides[0].astype(np.int64), sides[1].astype(np.int64))


def exclusions(
    exclude_self: bool,
    ids: _Sides,
    groups: _Sides,
    sizes: tuple[int, int],
    *,
    same: bool,
    junk: Sequence[Sequence[int]] | None = None,
) -> tuple[Exclusion, ...]:
    """What makes gallery rows invisible to a query.

    Args:
        exclude_self: Whether ids exclude.
        ids: Of query and gallery; row numbers if both are None and ``same``.
        groups: Of query and gallery, or neither.
        sizes: Rows of query and gallery.
        same: Whether query and gallery are one object.
        junk: Gallery rows to leave out for each query.

    Raises:
        TypeError: As `join_keys` and `junk_lists`.
        ValueError: As those; one side without the other; no ids to exclude by.
    """
    excluded: list[Exclusion] = []
    if exclude_self:
        if ids[0] is None and ids[1] is None and same:
            ids = (np.arange(sizes[0]), np.arange(sizes[1]))
        if ids[0] is None or ids[1] is None:
            raise ValueError(
                "exclude_self: expected query_ids and gallery_ids, to know which rows are the same "
                "(only when query is gallery do row numbers serve as ids)"
            )
        excluded.append(join_keys("ids", ids[0], ids[1], sizes))
    if groups[0] is not None and groups[1] is not None:
        excluded.append(join_keys("groups", groups[0], groups[1], sizes))
    elif groups[0] is not None or groups[1] is not None:
        raise ValueError("query_groups and gallery_groups: expected both or neither")
    if junk is not None:
        excluded.append(junk_lists(junk, sizes))
    return tuple(excluded)
