# SPDX-License-Identifier: Apache-2.0
"""Qdrant's embedded folder keeps points as pickles: refuse those that would run code.

qdrant-client unpickles whatever lies in ``collection/*/storage.sqlite``. Here every pickle is first
read with only the few classes that points are made of, so that a folder from elsewhere cannot call
anything.
"""

from __future__ import annotations

import io
import pickle
import sqlite3
from pathlib import Path
from typing import Any

_POINTS = {"PointStruct", "SparseVector", "Document", "Image", "InferenceObject"}
_NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("uuid", "UUID"),
    ("uuid", "SafeUUID"),
    ("datetime", "datetime"),
    ("datetime", "date"),
}


class _PointReader(pickle.Unpickler):
    """Builds points and plain values only."""

    def find_class(self, module: str, name: str) -> Any:
        """The classes of points; anything else is refused."""
        is_point = module.startswith("qdrant_client.") and name in _POINTS
        if not is_point and (module, name) not in _NUMPY:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def check_folder(folder: Path) -> None:
    """Refuse an embedded store with anything but points in it.

    Args:
        folder: Of the store, not yet opened.

    Raises:
        ValueError: A pickle that holds something else, or a database that cannot be read.
    """
    for path in sorted((folder / "collection").rglob("storage.sqlite")):
        try:
            # Not mode=ro: a writer killed in a transaction leaves a journal that has to be rolled
            # back before anyone reads, and what is read here must be what the client will read.
            connection = sqlite3.connect(f"file:{path.resolve()}?mode=rw", uri=True)
            try:
                for (value,) in connection.execute("SELECT point FROM points"):
                    _PointReader(io.BytesIO(value)).load()
            finally:
                connection.close()
        except Exception as error:  # a hostile pickle can fail in any way
            raise ValueError(f"{path}: refusing to open: not plain points: {error}") from error
