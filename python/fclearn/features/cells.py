# SPDX-License-Identifier: Apache-2.0
"""Cells of a manifest that hold nothing, and those that a csv file cannot hold as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Between the labels of a row in a csv.
SEPARATOR = "|"

_Column = list[Any] | NDArray[Any]
_SEVERAL = (list, tuple, set, frozenset, np.ndarray)


def is_missing(value: object) -> bool:
    """Whether a cell says nothing: None, NaN or empty text.

    Example:
        >>> [is_missing(cell) for cell in (None, float("nan"), "", "nan", 0)]
        [True, True, True, False, False]
    """
    return value is None or value == "" or (isinstance(value, float) and value != value)  # noqa: PLR0124


def class_names(values: Sequence[Any] | NDArray[Any]) -> _Column:
    """Names of classes with empty text in every row that has none; others as they came.

    Example:
        >>> class_names(["cat", None])
        ['cat', '']
    """
    column = values if isinstance(values, np.ndarray) else list(values)
    missing = [not isinstance(value, str) and is_missing(value) for value in column]
    if not any(missing):
        return column
    return ["" if none else str(name) for name, none in zip(column, missing, strict=True)]


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
        # A set has no order of its own, and equal stores are to be equal files.
        several = sorted(cell, key=str) if isinstance(cell, set | frozenset) else list(cell)
        labels = [str(label) for label in several if not is_missing(label)]
        for label in labels:
            if SEPARATOR in label:
                raise ValueError(
                    f"{name}: expected labels without {SEPARATOR!r}, which parts them in a csv, "
                    f"got {label!r} in row {row} of column 'labels'; manifest_format='parquet' "
                    "takes it"
                )
        cells.append(SEPARATOR.join(labels))
    return cells


def check_plain(values: Sequence[Any] | NDArray[Any], key: str, name: str) -> None:
    """Refuse a column of lists or dicts, which a csv would keep as the text of Python.

    Raises:
        ValueError: Such a cell; the first one is named.
    """
    for row, cell in enumerate(values):
        if isinstance(cell, (*_SEVERAL, dict)):
            raise ValueError(
                f"{name}: expected one value in each cell of a csv, got a {type(cell).__name__} in "
                f"row {row} of column {key!r}; manifest_format='parquet' takes it"
            )
