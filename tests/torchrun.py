# SPDX-License-Identifier: Apache-2.0
"""Start torchrun in tests: on this host, on a free port, one thread a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parent


def launch_command(
    processes: int, options: Sequence[str], command: Sequence[str | Path], restarts: int
) -> list[str]:
    """The command line of torchrun by this Python."""
    return [
        *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run"),
        *(*options, "--nproc-per-node", str(processes)),
        *("--max-restarts", str(restarts), "--monitor-interval", "0.2"),
        *map(str, command),
    ]


def launch_environment() -> dict[str, str]:
    """What its processes find around them."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",  # a process that aborts says where
        # A script under torchrun finds the packages where this process found them.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def torchrun(
    processes: int, *command: str | Path, restarts: int = 0, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``torchrun … command`` and return what it printed; fail the test where it fails.

    Args:
        processes: Number of processes.
        command: Script and its arguments, or ``-m``, a module and its arguments.
        restarts: How often all are started again when one dies.
        check: Whether it must succeed.
    """
    run = subprocess.run(
        launch_command(processes, ["--standalone"], command, restarts),
        env=launch_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if check:
        assert run.returncode == 0, f"{run.stdout[-4000:]}\n{run.stderr[-8000:]}"
    return run
