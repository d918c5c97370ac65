# SPDX-License-Identifier: Apache-2.0
"""Tables of results in markdown, and pages of which a marked part is made of results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fclearn._files import replacing


def percent(value: float | None, form: str = ".1f") -> str:
    """A fraction in percent, with a true minus sign; a dash for None.

    Example:
        >>> percent(-0.0125, "+.2f"), percent(None)
        ('−1.25', '–')
    """
    return "–" if value is None else f"{100 * value:{form}}".replace("-", "−")


def table_row(cells: Sequence[str]) -> str:
    """One row of a table.

    Example:
        >>> table_row(["old/old", "34.4"])
        '| old/old | 34.4 |'
    """
    return f"| {' | '.join(cells)} |"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class MarkedPage:
    """A page that people write, but for the part between two marker lines.

    Attributes:
        path: Of the file.
        before: Text up to the end of the first marker.
        after: Text from the second marker on.
    """

    path: Path
    before: str
    after: str

    @classmethod
    def read(cls, path: str | os.PathLike[str], begin: str, end: str) -> MarkedPage:
        """Find the markers, before anything is computed for the page.

        Raises:
            ValueError: A marker is missing, or they stand the other way round.
            OSError: The file cannot be read.
        """
        before, found, rest = Path(path).read_text(encoding="utf-8").partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"{path}: expected the lines {begin} and {end}, in this order")
        return cls(Path(path), before + begin, end + after)

    def write(self, text: str) -> None:
        """Replace what is between the markers by a text that ends with a line end."""
        write_text(self.path, f"{self.before}\n{text}{self.after}")
