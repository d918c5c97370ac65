# SPDX-License-Identifier: Apache-2.0
"""Undoing a push from its journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fclearn.features import Fingerprint
from fclearn.stores.base import Found, RowStore, StoreInfo, VectorStore
from fclearn.stores.files import FileStore
from fclearn.stores.journal import UNDONE, Before, Journal, same_rows, sketch
from fclearn.stores.opening import patiently
from fclearn.stores.push_file import digest, put_back
from fclearn.wording import some


@dataclass(frozen=True)
class RollbackResult:
    """What a rollback did, or with ``dry_run`` would do.

    Attributes:
        restored: Rows that have their old vector again.
        removed: Rows or vectors that the push had added, and that are gone.
        dry_run: Whether nothing was written.
    """

    restored: int
    removed: int
    dry_run: bool


def rollback(
    journal: Journal,
    store: VectorStore,
    *,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RollbackResult:
    """Bring a store back to what it was before a push, finished or not.

    What the push added is removed; what it replaced is put back; what it made is removed if
    nothing of anybody else is in it. Interrupted, the same call goes on.

    Args:
        journal: Of the push.
        store: The store that it went to.
        force: Put old vectors back also where somebody changed a row after the push.
        dry_run: Check and count, write nothing.
        progress: Called with batches undone and batches there are.

    Raises:
        StoreConnectionError: The store stays away.
        ValueError: Not the push's store, or rows that somebody changed since; they are named, and
            nothing is touched.
    """
    if not journal.settings:
        raise ValueError(f"{journal.folder}: expected the journal of a push, found none")
    if journal.settings.get("state") == UNDONE:
        return RollbackResult(0, 0, dry_run)
    with journal.locked():
        if isinstance(store, FileStore):
            result = _undo_file(journal, store, force=force, dry_run=dry_run)
        elif isinstance(store, RowStore):
            result = _undo_rows(journal, store, progress, force=force, dry_run=dry_run)
        else:
            raise TypeError(f"store: expected one that can be written, got {type(store).__name__}")
        if not dry_run:
            journal.mark(UNDONE)
    return result


def _undo_rows(
    journal: Journal,
    store: RowStore,
    progress: Callable[[int, int], None] | None,
    *,
    force: bool,
    dry_run: bool,
) -> RollbackResult:
    info = patiently(store, store.info)
    if info is None:
        if journal.settings["made"]:
            return RollbackResult(0, 0, dry_run)  # killed before it was made, or after it was gone
        raise ValueError(f"store {store.url}: what was pushed to is no longer there")
    restored = removed = 0
    foreign: list[str] = []
    for _, before, _, touch in _batches(journal, store, foreign):
        restored += int((touch & before.found.vector).sum())
        removed += int((touch & ~before.found.vector).sum())
    if foreign and not force:
        raise ValueError(
            f"store {store.url}: {len(foreign)} rows were changed after the push: {some(foreign)}; "
            "forcing puts the old vectors back all the same"
        )
    if dry_run:
        return RollbackResult(restored, removed, dry_run)
    total = journal.num_batches()
    for done, (_, before, now, touch) in enumerate(_batches(journal, store, []), start=1):
        patiently(store, partial(_restore, store, before, now, touch))
        if progress is not None:
            progress(done, total)
    if journal.settings["tag"] is not None:
        _restore_tag(journal, store, info)
    if journal.settings["made"]:
        patiently(store, lambda: store.drop(container=journal.settings["made"] == "container"))
    return RollbackResult(restored, removed, dry_run)


def _batches(
    journal: Journal, store: RowStore, foreign: list[str]
) -> Iterator[tuple[int, Before, Found, NDArray[np.bool_]]]:
    """Batches, what they were, what they are, and which rows are to be undone.

    Ids of rows that are neither what they were nor what was pushed are added to ``foreign``.
    """
    for number in range(journal.num_batches()):
        before, after = journal.before(number), journal.after(number)
        if before is None:
            continue
        ids = before.ids
        now = patiently(store, partial(store.lookup, ids))
        was = before.found
        restored = (now.row == was.row) & (now.vector == was.vector)
        if was.vector.any():
            restored &= ~was.vector | same_rows(now.vectors, sketch(was.vectors))
        if after is not None:
            pushed = now.vector & same_rows(now.vectors, after)
            foreign += [ids[row] for row in np.flatnonzero(~restored & ~pushed)]
        yield number, before, now, ~restored


def _restore(store: RowStore, before: Before, now: Found, touch: NDArray[np.bool_]) -> None:
    ids, was = before.ids, before.found
    there = touch & now.row
    back = np.flatnonzero(there & was.vector)
    if len(back):
        store.update([ids[row] for row in back], was.vectors[back])
    unset = [ids[row] for row in np.flatnonzero(there & was.row & ~was.vector)]
    if unset:
        store.unset(unset)
    added = [ids[row] for row in np.flatnonzero(there & ~was.row)]
    if added:
        store.delete(added)


def _restore_tag(journal: Journal, store: RowStore, info: StoreInfo) -> None:
    tag = Fingerprint.from_dict(journal.settings["tag"])
    patiently(store, lambda: store.write_tag(tag, owned=info.owned))


def _undo_file(journal: Journal, store: FileStore, *, force: bool, dry_run: bool) -> RollbackResult:
    settings, rows = journal.settings, int(journal.settings["rows"])
    now, before = digest(store.path), settings.get("digest_before")
    if "digest_before" not in settings or now == before:
        return RollbackResult(0, 0, dry_run)
    if now != settings.get("digest_after") and not force:
        raise ValueError(
            f"store {store.url}: the file was changed after the push; forcing puts the old one "
            "back all the same"
        )
    if not dry_run and before is None:
        for path in (store.path, *store.companions):
            path.unlink(missing_ok=True)
    elif not dry_run:
        if digest(journal.kept_file) != before:
            raise ValueError(f"{journal.kept_file}: not the file that was there before the push")
        put_back(store.path, journal.kept_file)
    return RollbackResult(0 if before is None else rows, rows if before is None else 0, dry_run)
