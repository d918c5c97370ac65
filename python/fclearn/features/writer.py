# SPDX-License-Identifier: Apache-2.0
"""Writing a feature store block by block, so that a killed run can go on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from fclearn._files import replacing
from fclearn.features.arrays import to_array
from fclearn.features.fingerprint import Fingerprint
from fclearn.features.folder import (
    FEATURES,
    PROGRESS,
    SOURCE,
    check_target,
    install,
    naming,
    write_fingerprint,
)
from fclearn.features.manifest import check_format, check_manifest, write_manifest
from fclearn.features.norms import other_length, stored_rows
from fclearn.features.npy import Features, create_npy, open_npy
from fclearn.features.store import DTYPES, FeatureStore


class FeatureWriter:
    """Fills a feature store in any order and makes it visible only when every row is there.

    Rows go to ``<path>.partial``, which holds no manifest until the end and so never opens as a
    store. Opening a writer for the same path again goes on with what was written. One process
    writes a store.

    Args:
        path: Folder of the store to be; replaced by `finish` if it exists.
        num_rows: Rows, N.
        dim: Numbers per row, D; must be the fingerprint's.
        dtype: ``float32`` or ``float16``.
        fingerprint: What makes the features.
        source: What else must be the same for a partial store to be continued, such as a hash of
            the model's weights. The finished store keeps it in ``source.txt``, unless it is empty.

    Raises:
        OSError: The folder cannot be written.
        ValueError: Arguments that do not agree, or a partial store that was begun with others.

    Example:
        >>> import numpy as np
        >>> fingerprint = Fingerprint("old-api", 2)
        >>> writer = FeatureWriter("streamed", 3, 2, "float32", fingerprint)
        >>> writer.write(0, np.eye(2))
        >>> FeatureWriter("streamed", 3, 2, "float32", fingerprint).missing()
        [(2, 3)]
        >>> writer.write(2, np.zeros((1, 2)))
        >>> len(writer.finish({"id": ["a", "b", "c"]}))
        3
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        num_rows: int,
        dim: int,
        dtype: DTypeLike,
        fingerprint: Fingerprint,
        source: str = "",
    ) -> None:
        """See the class."""
        kind = np.dtype(dtype)
        if kind not in DTYPES:
            raise ValueError(f"dtype: expected float32 or float16, got {kind}")
        if num_rows < 0:
            raise ValueError(f"num_rows: expected at least 0, got {num_rows}")
        if dim != fingerprint.dim:
            raise ValueError(f"dim: expected {fingerprint.dim}, the fingerprint's, got {dim}")
        self.path = Path(path)
        self.fingerprint = fingerprint
        self._target = check_target(path)
        self._partial = self._target.with_name(f"{self._target.name}.partial")
        self._identity = {
            "num_rows": num_rows,
            "dim": dim,
            "dtype": kind.name,
            "source": source,
            **{f"fingerprint {key}": value for key, value in fingerprint.to_dict().items()},
        }
        self._shape = (num_rows, dim)
        self._blocks: list[tuple[int, int]] = []
        with naming(self._target):
            self._partial.mkdir(parents=True, exist_ok=True)
            for half in self._partial.glob(f".{PROGRESS}.*"):
                half.unlink()  # a run was killed while it wrote its record
            check_target(self._partial)
            if (self._partial / PROGRESS).exists():
                self._array = self._resume(kind)
            else:
                # The record comes last: a run killed here starts over, as nothing is written yet.
                self._array = create_npy(self._partial / FEATURES, num_rows, dim, kind)
                self._record()

    def write(self, begin: int, block: Features | Tensor) -> None:
        """Write rows ``begin … begin + B - 1`` and record them as done.

        Args:
            begin: First row.
            block: Shape ``(B, D)``, floating; stored in the writer's type. May overwrite rows.

        Raises:
            OSError: The disk refuses.
            TypeError: Not floating.
            ValueError: Another width, rows beyond the end, NaN, infinite or too large numbers, or
                with the fingerprint's norm ``"l2"`` rows neither of unit length nor zero.
        """
        array = to_array(block, "block")
        num_rows, dim = self._shape
        end = begin + array.shape[0]
        if array.shape[1] != dim:
            raise ValueError(f"block: expected shape [B, {dim}], got {list(array.shape)}")
        if begin < 0 or end > num_rows:
            raise ValueError(f"block: expected rows in [0, {num_rows}), got {begin} to {end - 1}")
        # Checked before any of it is written: it may take the place of rows that are done.
        rows, norms = stored_rows(array, self._array.dtype, "block", begin)
        other = other_length(norms) if self.fingerprint.norm == "l2" else None
        if other is not None:
            raise ValueError(
                "block: expected rows of unit length, as the fingerprint's norm 'l2' says, got "
                f"length {norms[other]:.4g} in row {begin + other}: normalise the rows, or give "
                'Fingerprint(..., norm="none")'
            )
        self._array[begin:end] = rows
        with naming(self._target):
            # Numbers reach the disk before the record that says so.
            self._array.flush()
            self._blocks = _union([*self._blocks, (begin, end)])
            self._record()

    def missing(self) -> list[tuple[int, int]]:
        """Rows not yet written, as ascending ranges ``(begin, end)``, end excluded."""
        ends = [0, *(end for _, end in self._blocks)]
        begins = [*(begin for begin, _ in self._blocks), self._shape[0]]
        return [(end, begin) for end, begin in zip(ends, begins, strict=True) if end < begin]

    def finish(
        self,
        manifest: Mapping[str, Sequence[Any] | NDArray[Any]],
        manifest_format: str = "csv",
    ) -> FeatureStore:
        """Add manifest and fingerprint, move the store to its path, and open it.

        Args:
            manifest: As `FeatureStore.write` takes it.
            manifest_format: ``"csv"`` or ``"parquet"``.

        Raises:
            OSError: The folder cannot be written.
            ValueError: Rows are missing, or the manifest does not fit.
        """
        check_format(manifest_format)
        columns = check_manifest(manifest, self._shape[0], "manifest", manifest_format)
        missing = self.missing()
        if missing:
            count = sum(end - begin for begin, end in missing)
            raise ValueError(
                f"{self.path}: expected every row to be written, but {count} of {self._shape[0]} "
                f"are missing, the first is {missing[0][0]}"
            )
        with naming(self._target):
            write_manifest(self._partial, columns, manifest_format)
            write_fingerprint(self._partial, self.fingerprint)
            if self._identity["source"]:
                (self._partial / SOURCE).write_text(self._identity["source"], encoding="utf-8")
            install(self._partial, self._target)
            # Only now: killed before the rename, the next run still finds all rows done.
            (self._target / PROGRESS).unlink()
        return FeatureStore.open(self.path)

    def _record(self) -> None:
        record = {**self._identity, "blocks": self._blocks}
        with replacing(self._partial / PROGRESS) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")

    def _resume(self, kind: np.dtype[Any]) -> np.memmap[Any, np.dtype[Any]]:
        path = self._partial / PROGRESS
        start_over = f"remove {self._partial} to start over"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            blocks = [(int(begin), int(end)) for begin, end in record.pop("blocks")]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: not a record of progress; {start_over}") from error
        different = [
            f"{key} {record.get(key)!r} before, {value!r} now"
            for key, value in self._identity.items()
            if record.get(key) != value
        ]
        if different:
            raise ValueError(
                f"{self._partial}: refusing to continue a partial store that was begun with "
                f"other settings: {', '.join(different)}; {start_over}"
            )
        if any(not 0 <= begin <= end <= self._shape[0] for begin, end in blocks):
            raise ValueError(
                f"{path}: expected rows in [0, {self._shape[0]}), found {blocks}; {start_over}"
            )
        array = open_npy(self._partial / FEATURES, mode="r+")
        if array.shape != self._shape or array.dtype != kind:
            raise ValueError(
                f"{self._partial / FEATURES}: expected {kind} of shape {list(self._shape)}, found "
                f"{array.dtype} of shape {list(array.shape)}; {start_over}"
            )
        self._blocks = _union(blocks)
        return array


def _union(blocks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges, those that touch or overlap joined and empty ones dropped."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(block for block in blocks if block[0] < block[1]):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined
