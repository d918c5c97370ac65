# SPDX-License-Identifier: Apache-2.0
"""Option ``--split`` of the verbs that measure adapters on items held out."""

from __future__ import annotations

from typing import Annotated

import typer

SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="classes|items",
        help="Measure on classes held out (so it is unless said), as where classes are to come; or "
        "on items held out of the same classes, as where the gallery keeps those it has.",
    ),
]

#: What the other split would tell.
_OTHER = {
    "classes": "where the gallery keeps the classes it has, adapters may do better: --split items "
    "measures that",
    "items": "where classes are to come, adapters may do worse: --split classes measures that",
}


def check_split(split: str | None) -> None:
    """Refuse what is none, before anything is read.

    Raises:
        ValueError: Such a split.
    """
    if split is not None and split not in _OTHER:
        raise ValueError(f"--split: expected one of {list(_OTHER)}, got {split!r}")


def other_split(split: str) -> str:
    """What the other split would tell, in a line.

    Example:
        >>> other_split("items")
        'where classes are to come, adapters may do worse: --split classes measures that'
    """
    return _OTHER[split]
