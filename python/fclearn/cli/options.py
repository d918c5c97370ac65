# SPDX-License-Identifier: Apache-2.0
"""Options that hold several values, by commas."""

from __future__ import annotations


def read_names(text: str | None) -> list[str]:
    """Names by commas; blanks around them and empty ones do not count.

    Example:
        >>> read_names(" map, cmc@1,"), read_names(None)
        (['map', 'cmc@1'], [])
    """
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def read_integers(text: str | None, option: str) -> list[int]:
    """Integers by commas.

    Raises:
        ValueError: Something else.

    Example:
        >>> read_integers("0, 1,2", "--seeds")
        [0, 1, 2]
    """
    numbers = []
    for part in read_names(text):
        try:
            numbers.append(int(part))
        except ValueError:
            raise ValueError(f"{option}: expected integers by commas, got {part!r}") from None
    return numbers


def read_rates(text: str | None, option: str) -> list[float]:
    """Rates in (0, 1), by commas.

    Raises:
        ValueError: Something else.

    Example:
        >>> read_rates("1e-3,0.01", "--verify")
        [0.001, 0.01]
    """
    rates = []
    for part in read_names(text):
        try:
            rate = float(part)
        except ValueError:
            rate = -1.0
        if not 0 < rate < 1:
            raise ValueError(f"{option}: expected rates in (0, 1) by commas, got {part!r}")
        rates.append(rate)
    return rates
