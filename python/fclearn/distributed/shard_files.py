# SPDX-License-Identifier: Apache-2.0
"""A long job cut into pieces, each of which is a file: done by many processes, and done once.

Pieces do not depend on the number of processes, so a job that was killed goes on with any number,
with the pieces it lacks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fclearn._files import replacing
from fclearn.distributed.world import World

_KEY = "job.json"
Arrays = dict[str, NDArray[np.generic]]


def pieces(total: int, width: int) -> list[tuple[int, int]]:
    """Ranges ``[begin, end)`` of ``width`` from 0 to ``total``, the last one shorter.

    Example:
        >>> pieces(5, 2)
        [(0, 2), (2, 4), (4, 5)]
    """
    return [(begin, min(begin + width, total)) for begin in range(0, total, width)]


class ShardFiles:
    """The files of one job, in a folder beside its result.

    Args:
        result: What the job makes; the folder is ``.NAME.shards`` beside it.
        key: What makes the job this one, JSON values: pieces of another are refused.
        ranges: Its pieces.
        world: Processes, all of which see the same disk.

    Raises:
        ValueError: The folder holds pieces of another job, or is not one that all processes see;
            every process raises.
        OSError: It cannot be written.
    """

    def __init__(
        self,
        result: Path,
        key: Mapping[str, object],
        ranges: list[tuple[int, int]],
        world: World,
    ) -> None:
        self.folder = result.with_name(f".{result.name}.shards")
        self._ranges = ranges
        self._world = world
        wanted = json.dumps({**key, "ranges": ranges}, sort_keys=True)
        found = world.from_first(self._claim(wanted) if world.is_first else None)
        if found != wanted:
            raise ValueError(
                f"{self.folder}: holds pieces of a job with other inputs or settings; remove it "
                "to start afresh"
            )
        world.check_shared(self.folder)

    def _claim(self, wanted: str) -> str:
        with suppress(FileNotFoundError):
            return (self.folder / _KEY).read_text(encoding="utf-8")
        with replacing(self.folder / _KEY) as temporary:
            temporary.write_text(wanted, encoding="utf-8")
        return wanted

    def path(self, begin: int) -> Path:
        """Where a piece is, or will be."""
        return self.folder / f"{begin:012d}.safetensors"

    def missing(self) -> list[tuple[int, int]]:
        """The pieces that are not there, the same list on every process."""
        here = [self.path(begin).exists() for begin, _ in self._ranges]
        seen = self._world.from_first(here)
        return [piece for piece, exists in zip(self._ranges, seen, strict=True) if not exists]

    def run(self, work: Callable[[int, int], Arrays]) -> None:
        """Do this process's share of the missing pieces, and wait for the others.

        Args:
            work: From the begin and end of a piece to its arrays.

        Raises:
            OSError: A file cannot be written.
        """
        for begin, end in self.missing()[self._world.rank :: self._world.size]:
            arrays = {name: np.ascontiguousarray(x) for name, x in work(begin, end).items()}
            with replacing(self.path(begin)) as temporary:
                save_file(arrays, temporary)
        self._world.barrier()

    def read(self) -> Iterator[tuple[int, int, Arrays]]:
        """Every piece in order, one at a time.

        Raises:
            ValueError: A piece that is missing or damaged; it is removed, so that it will be made
                again.
        """
        for begin, end in self._ranges:
            try:
                yield begin, end, load_file(self.path(begin))
            except (SafetensorError, OSError) as error:
                self.path(begin).unlink(missing_ok=True)
                raise ValueError(
                    f"{self.path(begin)}: damaged, and removed ({error}); the same command makes "
                    "it again"
                ) from error

    def remove(self) -> None:
        """Remove all pieces, once all processes are done with them."""
        self._world.barrier()
        if self._world.is_first:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._world.barrier()
