# SPDX-License-Identifier: Apache-2.0
"""How messages suggest the right name, and name what they are about."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

_Named = TypeVar("_Named")
_MOST = 3
_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother, _SHOWN.maxlong = 2, 120, 120, 40


def nearest(given: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` where one is near, else the list of the known names.

    Example:
        >>> nearest("epoch", ["epochs", "seed"]), nearest("?", ["a", "b"])
        ("did you mean 'epochs'?", "expected one of 'a', 'b'")
    """
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "expected one of " + ", ".join(repr(name) for name in names)


def shown(value: object) -> str:
    """A value from a file, in a message: short, however deep or repetitive it is.

    Yaml's aliases make values whose whole ``repr`` would not fit in memory.

    Example:
        >>> shown([1, "two"]), len(shown([[["x" * 500] * 500] * 500] * 500)) < 5000
        ("[1, 'two']", True)
    """
    return _SHOWN.repr(value)


def some(values: Sequence[_Named], text: Callable[[_Named], str] = repr) -> str:
    """The first three, and whether there are more.

    Example:
        >>> some(["a", "b", "c", "d"]), some([1, 2], "no. {}".format)
        ("'a', 'b', 'c', …", 'no. 1, no. 2')
    """
    return ", ".join(map(text, values[:_MOST])) + (", …" if len(values) > _MOST else "")
