# SPDX-License-Identifier: Apache-2.0
"""Safetensors files with a header of ours: written whole or not at all, read without unpickling."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fclearn._files import reason, replacing


def save_tensors(
    path: str | os.PathLike[str],
    kind: str,
    version: int,
    header: Mapping[str, object],
    tensors: Mapping[str, Tensor],
) -> None:
    """Write a file.

    Args:
        path: File to write.
        kind: Name of what it holds, as in ``"fclearn.Adapter"``.
        version: Of its format.
        header: JSON values.
        tensors: By name, any device.

    Raises:
        OSError: The folder cannot be made or written, or the disk is full.

    Example:
        >>> import torch
        >>> save_tensors("x.safetensors", "fclearn.X", 1, {"a": 2}, {"t": torch.ones(1)})
        >>> with reading("x.safetensors", "X"):
        ...     load_tensors("x.safetensors", "fclearn.X", 1)
        ({'version': 1, 'a': 2}, {'t': tensor([1.])})
    """
    text = json.dumps({"version": version, **header})
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, plain, {kind: text})


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write contiguous tensors on the CPU under any header.

    Raises:
        OSError: The folder cannot be made or written, or the disk is full.
    """
    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:
            # The library has the system's error in words only.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def load_tensors(
    path: str | os.PathLike[str], kind: str, version: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save_tensors` wrote; call it inside `reading`.

    Returns:
        The header and the tensors, on the CPU.

    Raises:
        ValueError: A file of another kind or version; others as `safetensors` has them.
    """
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(kind)
        if text is None:
            raise ValueError(f"no header {kind!r}")
        header = json.loads(text)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header["version"] != version:
        raise ValueError(f"format version {header['version']}, expected {version}")
    return header, tensors


def has_kind(path: str | os.PathLike[str], kind: str) -> bool:
    """Whether a file is one that `save_tensors` wrote of this kind; its tensors are not read.

    Example:
        >>> import torch
        >>> save_tensors("x.safetensors", "fclearn.X", 1, {}, {"t": torch.ones(1)})
        >>> has_kind("x.safetensors", "fclearn.X"), has_kind("x.safetensors", "fclearn.Y")
        (True, False)
    """
    try:
        with safe_open(path, framework="pt") as file:
            return kind in (file.metadata() or {})
    except Exception:  # a file of anything can fail in many ways, and is of no kind
        return False


@contextmanager
def reading(path: str | os.PathLike[str], name: str) -> Iterator[None]:
    """Make whatever goes wrong with a file's content one clear line that names the file.

    Args:
        path: The file.
        name: Of what it should hold, for messages.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Anything the block could not make sense of.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such {name} file")
    try:
        yield
    except Exception as error:  # a hostile file can fail in many ways
        raise ValueError(f"{path}: not a valid {name} file: {reason(error)}") from error
