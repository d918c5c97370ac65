# SPDX-License-Identifier: Apache-2.0
"""tools/cuda_resources.py reads ptxas' report and fails on spills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What nvcc prints for one kernel, with its numbers left open.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3fcl11step_kernelIfLi4EEEvPKT_' for 'sm_80'
ptxas info    : Function properties for _ZN3fcl11step_kernelIfLi4EEEvPKT_
    {stack} bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 2048 bytes smem, 456 bytes cmem[0]
"""


def _run(folder: Path, stack: int, spill: int) -> subprocess.CompletedProcess[str]:
    report = folder / "report"
    report.write_text(REPORT.format(stack=stack, spill=spill), encoding="utf-8")
    compiler = folder / "nvcc"
    compiler.write_text(f"#!/bin/sh\ncat {report} >&2\n", encoding="utf-8")
    compiler.chmod(0o755)
    command = [sys.executable, ROOT / "tools" / "cuda_resources.py", "--architectures", "80"]
    environment = {**os.environ, "CUDACXX": str(compiler)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_sound_kernels_are_listed(tmp_path):
    run = _run(tmp_path, 0, 0)
    assert run.returncode == 0
    assert "step_kernel<float, 4>" in run.stdout
    assert "0 with a stack frame or spills" in run.stdout


def test_spills_and_stack_frames_fail(tmp_path):
    assert _run(tmp_path, 0, 24).returncode == 1
    assert _run(tmp_path, 32, 0).returncode == 1
