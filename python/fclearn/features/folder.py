# SPDX-License-Identifier: Apache-2.0
"""The folder of a feature store: its files, and how it appears whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fclearn.features.fingerprint import Fingerprint
from fclearn.features.manifest import FILES

FEATURES = "features.npy"
FINGERPRINT = "fingerprint.json"
PROGRESS = "progress.json"
SOURCE = "source.txt"
_OURS = {FEATURES, FINGERPRINT, PROGRESS, SOURCE, *FILES.values()}


def write_fingerprint(folder: Path, fingerprint: Fingerprint) -> None:
    """Write ``fingerprint.json``."""
    text = json.dumps(fingerprint.to_dict(), indent=2)
    (folder / FINGERPRINT).write_text(text + "\n", encoding="utf-8")


def check_target(path: str | os.PathLike[str]) -> Path:
    """The real path of a store to be, if nothing but an older store is there.

    Args:
        path: Folder to make or replace.

    Raises:
        ValueError: A file, or a folder with anything else in it: replacing would delete that.
    """
    target = Path(path).resolve()
    if not target.name:
        raise ValueError(f"{path}: expected a folder to make, got the root")
    if target.is_dir():
        others = sorted(entry.name for entry in target.iterdir() if entry.name not in _OURS)
        if others:
            raise ValueError(
                f"{path}: expected nothing or a feature store to replace, found a folder with "
                f"{others[0]!r} in it"
            )
    elif target.exists():
        raise ValueError(f"{path}: expected nothing or a feature store to replace, found a file")
    return target


def install(folder: Path, target: Path) -> None:
    """Rename a finished folder to its target; what was there is moved aside, then removed."""
    if not target.exists():
        folder.rename(target)
        return
    aside = target.parent / f".{target.name}.{secrets.token_hex(4)}.old"
    target.rename(aside)
    try:
        folder.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside)


def read_fingerprint(folder: Path) -> Fingerprint:
    """Read ``fingerprint.json``.

    Args:
        folder: Of the store.

    Raises:
        ValueError: No such file, not JSON, or not the fields of a fingerprint.
    """
    path = folder / FINGERPRINT
    if not path.is_file():
        raise ValueError(f"{path}: expected the fingerprint of a feature store, found nothing")
    try:
        return Fingerprint.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_source(folder: Path) -> str | None:
    """What a `FeatureWriter` was told that the rows of a store are made of; None: it was not.

    Args:
        folder: Of the store.
    """
    try:
        return (folder / SOURCE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make any OSError of the block name the store that was being written.

    Args:
        path: The store.

    Raises:
        OSError: Of the same number, naming ``path`` and the reason.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot write a feature store: {reason}", str(path)) from error
