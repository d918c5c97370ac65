# SPDX-License-Identifier: Apache-2.0
"""The Hopper readout without a GPU: its layouts, its tile loop on a host machine, its machine code.

``tests/sm90`` has a stand-in for the copy engine, the barriers and the tensor cores of one cluster
of blocks. The kernel's own loop runs on it, in good and in bad luck: loads and products early or
late, threads in any order. What this cannot show: what the real hardware does with the same
instructions, memory ordering beyond the barriers, and speed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from cuda_kernels import find_nvdisasm
from sm90_host import APART, CAN_BUILD, LUCK, ROOT, build, runner

NVCC = shutil.which(os.environ.get("CUDACXX", "nvcc"))
NVDISASM = find_nvdisasm()

pytestmark = pytest.mark.skipif(not CAN_BUILD, reason="needs a C++ compiler and the sources")


@pytest.fixture(scope="module")
def readout(tmp_path_factory):
    return runner(build("readout", tmp_path_factory.mktemp("sm90")))


def _check(errors: tuple[float, float], *, float16: bool = False) -> None:
    lse, mean = errors
    assert lse < 2e-6
    assert mean < (6e-4 if float16 else 5e-3)  # weights are rounded to 16 bits


def test_layouts(tmp_path):
    run = subprocess.run([build("layouts", tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def _rows(dim: int) -> int:
    """Two tiles of rows, the second one not full: they share the loads of classes."""
    return 200 if dim <= 256 else 100


@pytest.mark.parametrize("luck", LUCK, ids=str)
@pytest.mark.parametrize("dim", [40, 64, 128, 192, 256, 264, 384, 512])
def test_readout(readout, dim, luck):
    """Splits, flushes, a last tile of classes that is not full."""
    loads, products, order = luck
    case = {"n": _rows(dim), "d": dim, "c": 1000 if dim <= 256 else 600}
    _check(readout(**case, late_loads=loads, late_products=products, order=order))


@pytest.mark.parametrize("dim", [40, 128, 256, 328, 512])
@pytest.mark.parametrize(
    "case",
    [
        {"exclude": 1},
        {"factors": 1, "exclude": 1},
        {"mean": 0},
        {"mean": 0, "factors": 1},
        {"shift": 10},
        {"nan": 1, "factors": 1},
        {"n": 50, "multiprocessors": 1, "scale": 60},
        {"n": 300, "multiprocessors": 9},
        {"n": 1, "c": 7},
    ],
    ids=str,
)
def test_options(readout, case, dim):
    lse, mean = readout(**{"n": _rows(dim), "c": 500, "d": dim, **case}, late_loads=0, order=APART)
    assert lse < 5e-6
    assert mean < 6e-3


@pytest.mark.parametrize("dim", [64, 256, 384, 512])
@pytest.mark.parametrize("factors", [0, 1])
def test_float16(readout, dim, factors):
    case = {"n": _rows(dim), "c": 300, "d": dim, "factors": factors, "exclude": 1}
    _check(readout(**case, float16=1, late_loads=0, order=APART), float16=True)


def test_single_class_that_is_excluded(readout):
    assert readout(c=1, exclude=1, order=1) <= (1e-6, 1e-6)


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None or NVDISASM is None, reason="needs nvcc and nvdisasm")
@pytest.mark.parametrize(
    "source",
    ["softmax_readout_sm90", "softmax_readout_sm90_stored", "softmax_readout_backward_sm90"],
)
def test_machine_code(source, tmp_path):
    """Warpgroup products that overlap, tile loads, no use of local memory, no function calls."""
    cubin = tmp_path / "readout.cubin"
    command = [
        *(NVCC, "-cubin", "-std=c++20", "-O3", "-Xptxas=-v", "-DFCL_CUDA_SM90"),
        *("-gencode=arch=compute_90a,code=sm_90a", f"-I{ROOT / 'csrc'}", "-o", cubin),
        ROOT / f"csrc/ops/cuda/{source}.cu",
    ]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "Performance Loss" not in report
    assert "ignored" not in report
    assert not re.search(r"[1-9]\d* bytes (stack frame|spill)", report)
    sass = subprocess.run(
        [NVDISASM, "-c", cubin], capture_output=True, text=True, check=True
    ).stdout
    kernels = 0
    for function in re.split(r"\n\.text\.", sass)[1:]:
        # A mangled name begins with its length.
        if re.search(r"\dreadout_sm90_", function[: function.index(":")]) is None:
            continue
        kernels += 1
        for instruction in ("HGMMA", "UTMALDG", "UTMALDG.2D.MULTICAST", "USETMAXREG"):
            assert instruction in function
        assert not re.search(r"\b(LDL|STL|CALL)\b", function)
    assert kernels > 0
