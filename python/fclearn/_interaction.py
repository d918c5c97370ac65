# SPDX-License-Identifier: Apache-2.0
"""A long loop and the person in front of it: a bar of its epochs, and Ctrl-C between its steps."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

#: Called with the epochs done and the last one's row of the history.
Advance = Callable[[int, "Mapping[str, float] | None"], None]


@contextmanager
def epoch_bar(epochs: int, *, wanted: bool) -> Iterator[Advance]:
    """Progress bar on stderr, if it is wanted and a terminal."""
    with Progress(
        TextColumn("epoch {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (wanted and sys.stderr.isatty()),
    ) as bar:
        task = bar.add_task("", total=epochs)

        def advance(epoch: int, row: Mapping[str, float] | None) -> None:
            text = ""
            if row is not None:
                text = f"loss {row['loss']:.3f}, {row['images_per_second']:.0f} images/s"
            bar.update(task, completed=epoch, description=text)

        yield advance


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C instead of raising it anywhere; a second one raises at once."""
    hit = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal hit
        if hit:
            raise KeyboardInterrupt
        hit = True

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread: Ctrl-C is somebody else's business
        yield lambda: False
        return
    try:
        yield lambda: hit
    finally:
        signal.signal(signal.SIGINT, previous)
