# SPDX-License-Identifier: Apache-2.0
"""Plain values, as yaml gives them, into typed dataclasses; whatever does not fit is named."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from fclearn.wording import shown

Config = TypeVar("Config")


def build(kind: type[Config], values: object) -> Config:
    """Make a dataclass, and those nested in it, from a mapping.

    Args:
        kind: A dataclass whose fields are bool, int, float, str, `Literal`, None, tuples or string
            mappings of these, or such dataclasses.
        values: A mapping; fields that it lacks keep their defaults.

    Raises:
        TypeError: A value of another type; the message names key, expectation and value.
        ValueError: An unknown key (the nearest is suggested), or what a dataclass refuses.
    """
    return cast("Config", _section(values, kind, "", list(_all_keys(kind))))


def _all_keys(kind: type, prefix: str = "") -> Iterator[str]:
    for name, expected in _types(kind).items():
        yield prefix + name
        if is_dataclass(expected):
            yield from _all_keys(cast("type", expected), f"{prefix}{name}.")


def _types(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _section(value: object, kind: type, path: str, keys: Sequence[str]) -> object:
    """Build the dataclass at ``path`` (empty, or ending in a dot)."""
    value = {} if value is None else value  # a section with all its lines commented out
    if not isinstance(value, dict):
        raise TypeError(f"{path[:-1]}: expected a mapping of keys, got {_describe(value)}")
    types = _types(kind)
    for key in value:
        if key not in types:
            raise ValueError(
                f"config: unknown key {path + str(key)!r}; {_suggest(path, key, keys)}"
            )
    missing = [
        path + item.name
        for item in fields(kind)
        if item.name not in value and item.default is item.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"config: missing key {missing[0]!r}")
    values = {
        name: _convert(value[name], expected, path + name, keys)
        for name, expected in types.items()
        if name in value
    }
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        # What a dataclass refuses starts with the name of its field.
        raise type(error)(f"{path}{error}") from error


def _suggest(path: str, key: object, keys: Sequence[str]) -> str:
    elsewhere = [known for known in keys if known.rpartition(".")[2] == str(key)]
    if len(elsewhere) == 1:
        return f"did you mean {elsewhere[0]!r}?"
    siblings = [k.removeprefix(path) for k in keys if k.startswith(path)]
    siblings = [name for name in siblings if "." not in name]
    close = get_close_matches(str(key), siblings, n=1)
    if close:
        return f"did you mean {path + close[0]!r}?"
    return "expected one of " + ", ".join(repr(path + name) for name in siblings)


def _convert(value: object, expected: Any, path: str, keys: Sequence[str]) -> object:
    if is_dataclass(expected):
        return _section(value, cast("type", expected), f"{path}.", keys)
    converted = _match(value, expected)
    if converted is _MISMATCH:
        raise TypeError(f"{path}: expected {_expectation(expected)}, got {_describe(value)}")
    return converted


_MISMATCH = object()


def _match(value: object, expected: Any) -> object:
    """The value as the expected type, or `_MISMATCH`."""
    origin, arguments = get_origin(expected), get_args(expected)
    if origin in {Union, UnionType}:
        found = (_match(value, option) for option in arguments)
        return next((item for item in found if item is not _MISMATCH), _MISMATCH)
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else _MISMATCH
    if origin in {tuple, Mapping}:
        return _match_items(value, origin, arguments)
    if isinstance(value, bool) and expected is not bool:  # to Python, true is also 1
        return _MISMATCH
    if expected is float and isinstance(value, int | float):
        return float(value) if math.isfinite(value) else _MISMATCH
    return value if isinstance(value, expected) else _MISMATCH


def _match_items(value: object, origin: type, arguments: tuple[Any, ...]) -> object:
    if origin is tuple and isinstance(value, list):
        items = tuple(_match(item, arguments[0]) for item in value)
        return _MISMATCH if _MISMATCH in items else items
    if origin is Mapping and isinstance(value, dict):
        entries = {key: _match(item, arguments[1]) for key, item in value.items()}
        plain = all(isinstance(key, str) for key in value)
        return entries if plain and _MISMATCH not in entries.values() else _MISMATCH
    return _MISMATCH


def _expectation(expected: Any) -> str:
    origin, arguments = get_origin(expected), get_args(expected)
    if origin in {Union, UnionType}:
        return " or ".join(_expectation(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(value) for value in arguments)
    if origin is tuple:
        return f"a list, each item {_expectation(arguments[0])}"
    if origin is Mapping:
        return f"a mapping, each value {_expectation(arguments[1])}"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return "null" if expected is NoneType else names.get(expected, str(expected))


def _describe(value: object) -> str:
    names = {bool: "", NoneType: "", int: " (an integer)", float: " (a number)", str: " (text)"}
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    return f"{shown(value)}{names.get(type(value), '')}"
