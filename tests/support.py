# SPDX-License-Identifier: Apache-2.0
"""What op tests share: devices, dtypes, and the budget an error must stay within."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

# First line of a subprocess that imports a copy of fcl_ext from sys.path: an editable install has
# an import hook of its own, which would find the installed one first.
PLAIN_IMPORTS = (
    "import sys; sys.meta_path[:] = "
    "[f for f in sys.meta_path if not type(f).__name__.startswith('ScikitBuild')]; "
)

# Rounding of a result in the dtype the kernels accumulate in.
ROUNDING = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 2e-6,
    torch.float16: 2e-6,
}


def error(got: Tensor, exact: Tensor) -> float:
    """Relative error in the 2-norm; NaN never passes a comparison."""
    exact = exact.double()
    return float((got.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def error_budget(naive: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    """No worse than twice what plain torch makes in the same dtype, plus rounding."""
    return 2 * error(naive, exact) + ROUNDING[dtype]


def run_apart(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A process of its own, as a signal may end it; a warning is an error."""
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": f"{root}{os.pathsep}{root / 'python'}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def run_with_isa(script: str, isa: str) -> subprocess.CompletedProcess[str]:
    """A process that runs `script` with the kernels of one instruction set."""
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "FCL_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


def numbers_by_isa(script: str) -> list[list[float]]:
    """What `script` prints with each instruction set this CPU has.

    It must print the name of the set and then numbers.
    """
    found = []
    for isa in ("portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"):
        run = run_with_isa(script, isa)
        if "this CPU and system allow only" in run.stderr:
            continue
        assert run.returncode == 0, run.stderr
        name, *numbers = run.stdout.split()
        assert name == isa
        found.append([float(number) for number in numbers])
    return found
