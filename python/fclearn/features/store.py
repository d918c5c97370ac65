# SPDX-License-Identifier: Apache-2.0
"""A feature store: a folder with vectors, a row-aligned manifest and a fingerprint."""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fclearn.features.arrays import row_numbers, to_array
from fclearn.features.fingerprint import Fingerprint
from fclearn.features.folder import (
    FEATURES,
    FINGERPRINT,
    check_target,
    install,
    naming,
    read_fingerprint,
    write_fingerprint,
)
from fclearn.features.manifest import (
    FILES,
    Manifest,
    check_format,
    check_manifest,
    read_manifest,
    write_manifest,
)
from fclearn.features.norms import other_length, stored_rows
from fclearn.features.npy import Features, create_npy, open_npy

DTYPES = (np.dtype(np.float32), np.dtype(np.float16))
_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Stored features of one model, opened for reading; make one with `open` or `write`.

    On disk: ``features.npy`` (float32 or float16, row-major), ``manifest.csv`` or
    ``manifest.parquet`` (columns ``id``, and optionally ``label``, ``class_name``, ``labels``,
    ``group``, ``path`` and any others; which of them says what a row is of, is the rule of
    `fclearn.features.classes`) and ``fingerprint.json``; from some writers also ``source.txt``, by
    which the same command knows that it has ended.

    Attributes:
        path: The folder.
        features: Shape ``(N, D)``, float32 or float16, read-only and memory-mapped.
        manifest: Column by name: a list or an array, ``(N,)``.
        fingerprint: What made the features.
        ids: One distinct text per row.
        labels: Class per row, shape ``(N,)``, int64; None without a column ``label``.
        groups: Near-copies share one, shape ``(N,)``, int64; None without a column ``group``.

    Example:
        >>> import numpy as np
        >>> from fclearn import FeatureStore, Fingerprint
        >>> store = FeatureStore.write("old", np.eye(3, dtype=np.float32),
        ...                            {"id": ["a", "b", "c"], "label": [0, 1, 1]},
        ...                            Fingerprint("old-api", 3))
        >>> len(store), store.dim, store.labels
        (3, 3, array([0, 1, 1]))
        >>> FeatureStore.open("old").subset([2])[2]
        ['c']
    """

    path: Path
    features: np.memmap[Any, np.dtype[Any]]
    manifest: Manifest
    fingerprint: Fingerprint
    ids: list[str]
    labels: NDArray[np.int64] | None
    groups: NDArray[np.int64] | None

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.features.shape[0])

    @property
    def dim(self) -> int:
        """Numbers per row."""
        return int(self.features.shape[1])

    @property
    def manifest_format(self) -> str:
        """How the manifest is kept: ``"csv"`` or ``"parquet"``."""
        return "csv" if (self.path / FILES["csv"]).exists() else "parquet"

    def __repr__(self) -> str:
        """Path, shape and model; never the data."""
        return (
            f"FeatureStore({str(self.path)!r}, {len(self)} x {self.dim} {self.features.dtype}, "
            f"model={self.fingerprint.model!r})"
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FeatureStore:
        """Open a store; features stay on disk.

        Args:
            path: The folder.

        Raises:
            ValueError: Something is missing, truncated, or does not agree; the message names the
                file, what was expected and what was found.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ValueError(
                f"{folder}: expected the folder of a feature store, found "
                f"{'a file' if folder.exists() else 'nothing'}"
            )
        features = open_npy(folder / FEATURES)
        if features.dtype not in DTYPES or not features.flags.c_contiguous:
            order = "row-major" if features.flags.c_contiguous else "column-major"
            raise ValueError(
                f"{folder / FEATURES}: expected row-major float32 or float16, found {order} "
                f"{features.dtype.str}"
            )
        fingerprint = read_fingerprint(folder)
        if fingerprint.dim != features.shape[1]:
            raise ValueError(
                f"{folder / FINGERPRINT}: expected dim {features.shape[1]}, the width of "
                f"{FEATURES}, found {fingerprint.dim}"
            )
        manifest = read_manifest(folder, features.shape[0])
        return cls(
            path=folder,
            features=features,
            manifest=manifest,
            fingerprint=fingerprint,
            ids=list(manifest["id"]),
            labels=np.asarray(manifest["label"]) if "label" in manifest else None,
            groups=np.asarray(manifest["group"]) if "group" in manifest else None,
        )

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        features: Features | Tensor,
        manifest: Mapping[str, Sequence[Any] | NDArray[Any]],
        fingerprint: Fingerprint,
        manifest_format: str = "csv",
    ) -> FeatureStore:
        """Write a store, whole or not at all, and open it. A store already there is replaced.

        Where the fingerprint says norm ``"l2"`` and a row is neither of unit length nor zero, the
        store says ``"none"``, with a warning: what reads it, and an index it is pushed to, would
        otherwise rank by lengths that nobody knows of.

        Args:
            path: Folder to make. Its parents are made if needed.
            features: Shape ``(N, D)``, floating; may be larger than memory if memory-mapped.
                float16 stays float16, any other type is stored as float32.
            manifest: Column by name, ``N`` values each; ``id`` is required. Lists in column
                ``labels`` are joined by ``|`` in a csv, and in parquet all its cells become lists
                of text; other lists and dicts need parquet. A name of a class is one text, and
                labels are no dicts and hold no lists.
            fingerprint: What made the features; its ``dim`` must be ``D``.
            manifest_format: ``"csv"`` or ``"parquet"``.

        Raises:
            OSError: The folder cannot be written.
            TypeError: Features that are not floating.
            ValueError: Shapes or manifest that do not agree, or ``path`` holds something else. NaN,
                infinite or too large numbers; the first such row is named.
        """
        check_format(manifest_format)
        array = to_array(features, "features")
        num_rows, dim = array.shape
        if fingerprint.dim != dim:
            raise ValueError(
                f"features: expected {fingerprint.dim} columns, as the fingerprint says, got {dim}"
            )
        columns = check_manifest(manifest, num_rows, "manifest", manifest_format)
        target = check_target(path)
        temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
        try:
            with naming(target):
                temporary.mkdir(parents=True)
                dtype = np.float16 if array.dtype == np.float16 else np.float32
                stored = create_npy(temporary / FEATURES, num_rows, dim, dtype)
                step = max(1, _BLOCK_BYTES // (4 * dim))
                ids, other = columns["id"], None
                for begin in range(0, num_rows, step):
                    block = array[begin : begin + step]
                    rows, norms = stored_rows(block, dtype, "features", begin, ids)
                    stored[begin : begin + step] = rows
                    found = other_length(norms)
                    if other is None and found is not None:
                        other = ids[begin + found]
                if fingerprint.norm == "l2" and other is not None:
                    fingerprint = replace(fingerprint, norm="none")
                    warnings.warn(
                        f"{path}: row {other!r} has not the unit length that the fingerprint's "
                        "norm 'l2' says, so the store says 'none'; normalise the rows, or give "
                        'Fingerprint(..., norm="none")',
                        stacklevel=2,
                    )
                stored.flush()
                write_manifest(temporary, columns, manifest_format)
                write_fingerprint(temporary, fingerprint)
                install(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls.open(path)

    def subset(
        self, index: slice | Sequence[int] | NDArray[Any]
    ) -> tuple[Features, NDArray[np.int64] | None, list[str]]:
        """Copy some rows into memory.

        Args:
            index: Row numbers, a bool per row, or a slice.

        Returns:
            Features ``(M, D)`` in the stored type, labels ``(M,)`` or None, and ids.

        Raises:
            IndexError: Rows that do not exist.
        """
        rows = row_numbers(len(self), index)
        labels = None if self.labels is None else self.labels[rows]
        return np.array(self.features[rows]), labels, [self.ids[row] for row in rows]
