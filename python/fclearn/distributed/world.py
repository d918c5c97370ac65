# SPDX-License-Identifier: Apache-2.0
"""The processes that torchrun started: who they are, and which of them speaks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast
from uuid import uuid4

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from fclearn._launch import under_torchrun

T = TypeVar("T")
_DISK_DELAY = 5.0  # seconds in which one host sees what another wrote, on a disk like NFS


@dataclass(frozen=True)
class World:
    """This process among those that work together.

    Attributes:
        group: All of them.
        rank: Number of this process, from 0.
        size: Number of processes.
        device: Where this one computes.
    """

    group: dist.ProcessGroup
    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        dist.barrier(self.group)

    def check_shared(self, folder: Path) -> None:
        """Refuse a folder, which the first process can write, where others see another one.

        Raises:
            ValueError: They do; every process raises.
            OSError: The first cannot write there.
        """
        mark = folder / self.from_first(f".seen-by-all-{uuid4().hex}")
        if self.is_first:
            mark.touch()
        self.barrier()
        deadline = time.monotonic() + _DISK_DELAY
        while not (here := mark.exists()) and time.monotonic() < deadline:
            time.sleep(0.1)
        blind = [rank for rank, seen in enumerate(self.all_of(here)) if not seen]
        if self.is_first:
            mark.unlink()
        if blind:
            raise ValueError(
                f"{folder}: what process 0 writes there is not seen by {blind}; all processes, on "
                "whichever host, must see the same disk"
            )

    def from_first(self, value: T) -> T:
        """The first process's value, on each: plain data, not tensors."""
        held = [value]
        dist.broadcast_object_list(held, 0, group=self.group, device=self.device)
        return held[0]

    def all_of(self, value: T) -> list[T]:
        """Every process's value, in the order of ranks, on each: plain data or arrays."""
        held: list[T | None] = [None] * self.size
        dist.all_gather_object(held, value, group=self.group)
        return cast("list[T]", held)


@contextmanager
def joined_world(device: str = "auto") -> Iterator[World]:
    """Join the other processes of a torchrun, and part from them at the end.

    Args:
        device: ``"auto"``: the GPU of this process's local rank if there is one, and NCCL; else the
            CPU and gloo. Or ``"cpu"``, ``"cuda"``.

    Raises:
        ValueError: Another device, more processes than GPUs, or no torchrun.

    Example:
        >>> with joined_world():
        ...     pass
        Traceback (most recent call last):
        ...
        ValueError: joined_world: expected to be started by torchrun (RANK, WORLD_SIZE, ... unset)
    """
    if not under_torchrun():
        raise ValueError(
            "joined_world: expected to be started by torchrun (RANK, WORLD_SIZE, ... unset)"
        )
    chosen = _device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    store, rank, size = next(rendezvous("env://"))
    store = _met(store, rank, size)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield _world(chosen)
    finally:
        leave_world()


def _met(store: Store, rank: int, size: int) -> PrefixStore:
    """A part of torchrun's store for those processes alone that were started this time.

    The store outlives a restart, and a process that comes early would find addresses of the dead
    there. The agents of several hosts count restarts each for itself, so no number tells starts
    apart: the first process names this one, and all are in it whose name it has repeated.

    Raises:
        DistStoreError: Others did not come within torch's default timeout.
    """
    mine = uuid4().hex
    if rank == 0:
        store.set("fcl/start", mine)
        names = [store.get(f"fcl/{mine}/{other}").decode() for other in range(1, size)]
        store.set(f"fcl/{mine}/names", " ".join(names))
        return PrefixStore(f"fcl/{mine}/met", store)
    deadline = time.monotonic() + default_pg_timeout.total_seconds()
    while True:
        start = store.get("fcl/start").decode()  # of the dead, perhaps
        store.set(f"fcl/{start}/{rank}", mine)
        key = f"fcl/{start}/names"
        try:
            store.wait([key], timedelta(seconds=1))
        except dist.DistStoreError:
            if time.monotonic() > deadline:
                raise
            continue
        if mine in store.get(key).decode().split():
            return PrefixStore(f"fcl/{start}/met", store)
        time.sleep(0.05)


@contextmanager
def single_process() -> Iterator[dist.ProcessGroup]:
    """A group of this process alone, for what wants a group: examples and tests.

    Raises:
        ValueError: This process has joined others already.
    """
    if dist.is_initialized():
        raise ValueError("single_process: this process has joined others already")
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield _world(torch.device("cpu")).group
    finally:
        leave_world()


def leave_world() -> None:
    """Destroy this process's group when nothing of it is left to do: safe before the process ends.

    A thread of gloo drops the tensors of a collective after it said that it is done, and takes the
    interpreter's lock for that. One that asks for it while the group is destroyed or the
    interpreter shuts down hangs or aborts the process (pytorch issue 190489); and the threads
    outlive `torch.distributed.destroy_process_group` where something, like a cache of `DTensor`,
    still holds the group. `joined_world` does this itself; call it where an engine made the group.

    Raises:
        ValueError: This process is in no group.

    Example:
        >>> import torch.distributed as dist
        >>> from torch.distributed import HashStore
        >>> dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        >>> leave_world()
        >>> dist.is_initialized()
        False
    """
    if not dist.is_initialized():
        raise ValueError("leave_world: this process has joined no others")
    looks = 0
    while looks < 2:  # it may have waited, at the first, for the lock that this thread held
        time.sleep(1e-3)
        looks = 0 if _gloo_computes() else looks + 1
    dist.destroy_process_group()


def _gloo_computes() -> bool:
    """Whether a thread that runs gloo's collectives is not asleep; no where Linux cannot tell."""
    for path in Path("/proc/self/task").glob("*/stat"):
        try:
            name, state = path.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:  # a thread that ended
            continue
        if name == "pt_gloo_runloop" and not state.startswith(" S"):
            return True
    return False


def _world(device: torch.device) -> World:
    group = dist.group.WORLD
    assert group is not None
    return World(group, dist.get_rank(), dist.get_world_size(), device)


def _device(name: str) -> torch.device:
    if name not in {"auto", "cpu", "cuda"}:
        raise ValueError(
            f"device: expected auto, cpu or cuda under torchrun, which gives each process its GPU, "
            f"got {name!r}"
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"device: torch sees {torch.cuda.device_count()} CUDA devices here, and local rank "
            f"{local} needs one of its own; start fewer processes"
        )
    return torch.device("cuda", local)
