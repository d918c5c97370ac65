# SPDX-License-Identifier: Apache-2.0
"""Hosts of a cluster on this one: network namespaces with a wire between them, for torchrun.

Each has an address and interfaces of its own, and can have a disk of its own. Making them needs
root and iproute2's ``ip``; where they cannot be made, tests are skipped.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from torchrun import launch_command, launch_environment

PORT = 29400


@dataclass(frozen=True)
class Host:
    """A network namespace.

    Attributes:
        name: Of the namespace, and of the interface inside.
        address: What the others reach it by.
    """

    name: str
    address: str

    def command(self, command: list[str], own_disk: Path | None = None) -> list[str]:
        """A command line as run on this host, where ``own_disk`` is a folder no other host sees."""
        script = f"exec {shlex.join(command)}"
        if own_disk is not None:
            # The mounts of `ip netns exec` are its own.
            script = f"mount -t tmpfs tmpfs {shlex.quote(str(own_disk))} && {script}"
        return ["ip", "netns", "exec", self.name, "sh", "-c", script]


@contextmanager
def two_hosts() -> Iterator[list[Host]]:
    """Two of them, with a wire between."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("hosts are made by root, with iproute2")
    hosts = [Host(f"fcl{os.getpid()}{side}", f"10.77.0.{n}") for n, side in ((1, "a"), (2, "b"))]
    first, second = hosts
    try:
        for host in hosts:
            _make("netns", "add", host.name)
        _make(
            *("link", "add", first.name, "netns", first.name, "type", "veth", "peer"),
            *(second.name, "netns", second.name),
        )
        for host in hosts:
            inside = ("-n", host.name)
            _set_up(*inside, "address", "add", f"{host.address}/24", "dev", host.name)
            _set_up(*inside, "link", "set", host.name, "up")
            _set_up(*inside, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True, check=False)


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


def _make(*arguments: str) -> None:
    """A kernel may have no namespaces, or no wires between them."""
    done = _ip(*arguments)
    if done.returncode != 0:
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")


def _set_up(*arguments: str) -> None:
    """What there is has to work: a failure is no reason to skip."""
    done = _ip(*arguments)
    assert done.returncode == 0, done.stderr


def torchrun_on(
    hosts: list[Host],
    processes: int,
    *command: str | Path,
    restarts: int = 0,
    own_disk: Path | None = None,
) -> list[subprocess.CompletedProcess[str]]:
    """Run ``torchrun … command`` on all hosts at once; what each printed.

    Args:
        hosts: They meet at the first.
        processes: Number of processes on each.
        command: Script and its arguments, or ``-m``, a module and its arguments.
        restarts: How often all are started again when one dies.
        own_disk: A folder that is another one on every host.
    """
    options = [
        *("--nnodes", str(len(hosts)), "--rdzv-backend", "c10d", "--rdzv-id", "test"),
        *("--rdzv-endpoint", f"{hosts[0].address}:{PORT}"),
    ]
    running = []
    for host in hosts:
        # torchrun asks the host's name which addresses are its own, and namespaces share that name.
        is_first = ["--rdzv-conf", f"is_host={int(host is hosts[0])}"]
        line = launch_command(
            processes, [*options, *is_first, "--local-addr", host.address], command, restarts
        )
        environment = {**launch_environment(), "GLOO_SOCKET_IFNAME": host.name}
        running.append(
            subprocess.Popen(
                host.command(line, own_disk),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = []
    try:
        for process in running:
            out, err = process.communicate(timeout=480)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in running:
            process.terminate()  # torchrun ends its processes then; nobody would after a kill
        for process in running:
            process.wait(timeout=60)
    return ended
