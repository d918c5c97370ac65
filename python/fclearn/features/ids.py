# SPDX-License-Identifier: Apache-2.0
"""Ids and the rows they stand in."""

from __future__ import annotations

from collections.abc import Sequence


def row_of_id(ids: Sequence[object], name: str) -> dict[str, int]:
    """The row of each id, as text, in the order of the rows.

    Args:
        ids: Shape ``(N,)``; compared as text.
        name: What to call them in messages.

    Raises:
        ValueError: An id that repeats; it and its rows are named.

    Example:
        >>> row_of_id(["b", 7], "query_ids")
        {'b': 0, '7': 1}
    """
    rows: dict[str, int] = {}
    for row, one in enumerate(ids):
        first = rows.setdefault(str(one), row)
        if first != row:
            raise ValueError(
                f"{name}: expected distinct ids, got {one!r} in rows {first} and {row}"
            )
    return rows
