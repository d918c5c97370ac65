# SPDX-License-Identifier: Apache-2.0
"""Numbers as a page shows them: fractions in percent, with true minus signs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class Cell(TypedDict):
    """A number and its interval, as text; ``mark`` is a class of the style sheet, or empty."""

    value: str
    bounds: str
    mark: str


class Row(TypedDict):
    """A row of a table; ``marked`` ones stand out."""

    label: str
    meaning: str
    cells: list[Cell]
    marked: bool


class Table(TypedDict):
    """A table as the template draws it: ``label`` for screen readers, groups of rows."""

    label: str
    caption: str
    columns: list[str]
    bodies: list[list[Row]]


def number(value: float) -> str:
    """A fraction in percent.

    Example:
        >>> number(0.1234), number(-0.5)
        ('12.3', '−50.0')
    """
    return f"{round(100 * value, 1) + 0.0:.1f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference of fractions in points.

    Example:
        >>> signed(0.01), signed(-0.00001)
        ('+1.0', '+0.0')
    """
    # Rounded first, so that no "−0.0" appears.
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")


def bounds(interval: Sequence[float] | None, *, sign: bool = False) -> str:
    """An interval in brackets that no line break parts; empty where there is none."""
    if interval is None:
        return ""
    low, high = (signed(bound) if sign else number(bound) for bound in interval)
    return f"[{low},\N{NO-BREAK SPACE}{high}]"


def cell(
    value: float | None,
    interval: Sequence[float] | None = None,
    *,
    sign: bool = False,
    mark: str = "",
) -> Cell:
    """A number with its interval; a dash where there is none."""
    if value is None:
        return text_cell("–")
    text = signed(value) if sign else number(value)
    return {"value": text, "bounds": bounds(interval, sign=sign), "mark": mark}


def text_cell(text: str, mark: str = "") -> Cell:
    """Any text in a table."""
    return {"value": text, "bounds": "", "mark": mark}


def row(label: str, cells: list[Cell], meaning: str = "", *, marked: bool = False) -> Row:
    """A row of a table."""
    return {"label": label, "meaning": meaning, "cells": cells, "marked": marked}
