# SPDX-License-Identifier: Apache-2.0
"""Why a call failed, in words about its arguments: looked for once it has.

Of an argument of another type Python says which attribute it lacks, and torch recites the schema of
an operator. Looking before every call would cost the good ones, which take microseconds.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def need_tensors(function: str, **arguments: object) -> None:
    """Refuse what is no tensor, by the name of the argument.

    Raises:
        TypeError: One is none; without the error that is being handled.

    Example:
        >>> from fcl_ext._explain import need_tensors
        >>> need_tensors("compat_loss", labels=[0, 1])
        Traceback (most recent call last):
        ...
        TypeError: compat_loss: expected labels to be a tensor, got list
    """
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            got = type(value).__name__
            if isinstance(value, np.ndarray):
                got = "a numpy array; torch.from_numpy makes one of it"
            raise TypeError(f"{function}: expected {name} to be a tensor, got {got}") from None


def need_integer(function: str, name: str, value: object) -> None:
    """Refuse what cannot count, such as 3.0.

    Raises:
        TypeError: It is no integer; without the error that is being handled.
    """
    if not hasattr(value, "__index__"):
        raise TypeError(f"{_expected(function, name, 'an integer')}, got {value!r}") from None


def need_number(function: str, name: str, value: object) -> None:
    """Refuse what is no real number, such as "16", None or 1j.

    Raises:
        TypeError: It is none; without the error that is being handled.

    Example:
        >>> from fcl_ext._explain import need_number
        >>> need_number("", "scale", "16")
        Traceback (most recent call last):
        ...
        TypeError: scale: expected a number, got '16'
    """
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        raise TypeError(f"{_expected(function, name, 'a number')}, got {value!r}") from None


def need_text(function: str, name: str, value: object) -> None:
    """Refuse what is no text.

    Raises:
        TypeError: It is none; without the error that is being handled.
    """
    if not isinstance(value, str):
        raise TypeError(f"{_expected(function, name, 'a str')}, got {value!r}") from None


def _expected(function: str, name: str, what: str) -> str:
    """Of a function of the package, or, where it is a method or shared, of the argument alone."""
    return f"{function}: expected {name} to be {what}" if function else f"{name}: expected {what}"
