# SPDX-License-Identifier: Apache-2.0
"""Ids, the rows they stand in, and files of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from fclearn._lines import read_lines


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


def digest_of_ids(ids: Sequence[str]) -> str:
    """SHA-256 of ids in their order, in hex: equal for equal lists.

    Example:
        >>> digest_of_ids(["a", "b"]) == digest_of_ids(["b", "a"])
        False
        >>> digest_of_ids(["a", "b"]) == digest_of_ids(["ab"])
        False
    """
    digest = hashlib.sha256()
    for one in ids:
        text = one.encode("utf-8", "surrogatepass")
        # With its length, as an id may hold any character that could part it from the next.
        digest.update(b"%d:" % len(text) + text)
    return digest.hexdigest()


def read_id_lines(path: str | os.PathLike[str]) -> list[str]:
    r"""Read the ids of a text file, one a line; blank lines are skipped.

    Args:
        path: UTF-8, with or without a byte order mark; lines end with LF, CR LF or CR and nothing
            else, as an id may hold any other character.

    Raises:
        OSError: The file cannot be read.
        ValueError: Not UTF-8.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("ids.txt").write_text("photo 1\nphoto 2\n\n")
        >>> read_id_lines("ids.txt")
        ['photo 1', 'photo 2']
    """
    return [line for line in read_lines(path, "ids") if line.strip()]
