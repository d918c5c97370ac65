# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def reason(error: BaseException) -> str:
    r"""What an exception says, on one line.

    Example:
        >>> reason(ValueError("expected\n  a matrix")), reason(RecursionError())
        ('expected a matrix', 'RecursionError')
    """
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    Args:
        path: File to create or replace. Its folder is made if needed.

    Raises:
        OSError: The folder cannot be made or written.

    Example:
        >>> with replacing("notes.txt") as temporary:
        ...     _ = temporary.write_text("whole or absent")
        >>> Path("notes.txt").read_text()
        'whole or absent'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            yield temporary
        except OSError as error:
            # A write to a full disk knows no name, and a line without one helps nobody.
            if error.filename is not None or error.errno is None:
                raise
            text = f"cannot be written: {error.strerror}"
            raise OSError(error.errno, text, str(target)) from error
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; give the result the permissions any new file would get.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
