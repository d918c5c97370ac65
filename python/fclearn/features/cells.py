# SPDX-License-Identifier: Apache-2.0
"""Cells of a manifest that hold nothing, and those that it cannot hold as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Between the labels of a row in a csv.
SEPARATOR = "|"

_Column = list[Any] | NDArray[Any]
_SEVERAL = (list, tuple, set, frozenset, np.ndarray)
_CONTAINERS = (*_SEVERAL, dict)


def is_missing(value: object) -> bool:
    """Whether a cell says nothing: None, NaN of any type, NaT, NA of pandas, or empty text.

    Example:
        >>> [is_missing(cell) for cell in (None, np.float32("nan"), "", "nan", 0, [])]
        [True, True, True, False, False, False]
    """
    if value is None or isinstance(value, str):
        return not value
    if isinstance(value, _CONTAINERS):
        return False
    # NaN and NaT differ from themselves. NA has no truth value: compared, it answers with itself.
    same = value == value  # noqa: PLR0124
    return not same if isinstance(same, bool | np.bool_) else same is value


def class_names(values: Sequence[Any] | NDArray[Any]) -> list[str]:
    """Names of classes as text, empty in every row that has none.

    Example:
        >>> class_names(["cat", None, 3])
        ['cat', '', '3']
    """
    return ["" if is_missing(value) else str(value) for value in values]


def label_lists(values: Sequence[Any] | NDArray[Any]) -> list[list[str]]:
    """Labels of each row as a list of text; a text is parted at each ``|``.

    Example:
        >>> label_lists([["cat", 3], [], "dog|pet", 7, None])
        [['cat', '3'], [], ['dog', 'pet'], ['7'], []]
    """
    return [
        [label for label in cell.split(SEPARATOR) if label]
        if isinstance(cell, str)
        else _several(cell if isinstance(cell, _SEVERAL) else [cell])
        for cell in values
    ]


def text_labels(values: Sequence[Any] | NDArray[Any], name: str) -> _Column:
    """Labels of each row as one text, parted by ``|``; text stays as it is.

    Args:
        values: A text, or any number of labels, for each row.
        name: What to call the manifest in messages.

    Raises:
        ValueError: A label of a list that holds ``|``, which would be read as two.

    Example:
        >>> text_labels([["cat", "pet"], [], "dog|pet", None], "manifest")
        ['cat|pet', '', 'dog|pet', '']
    """
    cells = []
    for row, cell in enumerate(values):
        if not isinstance(cell, _SEVERAL):
            cells.append("" if is_missing(cell) else cell)
            continue
        labels = _several(cell)
        for label in labels:
            if SEPARATOR in label:
                raise ValueError(
                    f"{name}: expected labels without {SEPARATOR!r}, which parts them in a csv, "
                    f"got {label!r} in row {row} of column 'labels'; manifest_format='parquet' "
                    "takes it"
                )
        cells.append(SEPARATOR.join(labels))
    return cells


def check_cells(
    values: Sequence[Any] | NDArray[Any], key: str, name: str, file_format: str
) -> None:
    """Refuse cells that would be kept, or read back, as the text of Python.

    Those are lists and dicts in a csv; names of classes that are several; and labels that are dicts
    or hold lists. Lists of labels are fine, see `text_labels` and `label_lists`.

    Args:
        values: The column.
        key: Its name.
        name: What to call the manifest in messages.
        file_format: What it is to be written as.

    Raises:
        ValueError: Such a cell; the first one is named.

    Example:
        >>> check_cells(["a", ["b"]], "class_name", "manifest", "parquet")
        Traceback (most recent call last):
        ...
        ValueError: manifest: expected one name in each cell, got a list in row 1 of column \
'class_name'; column 'labels' takes several
    """
    if key == "labels":
        expected, instead = "one label, or a list of them, in each cell", ""
    elif key == "class_name":
        expected, instead = "one name in each cell", "; column 'labels' takes several"
    elif file_format == "csv":
        expected = "one value in each cell of a csv"
        instead = "; manifest_format='parquet' takes it"
    else:
        return
    for row, cell in enumerate(values):
        if not isinstance(cell, _CONTAINERS):
            continue
        found = type(cell).__name__
        if key == "labels" and not isinstance(cell, dict):
            inner = next((one for one in cell if isinstance(one, _CONTAINERS)), None)
            if inner is None:
                continue
            found = f"{type(inner).__name__} in a {found}"
        raise ValueError(
            f"{name}: expected {expected}, got a {found} in row {row} of column {key!r}{instead}"
        )


def _several(cell: Iterable[Any]) -> list[str]:
    """Labels of a cell that holds any number of them, as text."""
    # A set has no order of its own, and equal stores are to be equal files.
    several = sorted(cell, key=str) if isinstance(cell, set | frozenset) else cell
    return [str(label) for label in several if not is_missing(label)]
