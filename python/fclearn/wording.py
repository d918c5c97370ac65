# SPDX-License-Identifier: Apache-2.0
"""How messages suggest the right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
