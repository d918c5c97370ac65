# SPDX-License-Identifier: Apache-2.0
"""tools/cuda_resources.py reads ptxas' report, fails on spills, compiles only what changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_kernels import find_nvdisasm
from cuda_report import digest

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "cuda_resources.py"
SOURCES = sorted((ROOT / "csrc" / "ops" / "cuda").glob("*.cu"))

# What nvcc prints for one kernel, with its numbers left open.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3fcl11step_kernelIfLi4EEEvPKT_' for 'sm_80'
ptxas info    : Function properties for _ZN3fcl11step_kernelIfLi4EEEvPKT_
    {stack} bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 2048 bytes smem, 456 bytes cmem[0]
"""


def _run(
    folder: Path, stack: int, spill: int, *options: object
) -> subprocess.CompletedProcess[str]:
    """The tool with a stand-in for the compiler, which notes what it compiles."""
    report, compiler = folder / "report", folder / "nvcc"
    report.write_text(REPORT.format(stack=stack, spill=spill), encoding="utf-8")
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> {folder / "calls"}\ncat {report} >&2\n', encoding="utf-8"
    )
    compiler.chmod(0o755)
    return subprocess.run(
        [sys.executable, TOOL, *map(str, options or ("--architectures", "80"))],
        env={**os.environ, "CUDACXX": str(compiler)},
        capture_output=True,
        text=True,
        check=False,
    )


def _compiled(folder: Path) -> int:
    calls = (folder / "calls").read_text(encoding="utf-8")
    (folder / "calls").unlink()
    return calls.count("-gencode")


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


def test_only_what_changed_is_compiled(tmp_path):
    table = tmp_path / "table.txt"
    edge_dot = next(s for s in SOURCES if s.name == "edge_dot.cu")
    every = 5 * len(SOURCES) - 4 * len([s for s in SOURCES if "_sm90" in s.name])
    assert _run(tmp_path, 0, 0, "--update", table).returncode == 0
    assert _compiled(tmp_path) == every
    assert _run(tmp_path, 0, 0, "--update", table).returncode == 0
    assert _compiled(tmp_path) == 0
    for old, new, compiled in [
        (f"{'edge_dot.cu':32} {digest(edge_dot)}", "", 5),
        ("unknown version", "older version", every),
    ]:
        table.write_text(table.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        assert _run(tmp_path, 0, 0, "--update", table).returncode == 0
        assert _compiled(tmp_path) == compiled


def test_other_figures_than_the_committed_ones_fail(tmp_path):
    table = tmp_path / "table.txt"
    assert _run(tmp_path, 0, 0, "--update", table).returncode == 0
    options = ("--architectures", "80", "--files", "edge_dot", "--against", table)
    assert _run(tmp_path, 0, 0, *options).returncode == 0
    table.write_text(
        table.read_text(encoding="utf-8").replace("   48 ", "   47 "), encoding="utf-8"
    )
    run = _run(tmp_path, 0, 0, *options)
    assert run.returncode == 1
    assert run.stderr == "edge_dot.cu: on sm_80 figures are not the committed report's\n"


@pytest.mark.slow
def test_tensor_core_kernels_have_their_instructions(tmp_path):
    """The machine code of the real kernels, where there are a compiler and a disassembler."""
    if shutil.which(os.environ.get("CUDACXX", "nvcc")) is None or find_nvdisasm() is None:
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
