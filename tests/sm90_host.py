# SPDX-License-Identifier: Apache-2.0
"""Builds and runs the Hopper kernels on the host machine of ``tests/sm90``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOST = ROOT / "tests" / "sm90"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

CAN_BUILD = COMPILER is not None and (ROOT / "csrc").is_dir()

# Loads and products at once or late, and the order of the threads: ascending, descending, random,
# and random with some threads of the warp that issues the loads far behind.
APART = 96
LUCK = [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 97), (0, 1, APART)]


def build(name: str, folder: Path) -> Path:
    """The program of ``tests/sm90/<name>.cpp``."""
    program = folder / name
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    include = [f"-I{ROOT / 'csrc'}", f"-I{HOST}"]
    subprocess.run([COMPILER, *flags, *include, HOST / f"{name}.cpp", "-o", program], check=True)
    return program


def runner(program: Path) -> Callable[..., tuple[float, float]]:
    """Runs a case of it: the errors of log-sum-exp and mean."""

    def run(**case: object) -> tuple[float, float]:
        arguments = [f"{name}={value}" for name, value in case.items()]
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        lse, mean = re.search(r"errors (\S+) (\S+)", done.stdout).groups()
        return float(lse), float(mean)

    return run
