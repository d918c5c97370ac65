# SPDX-License-Identifier: Apache-2.0
"""Text files of one name a line: what a line is, for all who read and write them."""

from __future__ import annotations

import os
from pathlib import Path

_BYTE_ORDER_MARK = "\ufeff"


def read_lines(path: str | os.PathLike[str], what: str) -> list[str]:
    r"""Read the lines of a text file, without the blank ones at its end.

    Args:
        path: UTF-8, with or without a byte order mark; lines end with LF, CR LF or CR and nothing
            else, as a name may hold any other character.
        what: What the lines are, for messages.

    Raises:
        OSError: The file cannot be read.
        ValueError: Not UTF-8.

    Example:
        >>> _ = Path("names.txt").write_text("cat\n\nsea\u2028lion\n\n", encoding="utf-8")
        >>> read_lines("names.txt", "class names")
        ['cat', '', 'sea\u2028lion']
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected {what} as UTF-8 text, one a line: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def is_line(name: str) -> bool:
    r"""Whether a name, written as a line, is read as it is, and is not blank.

    Example:
        >>> is_line("sea\u2028lion"), is_line("sea\nlion"), is_line(" ")
        (True, False, False)
    """
    return bool(name.strip()) and name[0] != _BYTE_ORDER_MARK and not {"\n", "\r"} & set(name)
