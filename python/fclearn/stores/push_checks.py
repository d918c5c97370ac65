# SPDX-License-Identifier: Apache-2.0
"""What a push looks at before its first write, and after each batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as changed
from functools import partial

import numpy as np

from fclearn.features import Fingerprint
from fclearn.stores.base import RowStore, StoreInfo, Vectors, VectorStore
from fclearn.stores.files import FileStore
from fclearn.stores.journal import Journal
from fclearn.stores.opening import patiently
from fclearn.stores.selection import Selection
from fclearn.wording import some

# Of a row's norm: float16 rounds by 5e-4.
_TOLERANCE = 2e-3
_JOINT = " + "


def check_target_rows(
    selection: Selection, store: VectorStore, info: StoreInfo | None, *, replace: bool, size: int
) -> dict[str, object]:
    """Refuse what does not fit; count what would be written.

    Args:
        selection: What would be pushed.
        store: Where to.
        info: What it says of itself.
        replace: Whether vectors that are there may be overwritten.
        size: Rows looked up at a time.

    Returns:
        ``inserted``, ``replaced`` and ``made`` of a `PushResult`.

    Raises:
        ValueError: Other widths or fingerprints, ids that the store lacks, or has already.
    """
    fingerprint, count = selection.store.fingerprint, len(selection.ids)
    if info is not None:
        if info.dim not in {0, fingerprint.dim}:
            raise ValueError(
                f"store {store.url}: expected features of {info.dim} numbers, as it holds, got "
                f"{fingerprint.dim}"
            )
        if info.fingerprint is not None and not info.takes_rows and not replace:
            fingerprint.check_same(info.fingerprint, f"{selection.store.path} into {store.url}")
    store.check_ids(selection.ids)
    if isinstance(store, FileStore):
        return _check_file(selection, store, info, replace=replace)
    if not isinstance(store, RowStore):
        raise TypeError(f"store: expected one that can be written, got {type(store).__name__}")
    if info is None and replace:
        raise ValueError(f"store {store.url}: nothing is there to replace")
    if info is None and not patiently(store, store.has_container):
        return {"inserted": count, "replaced": 0, "made": "container"}
    absent: list[str] = []
    held: list[str] = []
    for _, ids, _, _ in selection.batches(size):
        found = patiently(store, partial(store.lookup, ids))
        absent += [ids[row] for row in np.flatnonzero(~found.row)]
        held += [ids[row] for row in np.flatnonzero(found.vector)]
    if held and not replace:
        raise ValueError(
            f"store {store.url}: has vectors of {len(held)} of {count} ids already: {some(held)}; "
            "only replacing overwrites them"
        )
    if absent and (replace or info is None or not (info.owned or info.takes_rows)):
        raise ValueError(
            f"store {store.url}: lacks {len(absent)} of {count} ids: {some(absent)}; rows are "
            "added only where push made the table or collection or found it empty, and never when "
            "replacing"
        )
    return {
        "inserted": count - len(held),
        "replaced": len(held),
        "made": "vector" if info is None else "",
    }


def check_written(
    store: RowStore,
    ids: Sequence[str],
    vectors: Vectors,
    info: StoreInfo,
    book: Journal,
    number: int,
) -> None:
    """Read a batch back, compare it with what was written, and record it as done.

    Raises:
        ValueError: The store holds something else; the first ids are named.
    """
    found = patiently(store, lambda: store.lookup(ids))
    expected = vectors.astype(np.float64)
    scale = np.linalg.norm(expected, axis=1, keepdims=True)
    if info.normalises:
        expected, scale = expected / scale, np.ones_like(scale)
    wrong = ~found.vector | (np.abs(found.vectors - expected) > _TOLERANCE * scale).any(axis=1)
    if wrong.any():
        names = [ids[row] for row in np.flatnonzero(wrong).tolist()]
        raise ValueError(
            f"store {store.url}: does not hold what was written for {len(names)} ids: {some(names)}"
        )
    book.write_after(number, found.vectors)


def mixed(old: Fingerprint, new: Fingerprint) -> Fingerprint:
    """What made a store in which vectors of one model were replaced by those of another.

    Example:
        >>> mixed(Fingerprint("a", 2), Fingerprint("b", 2)).model
        'a + b'
    """
    models = dict.fromkeys([*old.model.split(_JOINT), *new.model.split(_JOINT)])
    return changed(
        old,
        model=_JOINT.join(models),
        norm=old.norm if old.norm == new.norm else "none",
        preprocessing=old.preprocessing if old.preprocessing == new.preprocessing else "mixed",
    )


def _check_file(
    selection: Selection, store: FileStore, info: StoreInfo | None, *, replace: bool
) -> dict[str, object]:
    count = len(selection.ids)
    if not replace:
        there = [path for path in (store.path, *store.companions) if path.exists()]
        if there:
            raise ValueError(
                f"store {store.url}: expected no such file yet: {there[0]} is written anew only "
                "when replacing"
            )
        return {"inserted": count, "replaced": 0, "made": "container"}
    if info is None:
        raise ValueError(f"store {store.url}: nothing is there to replace")
    known = set(store.ids())
    absent = [name for name in selection.ids if name not in known]
    if absent:
        raise ValueError(f"store {store.url}: lacks {len(absent)} of {count} ids: {some(absent)}")
    return {"inserted": 0, "replaced": count, "made": ""}
