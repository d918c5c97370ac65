# SPDX-License-Identifier: Apache-2.0
"""JSON files of reports: strict, whole or absent."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from fclearn._files import replacing


def with_facts(data: Mapping[str, object], facts: Mapping[str, object] | None) -> dict[str, Any]:
    """The numbers of a report and what else is said about it, as strict JSON values.

    Raises:
        ValueError: A fact under a name the report uses itself.
        TypeError: A fact that JSON cannot hold.
    """
    merged = dict(data)
    for name, value in (facts or {}).items():
        if name in data:
            raise ValueError(f"facts: {name!r} is a number of the report itself; choose another")
        merged[name] = value
    strict = _strict(merged, "facts")
    assert isinstance(strict, dict)  # a dict stays one
    return strict


@contextmanager
def damage_said(what: str) -> Iterator[None]:
    """Turn what the writer of a page stumbles over in damaged numbers into one error.

    Args:
        what: What is wrong then, file first.

    Raises:
        ValueError: It, and what it stumbled over.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, jinja2.TemplateError) as error:
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files one after the other, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)


def dump(value: object) -> bytes:
    """A JSON file."""
    return (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def load(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: Not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def _strict(value: object, where: str) -> object:
    """JSON values only: what is not finite becomes None, numpy's scalars become Python's."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item, f"{where}[{at}]") for at, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{where}: expected a JSON value, got {type(value).__name__}")
