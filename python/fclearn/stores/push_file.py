# SPDX-License-Identifier: Apache-2.0
"""A push into a store that is one file: written beside it, then renamed; the old one is kept."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from fclearn._files import replacing
from fclearn.features import Fingerprint
from fclearn.stores.files import FileRows, FileStore
from fclearn.stores.journal import BEGUN, Journal, sync_folder
from fclearn.stores.push_checks import mixed
from fclearn.stores.selection import Selection

_BLOCK_BYTES = 1 << 22


def push_file(store: FileStore, selection: Selection, book: Journal) -> None:
    """Write the file; called again after a kill at any instant, the result is the same.

    Raises:
        OSError: The file cannot be written.
        ValueError: Somebody else changed it meanwhile.
    """
    features = selection.store
    new = FileRows(selection.ids, features.features, selection.rows)
    now = digest(store.path)
    if now is not None and now == book.settings.get("digest_after"):
        _keep_mode(store.path, book.kept_file)
        return  # killed between the rename and the record of it
    if "digest_before" not in book.settings:
        if now is not None:
            _keep(store.path, book.kept_file)
        book.mark(BEGUN, digest_before=now)
    if now != book.settings["digest_before"]:
        raise ValueError(f"store {store.url}: the file was changed by somebody else meanwhile")
    with replacing(store.path) as temporary:
        if now is None:
            payload = {
                name: [features.manifest[name][row] for row in selection.rows.tolist()]
                for name in book.settings["payload"]
            }
            store.write_new(temporary, new, payload, features.fingerprint)
        else:
            tag = book.settings["tag"]
            whole = None if tag is None else mixed(Fingerprint.from_dict(tag), features.fingerprint)
            store.write_replaced(temporary, new, whole)
        book.mark(BEGUN, digest_after=digest(temporary))
    _keep_mode(store.path, book.kept_file)
    sync_folder(store.path.parent)


def put_back(path: Path, kept: Path) -> None:
    """Make a file what was kept of it."""
    mode = kept.stat().st_mode
    with replacing(path) as temporary:
        shutil.copyfile(kept, temporary)
    path.chmod(mode)
    sync_folder(path.parent)


def _keep(path: Path, kept: Path) -> None:
    """Keep a file under a second name, which costs no space where a link can do it."""
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)
    except OSError:  # another file system
        with replacing(kept) as temporary:
            shutil.copyfile(path, temporary)
        kept.chmod(path.stat().st_mode)


def _keep_mode(path: Path, kept: Path) -> None:
    """Give a rewritten file the permissions of the one it replaced."""
    if kept.exists():
        path.chmod(kept.stat().st_mode)


def digest(path: Path) -> str | None:
    """SHA-256 of a file's content; None if there is none."""
    if not path.exists():
        return None
    result = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            result.update(block)
    return result.hexdigest()
