# SPDX-License-Identifier: Apache-2.0
"""What each row is of, by the manifests of stores: one rule for all that ask.

The first of these columns that every manifest in question has:

1. ``labels``: any number for a row, a list in parquet, parted by ``|`` in csv. Rows that share one
   belong together.
2. ``class_name``: one for a row.
3. ``label``: one number for a row. It comes last, as the numbers of two stores may differ where
   their names do not.

A row may have no class: no label in ``labels``; empty text, None or NaN in ``class_name``; a
negative number in ``label``. Such a row is right for nothing and never a class of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fclearn.features.cells import SEPARATOR, is_missing
from fclearn.features.store import FeatureStore

COLUMNS = ("labels", "class_name", "label")

#: One class per row, ``(N,)``, integers or text; or a set of labels per row.
RowLabels: TypeAlias = NDArray[np.generic] | list[set[str]]


class NoClassError(ValueError):
    """Manifests without classes, or with several labels for a row that may have but one."""


def row_labels(*stores: FeatureStore) -> list[RowLabels]:
    """Labels of the rows of each store, all by one column.

    Returns:
        Of each store, shape ``(N,)``, or sets: by ``labels``, and wherever a row has no class; its
        set is empty.

    Raises:
        NoClassError: No column in common, or a store of rows without classes.

    Example:
        >>> from fclearn import FeatureStore, Fingerprint
        >>> columns = {"id": ["a", "b"], "label": [0, 1], "labels": ["cat|pet", "dog|pet"]}
        >>> rows = np.eye(2, dtype=np.float32)
        >>> store = FeatureStore.write("pets", rows, columns, Fingerprint("m", 2))
        >>> [sorted(labels) for labels in row_labels(store)[0]]
        [['cat', 'pet'], ['dog', 'pet']]
    """
    column = _column(stores, "")
    found = [_read(store, column, "") for store in stores]
    if all(isinstance(labels, np.ndarray) and has_class(labels).all() for labels in found):
        return found
    return [_sets(labels) if isinstance(labels, np.ndarray) else labels for labels in found]


def row_classes(*stores: FeatureStore, instead: str = "") -> list[NDArray[np.generic]]:
    """The one class of each row of each store, all by one column; `has_class` says which have one.

    Args:
        *stores: Rows that are compared with each other.
        instead: What would do in place of classes, for messages.

    Returns:
        Of each store, shape ``(N,)``: integers by ``label``, negative for rows without a class;
        else text, empty for those.

    Raises:
        NoClassError: No column in common, a store of rows without classes, or a row with several
            ``labels``.
    """
    instead = f", or {instead}" if instead else ""
    column = _column(stores, instead)
    found: list[NDArray[np.generic]] = []
    for store in stores:
        labels = _read(store, column, instead)
        if not isinstance(labels, np.ndarray):
            for name, row in zip(store.ids, labels, strict=True):
                if len(row) > 1:
                    raise NoClassError(
                        f"{store.path}: expected one class for each row{instead}; found "
                        f"{len(row)} in column 'labels' of row {name!r}"
                    )
            labels = np.array([next(iter(row), "") for row in labels], dtype=np.str_)
        found.append(labels)
    return found


def has_class(classes: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which rows have a class, bool ``(N,)``, of what `row_classes` returns.

    Example:
        >>> has_class(np.array([0, -1, 2])).tolist(), has_class(np.array(["cat", ""])).tolist()
        ([True, False, True], [True, False])
    """
    none = classes < 0 if classes.dtype.kind in "iu" else classes == ""  # type: ignore[operator]
    return np.asarray(~none)


def class_numbers(classes: NDArray[np.generic]) -> NDArray[np.int64]:
    """Classes as 0 .. C - 1 in their order, -1 for rows without one, int64 ``(N,)``.

    Example:
        >>> class_numbers(np.array(["dog", "", "cat"])).tolist()
        [1, -1, 0]
    """
    known = has_class(classes)
    numbers = np.full(len(classes), -1, dtype=np.int64)
    numbers[known] = np.unique(classes[known], return_inverse=True)[1].reshape(-1)
    return numbers


def _column(stores: Iterable[FeatureStore], instead: str) -> str:
    held = {
        str(store.path): [name for name in COLUMNS if name in store.manifest] for store in stores
    }
    shared = [name for name in COLUMNS if all(name in names for names in held.values())]
    if shared:
        return shared[0]
    expected = "expected a column 'labels', 'class_name' or 'label' in the manifest"
    for path, names in held.items():
        if not names:
            raise NoClassError(f"{path}: {expected}{instead}")
    found = ", ".join(f"{' and '.join(names)} in {path}" for path, names in held.items())
    raise NoClassError(f"{expected} of all, the same one{instead}; found {found}")


def _read(store: FeatureStore, column: str, instead: str) -> RowLabels:
    values = store.manifest[column]
    labels: RowLabels
    if column == "labels":
        labels = [_set(cell) for cell in values]
        known = any(labels)
    else:
        if column == "class_name":
            labels = np.array([str(name) for name in values], dtype=np.str_)
        else:
            labels = np.asarray(values)
        known = bool(has_class(labels).any())
    if not known and len(store):
        raise NoClassError(
            f"{store.path}: expected rows with a class{instead}, found none in column {column!r}"
        )
    return labels


def _sets(classes: NDArray[np.generic]) -> list[set[str]]:
    """One set for all rows of a class: a gallery of millions has few of them."""
    names, numbers = np.unique(classes, return_inverse=True)
    sets = [
        {str(name)} if known else set() for name, known in zip(names, has_class(names), strict=True)
    ]
    return [sets[number] for number in numbers.reshape(-1)]


def _set(cell: object) -> set[str]:
    if isinstance(cell, str):
        return {part for part in cell.split(SEPARATOR) if part}
    if isinstance(cell, Iterable):
        return {str(label) for label in cell if not is_missing(label)}
    return set() if is_missing(cell) else {str(cell)}
