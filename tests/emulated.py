# SPDX-License-Identifier: Apache-2.0
"""Builds the CUDA kernels for the host (``cuda_emulation/``) as ``torch.ops.fcl_emulated.*``."""

from __future__ import annotations

import concurrent.futures
import ctypes
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch.utils import cpp_extension

import fcl_ext  # noqa: F401  (loads the operators the emulated ones are compared with)

ROOT = Path(__file__).parents[1]
EMULATION = ROOT / "tests" / "cuda_emulation"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

CAN_BUILD = COMPILER is not None and (ROOT / "csrc").is_dir()

FLAGS = [
    *("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-w"),
    *("-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{EMULATION}", f"-I{ROOT / 'csrc'}"),
    *(f"-I{ROOT / 'tests' / 'sm90'}", "-DFCL_CUDA_SM90"),
    *(f"-isystem{path}" for path in cpp_extension.include_paths()),
]
# Indices that leave a shared or register array of known size end the process with a message.
KERNEL_FLAGS = [
    *("-fsanitize=bounds", "-fno-sanitize-recover=all"),
    *("-D__assert_fail=emulation_assert_fail", "-x", "c++"),
]
BINDING_FLAGS = ["-include", str(EMULATION / "registration.h")]


def _compile(source: Path, flags: list[str], folder: Path) -> Path:
    target = folder / f"{source.name}.o"
    subprocess.run([COMPILER, *FLAGS, *flags, "-c", source, "-o", target], check=True)
    return target


def build(folder: Path) -> ctypes.CDLL:
    """Compile, link and load the library, which other processes of the tests may have made."""
    folder.mkdir(exist_ok=True)
    library = folder / "libfcl_emulated.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _link(folder, library)
    torch.ops.load_library(str(library))
    return ctypes.CDLL(str(library))


def _link(folder: Path, library: Path) -> None:
    sources = [
        *((path, KERNEL_FLAGS) for path in sorted((ROOT / "csrc/ops/cuda").glob("*.cu"))),
        *((path, BINDING_FLAGS) for path in sorted((ROOT / "csrc/ops/cuda").glob("*.cpp"))),
        (ROOT / "csrc/schema.cpp", BINDING_FLAGS),
        (EMULATION / "fibers.cpp", ["-O2"]),
        (EMULATION / "clusters.cpp", ["-O2"]),
    ]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(*source, folder), sources))
    whole = library.with_suffix(".whole")
    link = ["-shared", "-fsanitize=bounds", *objects, "-o", whole]
    torch_library = f"-L{cpp_extension.TORCH_LIB_PATH}"
    subprocess.run([COMPILER, *link, torch_library, "-ltorch_cpu"], check=True)
    whole.rename(library)
