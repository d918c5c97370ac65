# SPDX-License-Identifier: Apache-2.0
"""The journal of a push: what was there before, written down before it is touched.

A folder: ``journal.json`` says what is pushed where; ``before/000000.npz`` holds what the rows of a
batch were, on the disk before the first of them changes; ``after/000000.npy`` holds a sketch of
what they became, and so says that the batch is done. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fclearn._files import replacing
from fclearn.stores.base import Found, Mask, Vectors

BEGUN, DONE, UNDONE = "begun", "done", "rolled back"
_FORMAT = 1
_NAME = "journal.json"
_OURS = {_NAME, "lock", "before", "after", "before.file"}
_SKETCH_DIM = 4
# Of a row's norm. A store that normalises anew when it opens differs by 1e-7; another row by 1.
_TOLERANCE = 1e-4


class Before(NamedTuple):
    """What the rows of a batch were."""

    ids: list[str]
    found: Found


class Journal:
    """One push, on disk.

    Args:
        folder: Of the journal.

    Attributes:
        folder: As given.
        settings: What `begin` was given, with ``state``; empty if there is no journal yet.

    Raises:
        ValueError: A folder that holds anything else.

    Example:
        >>> journal = Journal("upgrade.push")
        >>> journal.begin({"store": "parquet:new.parquet", "rows": 3})
        >>> Journal("upgrade.push").settings["state"]
        'begun'
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.settings: dict[str, Any] = {}
        if not self.folder.exists():
            return
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else {""}
        strange = sorted(name for name in names - _OURS if not name.startswith(f".{_NAME}."))
        if strange:
            raise ValueError(
                f"{folder}: expected the journal of a push, found {strange[0]!r} in it"
            )
        if (self.folder / _NAME).exists():
            self.settings = self._read()

    def begin(self, settings: dict[str, Any]) -> None:
        """Start anew; what was there, of a push that was rolled back, is removed."""
        if self.folder.exists():
            for name in ("before", "after"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            self.kept_file.unlink(missing_ok=True)
        for name in ("before", "after"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.settings = {"format": _FORMAT, **settings, "state": BEGUN}
        self._write()

    def mark(self, state: str, **more: object) -> None:
        """Record a state, and whatever else."""
        self.settings = {**self.settings, **more, "state": state}
        self._write()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the journal: a second process that pushes or rolls back is refused."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.folder}: in use by another process") from None
            if (self.folder / _NAME).exists():
                self.settings = self._read()  # whoever held it before may have gone on
            yield

    @property
    def kept_file(self) -> Path:
        """Where the file that was replaced is kept."""
        return self.folder / "before.file"

    def before(self, batch: int) -> Before | None:
        """What the rows of a batch were; None if it was not begun."""
        path = self._path("before", batch, "npz")
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                ids = json.loads(arrays["ids"].tobytes().decode("utf-8"))
                row, vector, held = (arrays[name] for name in ("row", "vector", "vectors"))
            vectors = np.zeros((len(ids), held.shape[1]), dtype=held.dtype)
            vectors[vector] = held
        except Exception as error:  # a damaged archive can fail in many ways
            raise ValueError(f"{path}: cannot read what was there before: {error}") from error
        return Before([str(name) for name in ids], Found(row, vector, vectors))

    def write_before(self, batch: int, ids: Sequence[str], found: Found) -> None:
        """Write down what the rows of a batch are, once and before they change."""
        text = np.frombuffer(json.dumps(list(ids)).encode("utf-8"), dtype=np.uint8)
        with self._kept("before", batch, "npz") as temporary, temporary.open("wb") as file:
            held = found.vectors[found.vector]
            np.savez(file, ids=text, row=found.row, vector=found.vector, vectors=held)

    def after(self, batch: int) -> NDArray[np.float64] | None:
        """The sketch of what a batch became; None if it is not done."""
        path = self._path("after", batch, "npy")
        if not path.exists():
            return None
        try:
            sketches: NDArray[np.float64] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: cannot read what was written: {error}") from error
        return sketches

    def write_after(self, batch: int, vectors: Vectors) -> None:
        """Record that a batch is done, and what its rows became."""
        with self._kept("after", batch, "npy") as temporary, temporary.open("wb") as file:
            np.save(file, sketch(vectors))

    def num_batches(self) -> int:
        """Batches that were begun are the numbers below this."""
        numbers = [int(path.stem) for path in (self.folder / "before").glob("[0-9]*.npz")]
        return max(numbers, default=-1) + 1

    def _path(self, kind: str, batch: int, suffix: str) -> Path:
        return self.folder / kind / f"{batch:08d}.{suffix}"

    @contextmanager
    def _kept(self, kind: str, batch: int, suffix: str) -> Iterator[Path]:
        """A file that is on the disk, name and all, when the block is left."""
        path = self._path(kind, batch, suffix)
        with replacing(path) as temporary:
            yield temporary
        sync_folder(path.parent)

    def _write(self) -> None:
        with replacing(self.folder / _NAME) as temporary:
            temporary.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        sync_folder(self.folder)

    def _read(self) -> dict[str, Any]:
        path = self.folder / _NAME
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            known = settings["format"] == _FORMAT and settings["state"] in {BEGUN, DONE, UNDONE}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{path}: not the journal of a push: {error}") from error
        if not known:
            raise ValueError(f"{path}: not a journal of this version of fclearn")
        return dict(settings)


def sketch(vectors: Vectors) -> NDArray[np.float64]:
    """Norm and four fixed projections of each row: shape ``(B, 5)``, to tell rows apart."""
    rows = np.asarray(vectors, dtype=np.float64)
    pattern = np.random.default_rng(0).standard_normal((rows.shape[1], _SKETCH_DIM))
    return np.concatenate([np.linalg.norm(rows, axis=1, keepdims=True), rows @ pattern], axis=1)


def same_rows(vectors: Vectors, sketches: NDArray[np.float64]) -> Mask:
    """Which rows are those of the sketches, up to the rounding of a store."""
    ours = sketch(vectors)
    scale = np.maximum(ours[:, :1], sketches[:, :1])
    close: Mask = np.all(np.abs(ours - sketches) <= _TOLERANCE * scale, axis=1)
    return close


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a rename alone may not survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
