#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Registers, shared memory and spills of every CUDA kernel, as ptxas reports them.

Compiles each ``csrc/ops/cuda/*.cu`` to machine code and prints one line per kernel. A spill or a
stack frame means that a kernel keeps variables in device memory, and a warning of ptxas about
performance that its tensor cores wait for each product: both fail the run. A Hopper kernel whose
warpgroups share registers out among themselves is listed with what it starts with.

Where there is nvdisasm (on PATH, as NVDISASM, or from the wheel nvidia-cuda-nvdisasm), the machine
code's tensor core instructions are counted, and a kernel that is made for them and has none fails
the run too, as does one whose warpgroups use more registers than they ask for.

``docs/cuda_resources.txt`` is the committed output: run this again where kernels change.

Usage: ``python tools/cuda_resources.py [--architectures 80 90a] [--files softmax_readout_mma]
[--json FILE]``. Needs nvcc, but no GPU.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from warpgroup_registers import shares

ROOT = Path(__file__).parents[1]

# Kernels made for tensor cores: how their names begin, on which architectures, the instruction.
_TENSOR_KERNELS = (("mma_", r".*", "HMMA"), ("readout_sm90_", r"90a", "HGMMA"))


@dataclass
class Kernel:
    """What one kernel takes on one architecture."""

    file: str
    name: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int
    tensor_instructions: int | None = None  # None: not counted, or not a kernel for tensor cores


def _demangle(names: list[str]) -> list[str]:
    """Readable names, without namespaces and parameters."""
    if shutil.which("c++filt") is None or not names:
        return names
    run = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return [_shorten(name) for name in run.stdout.splitlines()]


def _shorten(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", name)
    name = re.sub(r"\(fcl::ops::cuda::ReadoutGradient\)(\d)", r"gradient \1", name)
    name = re.sub(r"^void ", "", name)
    depth = 0
    for at, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            name = name[:at]
            break
    # Template arguments keep their last words only: cub's are pages long.
    name = re.sub(r"(?:\w+::)+(?=\w)", "", name)
    return name if len(name) <= 75 else name[: name.index("<") + 1] + "...>"


def parse(report: str, file: str, architecture: str) -> list[Kernel]:
    """Kernels in ptxas' verbose output."""
    blocks = re.split(r"Compiling entry function '", report)[1:]
    kernels = []
    for block in blocks:
        stack, stores, loads = (
            int(n)
            for n in re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block
            ).groups()
        )
        registers = int(re.search(r"Used (\d+) registers", block)[1])
        shared = re.search(r"(\d+) bytes smem", block)
        kernels.append(
            Kernel(
                file,
                block[: block.index("'")],
                architecture,
                registers,
                int(shared[1]) if shared else 0,
                stack,
                stores + loads,
            )
        )
    return kernels


def find_nvdisasm() -> str | None:
    """The disassembler, or None."""
    named = os.environ.get("NVDISASM")
    if named is not None:
        return shutil.which(named)
    wheels = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"))
    return shutil.which("nvdisasm") or shutil.which(
        "nvdisasm", path=os.pathsep.join(map(str, wheels))
    )


def disassemble(nvdisasm: str, cubin: str) -> str:
    """The machine code of an object."""
    run = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise SystemExit(f"{nvdisasm} {cubin}: {run.stderr}")
    return run.stdout


def count_tensor_instructions(disassembly: str) -> dict[str, dict[str, int]]:
    """Of each kernel in an object, by its mangled name."""
    instructions = [instruction for *_, instruction in _TENSOR_KERNELS]
    counts: dict[str, dict[str, int]] = {}
    for line in disassembly.splitlines():
        if line.startswith(".text."):
            of_kernel = counts.setdefault(line[6:-1], dict.fromkeys(instructions, 0))
        for instruction in instructions:
            if re.search(rf"\b{instruction}\b", line):
                of_kernel[instruction] += 1
    return counts


def compile_kernels(nvcc: str, source: Path, architecture: str, folder: str) -> list[Kernel]:
    """Compile one file for one architecture, read the report and the machine code."""
    cubin = f"{folder}/{source.stem}.{architecture}.cubin"
    command = [
        *(nvcc, "-cubin", "-std=c++20", "-O3", "-Xptxas=-v", f"-I{ROOT / 'csrc'}"),
        f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
        *("-o", cubin, str(source)),
    ]
    if architecture == "90a":
        command.append("-DFCL_CUDA_SM90")
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise SystemExit(f"{source.name} does not compile for sm_{architecture}:\n{run.stderr}")
    loss = re.search(r"Potential Performance Loss.*|setmaxnreg.*ignored.*", run.stderr)
    if loss is not None:
        raise SystemExit(f"{source.name} for sm_{architecture}: {loss[0]}")
    kernels = parse(run.stderr, source.name, architecture)
    nvdisasm = find_nvdisasm()
    counts = None
    if nvdisasm is not None and Path(cubin).exists():
        disassembly = disassemble(nvdisasm, cubin)
        counts = count_tensor_instructions(disassembly)
        for share in shares(disassembly):
            if share.used > share.asked:
                raise SystemExit(
                    f"{source.name} for sm_{architecture}: a warpgroup of {share.kernel} asks for "
                    f"{share.asked} registers and uses {share.used}"
                )
    for kernel, name in zip(kernels, _demangle([k.name for k in kernels]), strict=True):
        for start, architectures, instruction in _TENSOR_KERNELS:
            is_made_for = name.startswith(start) and re.fullmatch(architectures, architecture)
            if counts is not None and is_made_for:
                kernel.tensor_instructions = counts[kernel.name][instruction]
        kernel.name = name
    return kernels


def version(nvcc: str) -> str:
    """What the compiler calls itself."""
    run = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release .*", run.stdout)
    return f"nvcc {found[0]}" if found else "nvcc of an unknown version"


def main() -> int:
    """Print the table; 1 if a kernel spills, has a stack frame or no tensor core instruction."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=["80", "90a"])
    parser.add_argument("--files", nargs="+", default=["*"], help="names of .cu files (patterns)")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if nvcc is None:
        print("cuda_resources: nvcc is not on PATH (or set CUDACXX)", file=sys.stderr)
        return 2
    jobs = [
        (source, architecture)
        for pattern in options.files
        for source in sorted((ROOT / "csrc/ops/cuda").glob(f"{pattern}.cu"))
        for architecture in options.architectures
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        found = pool.map(lambda job: compile_kernels(nvcc, *job, folder), jobs)
        kernels = [kernel for group in found for kernel in group]
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(k) for k in kernels], indent=1) + "\n")
    print(version(nvcc))
    columns = f"{'sm':>4} {'regs':>4} {'smem':>6} {'stack':>5} {'spill':>5} {'mma':>5}"
    print(f"{'file':32} {'kernel':75} {columns}")
    for k in kernels:
        tensor = "" if k.tensor_instructions is None else k.tensor_instructions
        print(
            f"{k.file:32} {k.name:75} {k.architecture:>4} {k.registers:4} {k.shared_bytes:6} "
            f"{k.stack_bytes:5} {k.spill_bytes:5} {tensor:>5}"
        )
    bad = [k for k in kernels if k.stack_bytes or k.spill_bytes]
    idle = [k for k in kernels if k.tensor_instructions == 0]
    print(f"{len(kernels)} kernels, {len(bad)} with a stack frame or spills")
    if find_nvdisasm() is None:
        print("nvdisasm was not found: tensor core instructions are not counted")
    else:
        print(f"{len(idle)} for tensor cores without their instructions")
    return 1 if bad or idle else 0


if __name__ == "__main__":
    sys.exit(main())
