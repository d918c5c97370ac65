# SPDX-License-Identifier: Apache-2.0
"""What each row is of, by the manifests of stores: one rule for all that ask.

The first of these columns that every manifest in question has:

1. ``labels``: any number for a row, a list in parquet, parted by ``|`` in csv. Rows that share one
   belong together.
2. ``class_name``: one for a row.
3. ``label``: one number for a row. It comes last, as the numbers of two stores may differ where
   their names do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fclearn.features.store import FeatureStore

COLUMNS = ("labels", "class_name", "label")

#: One class per row, ``(N,)``, integers or text; or a set of labels per row.
RowLabels: TypeAlias = NDArray[np.generic] | list[set[str]]


class NoClassError(ValueError):
    """Manifests without the columns, or with several labels for a row that may have but one."""


def row_labels(*stores: FeatureStore) -> list[RowLabels]:
    """Labels of the rows of each store, all by one column.

    Raises:
        NoClassError: No column in common.

    Example:
        >>> from fclearn import FeatureStore, Fingerprint
        >>> columns = {"id": ["a", "b"], "label": [0, 1], "labels": ["cat|pet", "dog|pet"]}
        >>> rows = np.eye(2, dtype=np.float32)
        >>> store = FeatureStore.write("pets", rows, columns, Fingerprint("m", 2))
        >>> [sorted(labels) for labels in row_labels(store)[0]]
        [['cat', 'pet'], ['dog', 'pet']]
    """
    column = _column(stores, "")
    return [_read(store, column) for store in stores]


def row_classes(*stores: FeatureStore, instead: str = "") -> list[NDArray[np.generic]]:
    """The one class of each row of each store, all by one column.

    Args:
        *stores: Rows that are compared with each other.
        instead: What would do in place of classes, for messages.

    Returns:
        Of each store, shape ``(N,)``: integers by ``label``, else text.

    Raises:
        NoClassError: No column in common, or a row whose ``labels`` are not exactly one.
    """
    instead = f", or {instead}" if instead else ""
    column = _column(stores, instead)
    found: list[NDArray[np.generic]] = []
    for store in stores:
        labels = _read(store, column)
        if not isinstance(labels, np.ndarray):
            for name, row in zip(store.ids, labels, strict=True):
                if len(row) != 1:
                    raise NoClassError(
                        f"{store.path}: expected one class for each row{instead}; found "
                        f"{len(row)} in column 'labels' of row {name!r}"
                    )
            labels = np.array([next(iter(row)) for row in labels], dtype=np.str_)
        found.append(labels)
    return found


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


def _read(store: FeatureStore, column: str) -> RowLabels:
    values = store.manifest[column]
    if column == "labels":
        return [_set(cell) for cell in values]
    if column == "class_name":
        return np.array([str(name) for name in values], dtype=np.str_)
    return np.asarray(values)


def _set(cell: object) -> set[str]:
    if isinstance(cell, str):
        return {part for part in cell.split("|") if part}
    if isinstance(cell, Iterable):
        return {str(label) for label in cell}
    return set() if cell is None else {str(cell)}
