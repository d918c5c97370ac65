# SPDX-License-Identifier: Apache-2.0
"""From a store of vectors into a feature store: in batches, resumable."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fclearn._files import replacing
from fclearn.features import FeatureStore, Fingerprint
from fclearn.features.cells import SEPARATOR, is_missing
from fclearn.features.folder import check_target
from fclearn.features.norms import is_unit, row_norms
from fclearn.stores.base import Batch, StoreConnectionError, StoreInfo, VectorStore
from fclearn.stores.opening import patiently, wait_and_reconnect
from fclearn.wording import some

_PROGRESS = "progress.json"
_VECTORS, _ROWS = "vectors.bin", "rows.jsonl"
_ATTEMPTS = 3


def pull(
    store: VectorStore,
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    payload: Sequence[str] = (),
    batch_size: int = 1000,
    drop_invalid: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureStore:
    """Copy a store's vectors into a new feature store; the store is only read.

    Killed or disconnected, the same call goes on where it was. Rows without a vector are left out.
    The metric is the store's; inner products of rows that all have unit length are called cosines,
    unless the store has a fingerprint that says otherwise. The manifest is a csv, and parquet where
    an entry of a list in ``labels`` holds ``|``, which parts labels in a csv.

    Args:
        store: Where from.
        out: Folder to make; nothing may be there.
        model: What made the vectors; None if the store says.
        payload: Further columns to read into the manifest, not ``id``. Of a ``label`` that is text
            or does not fit int64 the manifest has numbers, and the names as ``class_name`` unless
            that is asked for, too.
        batch_size: Rows at a time, at least 1.
        drop_invalid: Leave out rows with NaN or infinite numbers instead of refusing them.
        progress: Called after each batch with rows read and rows there are.

    Raises:
        StoreConnectionError: The store stays away.
        ValueError: No such store, an empty one, rows with NaN (named), ids that repeat, or a
            model that nobody knows.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if "id" in payload:
        raise ValueError("payload: expected columns beside ids, which are read anyway, got 'id'")
    target = check_target(out)
    if target.exists():
        raise ValueError(f"{out}: expected nothing there, found a feature store")
    info = patiently(store, store.info)
    if info is None:
        raise ValueError(f"store {store.url}: no such file, collection, table or column")
    if info.count == 0:
        raise ValueError(f"store {store.url}: expected at least one vector, found none")
    fingerprint = _fingerprint(store, info, model)
    settings = {
        "store": str(store.url),
        "payload": [*payload],
        "drop_invalid": drop_invalid,
        "dtype": info.dtype,
        **fingerprint.to_dict(),
    }
    with _Partial(target.with_name(f"{target.name}.pull"), settings) as partial:
        for batch in _steady(store, batch_size, partial, payload):
            partial.add(batch, np.dtype(info.dtype), drop_invalid=drop_invalid)
            if progress is not None:
                progress(partial.count, info.count)
        done = replace(fingerprint, dim=partial.dim)
        return partial.finish(target, done, is_told=info.fingerprint is not None)


def _fingerprint(store: VectorStore, info: StoreInfo, model: str | None) -> Fingerprint:
    if info.fingerprint is not None:
        if model not in {None, info.fingerprint.model}:
            raise ValueError(
                f"model: the store says its vectors are of {info.fingerprint.model!r}, got "
                f"{model!r}"
            )
        return info.fingerprint
    if not model:
        raise ValueError(
            f"store {store.url}: does not say what made its vectors: give a model, "
            "--model NAME in the command line"
        )
    return Fingerprint(model, max(info.dim, 1), metric=info.metric or "cosine")


def _steady(
    store: VectorStore, size: int, partial: _Partial, payload: Sequence[str]
) -> Iterator[Batch]:
    """All batches after the last one kept, over connections that drop."""
    failures = 0
    while True:
        try:
            for batch in store.batches(size, partial.cursor, payload):
                yield batch
                failures = 0
            return
        except StoreConnectionError:
            if failures == _ATTEMPTS:
                raise
            wait_and_reconnect(store, failures)
            failures += 1


class _Partial:
    """Rows that were read, in files that only grow, and a record of how far they are whole."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings = folder, settings
        self._record: dict[str, Any] = {"cursor": None, "rows": 0, "dim": 0, "bytes": [0, 0]}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / _PROGRESS).exists():
            self._resume()
        self._files = [(folder / name).open("ab") for name in (_VECTORS, _ROWS)]
        for file, size in zip(self._files, self._record["bytes"], strict=True):
            file.truncate(size)  # a run was killed between the rows and the record of them

    def __enter__(self) -> _Partial:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    @property
    def cursor(self) -> str | None:
        return self._record["cursor"]  # type: ignore[no-any-return]

    @property
    def count(self) -> int:
        return int(self._record["rows"])

    @property
    def dim(self) -> int:
        return int(self._record["dim"])

    def add(self, batch: Batch, dtype: np.dtype[Any], *, drop_invalid: bool) -> None:
        """Append a batch and record it."""
        ids, vectors, payload, cursor = batch
        good = np.isfinite(vectors).all(axis=1)
        if not good.all() and not drop_invalid:
            bad = [ids[row] for row in np.flatnonzero(~good)]
            raise ValueError(
                f"{self._settings['store']}: expected finite numbers, got a NaN or infinity in "
                f"{len(bad)} rows: {some(bad)}; drop_invalid leaves such rows out"
            )
        rows = np.flatnonzero(good)
        if len(rows):
            dim = self._record["dim"] or vectors.shape[1]
            if vectors.shape[1] != dim:
                raise ValueError(
                    f"{self._settings['store']}: expected vectors of one width, found {dim} and "
                    f"{vectors.shape[1]}"
                )
            self._record["dim"] = dim
            self._files[0].write(np.ascontiguousarray(vectors[rows], dtype=dtype).tobytes())
            lines = [json.dumps([ids[row], payload[row]], default=str) + "\n" for row in rows]
            self._files[1].write("".join(lines).encode("utf-8"))
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        self._record["rows"] += len(rows)
        self._record["cursor"] = cursor
        self._record["bytes"] = [file.tell() for file in self._files]
        with replacing(self._folder / _PROGRESS) as temporary:
            temporary.write_text(json.dumps({**self._settings, "done": self._record}))

    def finish(self, target: Path, fingerprint: Fingerprint, *, is_told: bool) -> FeatureStore:
        """Make the feature store, then remove the files.

        Inner products with unit rows rank as cosines do: unless a fingerprint was told, rows of
        such an index are called what they are to models that are compared by cosine.
        """
        if not self.count:
            raise ValueError(f"{self._settings['store']}: expected at least one finite vector")
        with (self._folder / _ROWS).open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        vectors = np.memmap(
            self._folder / _VECTORS, self._settings["dtype"], "r", shape=(self.count, self.dim)
        )
        manifest = {"id": [name for name, _ in rows]}
        payload = self._settings["payload"]
        for key in payload:
            made = _column(key, [values[key] for _, values in rows])
            # A class_name made of labels gives way to one that was asked for.
            manifest.update(
                {name: cells for name, cells in made.items() if name == key or name not in payload}
            )
        # In a csv such a label would be read as two.
        holds_separator = any(
            SEPARATOR in label for cell in manifest.get("labels", ()) for label in cell
        )
        unit = all(
            is_unit(row_norms(vectors[at : at + 65536])).all() for at in range(0, self.count, 65536)
        )
        fingerprint = replace(fingerprint, norm="l2" if unit else "none")
        if unit and not is_told and fingerprint.metric == "ip":
            fingerprint = replace(fingerprint, metric="cosine")
        manifest_format = "parquet" if holds_separator else "csv"
        store = FeatureStore.write(target, vectors, manifest, fingerprint, manifest_format)
        del vectors
        shutil.rmtree(self._folder)
        return store

    def _resume(self) -> None:
        path = self._folder / _PROGRESS
        start_over = f"remove {self._folder} to start over"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            record = found.pop("done")
            sizes = [int(size) for size in record["bytes"]]
            whole = (
                all(
                    (self._folder / name).stat().st_size >= size
                    for name, size in zip((_VECTORS, _ROWS), sizes, strict=True)
                )
                and {"cursor", "rows", "dim"} <= record.keys()
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: not a record of progress; {start_over}") from error
        different = [key for key in self._settings if found.get(key) != self._settings[key]]
        if different or not whole:
            what = f"other settings: {', '.join(different)}" if different else "files cut short"
            raise ValueError(f"{self._folder}: a pull begun with {what}; {start_over}")
        self._record = record


def _column(key: str, values: list[Any]) -> dict[str, Any]:
    """A column of the manifest, in cells that a csv and parquet hold alike.

    Labels that are no integers of 64 bits become numbers beside ``class_name``, and rows without a
    label have -1. Such groups become numbers as well, and a row without a group is one of its own.
    ``labels`` become lists of text, all other cells text.
    """
    if key == "labels":
        return {key: [_several(value) for value in values]}
    if key == "group":
        none = np.array([is_missing(value) for value in values])
        count = int(none.sum())
        numbers = _numbers(values, room=count)
        numbers[none] = numbers.max() + np.arange(1, count + 1)
        return {key: numbers}
    if key != "label":
        return {key: [_cell(value) for value in values]}
    numbers = _numbers(values)
    if _fit(values):
        return {key: numbers}
    return {key: numbers, "class_name": [_cell(value) for value in values]}


def _numbers(values: list[Any], room: int = 0) -> NDArray[np.int64]:
    """Integers that `_fit` as they are, or else texts numbered in order; -1 for what is missing."""
    if _fit(values, room):
        return np.array([-1 if is_missing(value) else value for value in values], dtype=np.int64)
    names = sorted({_cell(value) for value in values if not is_missing(value)})
    number = {name: at for at, name in enumerate(names)}
    return np.array([number.get(_cell(value), -1) for value in values], dtype=np.int64)


def _fit(values: list[Any], room: int = 0) -> bool:
    """Whether all that is not missing are integers of 64 bits, with so many free above them."""
    end = (1 << 63) - room
    return all(
        isinstance(value, int) and -(1 << 63) <= value < end
        for value in values
        if not is_missing(value)
    )


def _several(value: object) -> list[str]:
    """Labels of a row: the entries of a list, or text that is parted as in a csv."""
    if isinstance(value, str):
        return [label for label in value.split(SEPARATOR) if label]
    labels = value if isinstance(value, list) else [value]
    return [_cell(label) for label in labels if not is_missing(label)]


def _cell(value: object) -> str:
    """A cell as text: that of lists and dicts is JSON."""
    if isinstance(value, list | dict):
        return json.dumps(value)
    return "" if is_missing(value) else str(value)
