# SPDX-License-Identifier: Apache-2.0
"""Labels, ids and groups of both sides, and the gallery rows they rule out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints: TypeAlias = NDArray[np.int64]
#: One value per row: a tensor, an array or a sequence, of integers or of strings.
PerRow: TypeAlias = Tensor | NDArray[np.generic] | Sequence[int] | Sequence[str]
_Sides: TypeAlias = tuple[PerRow | None, PerRow | None]


@dataclass(frozen=True)
class Keys:
    """Integers that say which rows belong together: labels, ids or groups of both sides.

    Attributes:
        query: Shape ``(Q,)``, int64.
        gallery: Shape ``(G,)``, int64.
    """

    query: Ints
    gallery: Ints

    def equal(self, queries: Ints, rows: slice) -> Tensor:
        """Which gallery rows share each query's key, bool ``(n, rows)``."""
        return torch.from_numpy(self.query[queries][:, None] == self.gallery[rows])


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
    exclude_self: bool, ids: _Sides, groups: _Sides, sizes: tuple[int, int], *, same: bool
) -> tuple[Keys, ...]:
    """Keys whose equality makes a gallery row invisible to a query.

    Args:
        exclude_self: Whether ids exclude.
        ids: Of query and gallery; row numbers if both are None and ``same``.
        groups: Of query and gallery, or neither.
        sizes: Rows of query and gallery.
        same: Whether query and gallery are one object.

    Raises:
        TypeError: As `join_keys`.
        ValueError: As `join_keys`; one side without the other; no ids to exclude by.
    """
    excluded = []
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
    return tuple(excluded)
