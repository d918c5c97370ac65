# SPDX-License-Identifier: Apache-2.0
"""tools/cuda_resources.py reads ptxas' report and fails on spills."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "cuda_resources.py"

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
    command = [sys.executable, TOOL, "--architectures", "80"]
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


def test_a_kernel_for_tensor_cores_that_uses_none_fails(tmp_path):
    """With stand-ins for both tools: the compiler writes an object, the disassembler its code."""
    report = REPORT.format(stack=0, spill=0).replace("11step_kernel", "12mma_x_kernel")
    code = ".text._ZN3fcl12mma_x_kernelIfLi4EEEvPKT_:\n        /*0010*/  {} R4, R8, R4, R0 ;\n"
    compiler, disassembler = tmp_path / "nvcc", tmp_path / "nvdisasm"
    write = 'while [ "$1" != -o ]; do shift; done; touch "$2"'
    compiler.write_text(f"#!/bin/sh\ncat >&2 <<'E'\n{report}E\n{write}\n", encoding="utf-8")
    command = [sys.executable, TOOL, "--architectures", "80", "--files", "edge_dot"]
    environment = {**os.environ, "CUDACXX": str(compiler), "NVDISASM": str(disassembler)}
    for instruction, code_of_run in (("HMMA.16816.F32.BF16", 0), ("FFMA", 1)):
        disassembler.write_text(
            f"#!/bin/sh\ncat <<'E'\n{code.format(instruction)}E\n", encoding="utf-8"
        )
        for tool in (compiler, disassembler):
            tool.chmod(0o755)
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == code_of_run, run.stdout + run.stderr
        assert f"{code_of_run} for tensor cores without their instructions" in run.stdout


def test_the_committed_report_is_of_all_files_and_clean():
    report = (ROOT / "docs" / "cuda_resources.txt").read_text(encoding="utf-8")
    sources = {source.name for source in (ROOT / "csrc" / "ops" / "cuda").glob("*.cu")}
    listed = set(re.findall(r"^(\w+\.cu) ", report, flags=re.MULTILINE))
    assert listed == sources
    assert re.search(r"^\d+ kernels, 0 with a stack frame or spills$", report, flags=re.MULTILINE)
    assert "\n0 for tensor cores without their instructions" in report


@pytest.mark.slow
def test_tensor_core_kernels_have_their_instructions(tmp_path):
    """The machine code of the real kernels, where there are a compiler and a disassembler."""
    tool = runpy.run_path(str(TOOL))
    if shutil.which(os.environ.get("CUDACXX", "nvcc")) is None or tool["find_nvdisasm"]() is None:
        pytest.skip("needs nvcc and nvdisasm (the wheel nvidia-cuda-nvdisasm has the latter)")
    table = tmp_path / "table.json"
    command = [sys.executable, TOOL, "--architectures", "80", "--json", table]
    run = subprocess.run(
        [*command, "--files", "softmax_readout_mma"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    kernels = [k for k in json.loads(table.read_text()) if k["name"].startswith("mma_")]
    assert len(kernels) > 5
    assert all(k["tensor_instructions"] > 16 for k in kernels)
