# SPDX-License-Identifier: Apache-2.0
"""Loading, build facts, and what the package says about itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import fcl_ext
from fcl_ext import _C
from support import PLAIN_IMPORTS


def test_build_facts():
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", fcl_ext.__version__)
    assert _C.cpu_isa() in ("portable", "avx2", "avx512", "avx512_bf16", "amx_bf16")
    assert _C.torch_build_version
    assert fcl_ext.has_cuda_kernels() == (fcl_ext.cuda_error() is None)


def test_all_is_sorted_and_complete():
    assert fcl_ext.__all__ == sorted(fcl_ext.__all__)
    for name in fcl_ext.__all__:
        assert hasattr(fcl_ext, name)


def test_stub_of_the_compiled_module_is_true():
    stub = Path(fcl_ext.__file__).with_name("_C.pyi")
    declared = set(re.findall(r"^(?:def )?(\w+)[:(]", stub.read_text(encoding="utf-8"), re.M))
    assert declared == {name for name in dir(_C) if not name.startswith("_")}


def test_op_library_links_no_python_and_no_second_openmp():
    """The op library must survive a change of Python, and share torch's thread pool."""
    libraries = [
        Path(folder) / "libfcl_ops.so"
        for folder in fcl_ext.__path__
        if (Path(folder) / "libfcl_ops.so").exists()
    ]
    dynamic = subprocess.run(
        ["readelf", "--dynamic", str(libraries[0])], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.*?)\]", dynamic)
    assert any(name.startswith("libtorch_cpu") for name in needed)
    assert not [name for name in needed if "python" in name or "gomp" in name or "c10" in name]


def test_avx512_stays_in_its_own_files():
    """No 512-bit instruction outside the kernels that run only where the CPU has them."""
    library = next(
        Path(folder) / "libfcl_ops.so"
        for folder in fcl_ext.__path__
        if (Path(folder) / "libfcl_ops.so").exists()
    )
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", "--demangle", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    symbol = ""
    offenders = set()
    for line in listing.splitlines():
        if line.endswith(">:"):
            symbol = line
        elif "zmm" in line and not re.search(r"fcl::", symbol):
            offenders.add(symbol)
    # Functions of ours that use zmm are all in anonymous namespaces of the *_avx512.cpp units;
    # anything else (a std:: or torch:: inline) would be shared with the baseline.
    assert not offenders


def test_missing_build_is_one_clear_error(tmp_path):
    package = tmp_path / "fcl_ext"
    package.mkdir()
    source = Path(fcl_ext.__file__).parent
    for file in source.glob("*.py"):
        (package / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-c", PLAIN_IMPORTS + "import fcl_ext"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "pip install --no-build-isolation ." in run.stderr
