# SPDX-License-Identifier: Apache-2.0
"""From a feature store into a store of vectors: in batches, with a journal, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fclearn.features import FeatureStore, Fingerprint
from fclearn.stores.base import RowStore, StoreInfo, Vectors, VectorStore
from fclearn.stores.files import FileStore
from fclearn.stores.journal import BEGUN, DONE, UNDONE, Journal
from fclearn.stores.opening import patiently
from fclearn.stores.push_checks import check_target_rows, check_written, mixed
from fclearn.stores.push_file import push_file
from fclearn.stores.selection import Selection, select
from fclearn.wording import some

Progress = Callable[[int, int], None]
_METRIC_NAMES = {"cosine": "cosine", "ip": "inner product", "l2": "distance"}


@dataclass(frozen=True)
class PushResult:
    """What a push did, or with ``dry_run`` would do.

    Attributes:
        rows: Rows of the push.
        inserted: Of these, rows that had no vector before.
        replaced: Rows whose vector is another now.
        made: ``"container"`` if the table, collection or file was made, ``"vector"`` if only the
            column or the named vector, else ``""``.
        journal: Folder that `rollback` takes.
        dry_run: Whether nothing was written.
        already_done: Whether an earlier call had done it all.
        notes: What happens to the numbers on the way.
    """

    rows: int
    inserted: int
    replaced: int
    made: str
    journal: Path
    dry_run: bool
    already_done: bool
    notes: list[str]

    def to_dict(self) -> dict[str, object]:
        """All fields, as JSON values."""
        return {**asdict(self), "journal": str(self.journal)}


def push(
    features: FeatureStore,
    store: VectorStore,
    *,
    ids: Sequence[str] | None = None,
    replace: bool = False,
    dry_run: bool = False,
    journal: str | os.PathLike[str] | None = None,
    payload: Sequence[str] = (),
    batch_size: int = 1000,
    progress: Progress | None = None,
) -> PushResult:
    """Write features into a store of vectors, beside what is there; `rollback` undoes it.

    Everything is checked before anything is written. What a batch was is on the disk before it
    changes, and writing a batch twice is the same as once: killed or disconnected at any instant,
    the same call goes on, and nothing is lost or doubled.

    Args:
        features: What to write.
        store: Where to: a new column, collection or file, or one of the same fingerprint.
        ids: Which rows, in which order; None for all.
        replace: Overwrite vectors that are there. Every id must be.
        dry_run: Check and count, write nothing.
        journal: Folder for the journal; by default beside the features, named after the push.
        payload: Columns of the manifest that new rows get.
        batch_size: Rows at a time, at least 1.
        progress: Called after each batch with rows written and rows there are.

    Raises:
        StoreConnectionError: The store stays away; the same call goes on later.
        ValueError: Anything that does not fit, named: ids, widths, fingerprints, rows with NaN;
            rows of other lengths than the fingerprint says, where the store's metric heeds them.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    for name in payload:
        if name not in features.manifest:
            raise ValueError(
                f"payload: expected columns of the manifest of {features.path}, got {name!r}"
            )
    info = patiently(store, store.info)
    cosine = features.fingerprint.metric == "cosine" and store.url.kind == "qdrant"
    selection = select(features, ids, refuse_zeros=info.normalises if info else cosine)
    settings: dict[str, Any] = {
        "store": str(store.url),
        "features": str(features.path.resolve()),
        "rows": len(selection.ids),
        "checksum": selection.checksum,
        "replace": replace,
        "payload": [*payload],
        "fingerprint": features.fingerprint.to_dict(),
    }
    if journal is None:
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        journal = features.path.resolve().with_name(f"{features.path.resolve().name}.push-{key}")
    book = Journal(journal)
    found = {key: book.settings.get(key) for key in settings}
    if book.settings and book.settings["state"] != UNDONE and found != settings:
        different = [key for key in settings if found[key] != settings[key]]
        raise ValueError(
            f"{book.folder}: the journal of another push ({', '.join(different)} differ); "
            "give a folder of its own"
        )
    if book.settings.get("state") == DONE:
        return _result(book, book.settings, dry_run=dry_run, already_done=True)
    work = _Push(selection, store, info, settings, book, batch_size)
    plan = book.settings if book.settings.get("state") == BEGUN else work.plan()
    if not dry_run:
        with book.locked():
            work.run(plan, progress)
    return _result(book, plan, dry_run=dry_run, already_done=False)


class _Push:
    """One push: what it would do, and doing it."""

    def __init__(
        self,
        selection: Selection,
        store: VectorStore,
        info: StoreInfo | None,
        settings: dict[str, Any],
        book: Journal,
        batch_size: int,
    ) -> None:
        self._selection, self._store, self._info = selection, store, info
        self._settings, self._book, self._batch_size = settings, book, batch_size

    def run(self, plan: dict[str, Any], progress: Progress | None) -> None:
        """Begin, or go on with what was begun."""
        book = self._book
        if book.settings.get("state") == DONE:
            return  # by another process, since this one looked
        if book.settings.get("state") != BEGUN:
            book.begin(plan)
        if isinstance(self._store, FileStore):
            push_file(self._store, self._selection, book)
        elif isinstance(self._store, RowStore):
            self._push_rows(self._store, progress)
        book.mark(DONE)

    def plan(self) -> dict[str, Any]:
        """What there is to do; nothing that does not fit gets beyond this."""
        replacing = bool(self._settings["replace"])
        fingerprint = self._selection.store.fingerprint
        counts = check_target_rows(
            self._selection, self._store, self._info, replace=replacing, size=self._batch_size
        )
        tag = None if self._info is None else self._info.fingerprint
        mixes = tag is not None and replacing and tag != fingerprint
        return {
            **self._settings,
            **counts,
            "batch_size": self._batch_size,
            "tag": tag.to_dict() if mixes and tag is not None else None,
            "notes": [
                *_notes(self._store, self._info, self._selection),
                *(["rows that exist get no payload"] if self._ignores_payload(counts) else []),
            ],
        }

    def _push_rows(self, store: RowStore, progress: Progress | None) -> None:
        book, features = self._book, self._selection.store
        info = patiently(store, store.info)
        if info is None and book.settings["made"]:
            patiently(store, partial(store.create, features.fingerprint))
            info = patiently(store, store.info)
        if info is None:
            raise ValueError(f"store {store.url}: it was there when the push began, now it is not")
        if info.takes_rows and info.fingerprint != features.fingerprint:  # nothing is in it yet
            patiently(store, partial(store.write_tag, features.fingerprint, owned=True))
        if book.settings["tag"] is not None:
            whole = mixed(Fingerprint.from_dict(book.settings["tag"]), features.fingerprint)
            patiently(store, partial(store.write_tag, whole, owned=info.owned))
        done = 0
        # The batches of the first call: another size now would not fit what was written down.
        for number, ids, vectors, rows in self._selection.batches(book.settings["batch_size"]):
            if book.after(number) is None:
                extra = [self._payload(int(row)) for row in rows]
                write = partial(self._push_batch, store, number, ids, vectors, extra)
                patiently(store, write)
                check_written(store, ids, vectors, info, book, number)
            done += len(ids)
            if progress is not None:
                progress(done, len(self._selection.ids))

    def _push_batch(
        self,
        store: RowStore,
        number: int,
        ids: list[str],
        vectors: Vectors,
        payload: list[dict[str, Any]],
    ) -> None:
        """Write down what is there, once; then write. All of it may be repeated."""
        before = self._book.before(number)
        if before is None:
            found = store.lookup(ids)
            if found.vector.any() and not self._settings["replace"]:
                raise ValueError(f"store {store.url}: somebody else wrote some of {some(ids)}")
            self._book.write_before(number, ids, found)
        else:
            found = before.found
        there, absent = np.flatnonzero(found.row), np.flatnonzero(~found.row)
        if len(there):
            store.update([ids[row] for row in there], vectors[there])
        if len(absent):
            new = [payload[row] for row in absent]
            store.insert([ids[row] for row in absent], vectors[absent], new)

    def _ignores_payload(self, counts: dict[str, object]) -> bool:
        return bool(self._settings["payload"]) and counts["made"] != "container"

    def _payload(self, row: int) -> dict[str, Any]:
        manifest = self._selection.store.manifest
        values = {name: manifest[name][row] for name in self._settings["payload"]}
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}


def _notes(store: VectorStore, info: StoreInfo | None, selection: Selection) -> list[str]:
    """What happens to the numbers; lengths are those of the rows, not what the fingerprint says.

    Raises:
        ValueError: The fingerprint is wrong about them, and results would be, too.
    """
    notes, fingerprint = [], selection.store.fingerprint
    compares = _made_with(store, fingerprint) if info is None else info.metric
    differs = compares not in {"", fingerprint.metric}
    if fingerprint.norm == "l2" and selection.other_lengths:
        others = f"{len(selection.other_lengths)} of {len(selection.ids)} rows"
        if differs:
            raise ValueError(
                f"{selection.store.path}: expected rows of unit length, as the fingerprint's norm "
                f"'l2' says and a store that compares by {_METRIC_NAMES[compares]} needs, got "
                f"other lengths in {others}: {some(selection.other_lengths)}; write the features "
                "again, normalised or with norm 'none'"
            )
        notes.append(f"the fingerprint says norm 'l2', but {others} are not of unit length")
    normalises = info.normalises if info else store.url.kind == "qdrant"
    if normalises and fingerprint.metric == "cosine" and not selection.all_unit:
        notes.append("the store brings rows to unit length: their norms are lost")
    if info is not None and info.dtype == "float16":
        notes.append("the store keeps float16")
    if info is not None and info.fingerprint is None:
        notes.append("the store does not say what made the vectors it has")
    if differs and not selection.all_unit:
        # Of unit rows, all three agree on who is nearer.
        notes.append(
            f"the store compares by {_METRIC_NAMES[compares]}, these features by "
            f"{_METRIC_NAMES[fingerprint.metric]}, and they are not unit length: it finds others"
        )
    return notes


def _made_with(store: VectorStore, fingerprint: Fingerprint) -> str:
    """How a container that is made for these features compares."""
    if store.url.kind == "faiss" and fingerprint.metric == "cosine":
        return "ip"
    return fingerprint.metric


def _result(
    book: Journal, plan: dict[str, Any], *, dry_run: bool, already_done: bool
) -> PushResult:
    return PushResult(
        plan["rows"],
        plan["inserted"],
        plan["replaced"],
        plan["made"],
        book.folder,
        dry_run=dry_run,
        already_done=already_done,
        notes=plan["notes"],
    )
