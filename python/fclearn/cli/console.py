# SPDX-License-Identifier: Apache-2.0
"""What the verbs print, and where: JSON on stdout, everything for people on stderr."""

from __future__ import annotations

import inspect
import json
import math
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from fclearn._launch import own_rank

if TYPE_CHECKING:
    from rich.table import Table

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")
]


def say(text: str) -> None:
    """Print a line for people; of the processes of a torchrun, the first one does."""
    if own_rank() == 0:
        print(text, file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Print an error; every process of a torchrun does, as only some may have it."""
    rank = own_rank()
    print(f"[rank {rank}] {text}" if rank else text, file=sys.stderr, flush=True)


def draw(table: Table, *, stdout: bool = False) -> None:
    """Print a table for people, with nothing of it cut; as `say`.

    In a terminal, cells that are too wide go on in their next line. A file or another program gets
    each row as wide as it is, as nothing there has a width to keep to.

    Args:
        table: Its columns are changed: they may wrap.
        stdout: Whether to print there, as the result of a verb rather than beside it.
    """
    if own_rank() != 0:
        return
    from rich.console import Console

    for column in table.columns:
        column.no_wrap, column.overflow = False, "fold"
    console = Console(stderr=not stdout)
    # Asked of the stream itself: rich takes FORCE_COLOR for a terminal.
    if not console.file.isatty():
        console.width = sys.maxsize  # or the measure would be that of a terminal of 80 columns
        console.width = console.measure(table).maximum
    console.print(table)


def emit(result: Mapping[str, object]) -> None:
    """Print the result as one strict JSON object: what is not finite becomes null."""
    if own_rank() != 0:
        return
    print(json.dumps(_strict(result), indent=2, allow_nan=False), flush=True)


def command_of(context: typer.Context) -> str:
    """The command line of a verb again, of what was given; without ``--json``.

    Args:
        context: Of the verb.
    """
    words = ["fcl", context.info_name or ""]
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name == "json":
            continue
        value = context.params[name]
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, bool):
                words.append((parameter.opts if one else parameter.secondary_opts)[0])
            elif parameter.param_type_name == "argument":
                words.append(str(one))
            else:
                words += [parameter.opts[0], str(one)]
    return shlex.join(words)


def one_line(error: Exception) -> str:
    """An exception's message on one line, without numbers only the system knows.

    Example:
        >>> one_line(FileNotFoundError(2, "No such file or directory", "a.yaml"))
        'a.yaml: No such file or directory'
    """
    format_message = getattr(error, "format_message", None)  # of click's usage errors
    if format_message is not None:
        text = str(format_message())
    elif isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__


def unwrapped(doc: str) -> str:
    r"""A docstring as help: paragraphs on one line each, for the terminal to wrap.

    Paragraphs marked by a backspace (``\b``) keep their lines, as click has it.

    Example:
        >>> unwrapped("One\n    two.\n\n    \b\n    a\n      b\n")
        'One two.\n\n\x08\na\n  b'
    """
    paragraphs = inspect.cleandoc(doc).split("\n\n")
    return "\n\n".join(
        text.rstrip() if text.startswith("\b") else " ".join(text.split()) for text in paragraphs
    )


def _strict(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
