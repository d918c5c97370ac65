# SPDX-License-Identifier: Apache-2.0
"""Which sets of CUDA kernels have been verified on a GPU.

An operator can have several sets ("paths"): plain ``simt`` kernels and faster ones that use tensor
cores. One that never ran on a GPU is not the default: ``cuda_verified.json`` beside this file names
those that have, with the device, and only they are taken unasked. ``FCL_CUDA_PATH=<name>`` in the
environment asks for a path; the operators say which names there are.
"""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

_FILE = Path(__file__).with_name("cuda_verified.json")


@dataclass(frozen=True)
class Verified:
    """One path of one operator, whose tests passed on a GPU.

    Args:
        path: Name of the path, as in ``FCL_CUDA_PATH``.
        op: Operator, as in ``torch.ops.fcl``.
        device: Name of the GPU.
        torch: Version of torch.
        date: Day of the run, ``YYYY-MM-DD``.
    """

    path: str
    op: str
    device: str
    torch: str
    date: str


def verified(file: Path = _FILE) -> list[Verified]:
    """Paths that were verified on a GPU, as recorded in ``file``.

    Raises:
        ValueError: The file is not a list of such records.

    Example:
        >>> from fcl_ext import cuda_paths
        >>> all(entry.device for entry in cuda_paths.verified())
        True
    """
    names = {field.name for field in fields(Verified)}
    records = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(records, list):
        raise ValueError(f"{file}: expected a list of records, got {type(records).__name__}")
    for record in records:
        if not isinstance(record, dict) or set(record) != names:
            raise ValueError(f"{file}: expected records of {sorted(names)}, got {record!r}")
        if not all(isinstance(value, str) and value for value in record.values()):
            raise ValueError(f"{file}: expected non-empty strings, got {record!r}")
    return [Verified(**record) for record in records]


def is_taken(op: str, path: str) -> bool:
    """Whether work for which Python picks the operator goes to this path of it.

    True where ``FCL_CUDA_PATH`` names it, or names nothing and the path was verified on a GPU.

    Example:
        >>> from fcl_ext import cuda_paths
        >>> cuda_paths.is_taken("random_walk_union", "no such path")
        False
    """
    asked = os.environ.get("FCL_CUDA_PATH", "")
    if asked:
        return asked == path
    return any((entry.op, entry.path) == (op, path) for entry in verified())


def export(library: ctypes.CDLL, entries: list[Verified]) -> None:
    """Tell the loaded CUDA library which paths it may take unasked.

    Raises:
        ValueError: The library has no such operator or path.
    """
    library.fcl_cuda_set_verified.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_bool]
    library.fcl_cuda_set_verified.restype = ctypes.c_bool
    for entry in entries:
        if not library.fcl_cuda_set_verified(entry.op.encode(), entry.path.encode(), True):
            raise ValueError(f"{_FILE}: no path {entry.path} of an operator {entry.op}")
