# SPDX-License-Identifier: Apache-2.0
"""A long loop and who waits for it: a bar of its epochs, or lines, and Ctrl-C between its steps."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
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


class ProgressLines:
    """Lines about a training for a log: after its first epoch, then now and then.

    Args:
        log: Takes a line.
        epochs: Of the training.
        steps: Of an epoch.
        done: Steps that an earlier run has done.
    """

    #: Seconds between lines, at least.
    EVERY = 30.0

    def __init__(self, log: Callable[[str], None], *, epochs: int, steps: int, done: int) -> None:
        self._log, self._epochs, self._steps = log, epochs, steps
        self._first, self._said = done, False
        self._begun = self._last = time.monotonic()

    def step(self, done: int, loss: float) -> None:
        """Say a line if it is time.

        Args:
            done: Steps done, of the whole training.
            loss: Mean of the epoch so far.
        """
        now, left = time.monotonic(), self._epochs * self._steps - done
        # Early, as whoever looks wants to know how long it will take; the last step is not news.
        is_first = not self._said and done % self._steps == 0
        if not left or not (is_first or now - self._last >= self.EVERY):
            return
        self._last, self._said = now, True
        epoch, step = divmod(done - 1, self._steps)
        seconds = (now - self._begun) / (done - self._first) * left
        self._log(
            f"epoch {epoch + 1}/{self._epochs}, step {step + 1}/{self._steps}, loss {loss:.3f}, "
            f"{timedelta(seconds=round(seconds))} left"
        )


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
