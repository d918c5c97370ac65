# SPDX-License-Identifier: Apache-2.0
"""Compiles CUDA kernels to machine code and reads what ptxas and nvdisasm say of them.

A spill or a stack frame means that a kernel keeps variables in device memory, and a warning of
ptxas about performance that its tensor cores wait for each product. A Hopper kernel whose
warpgroups share registers out among themselves is listed with what it starts with.

Where there is nvdisasm (on PATH, as NVDISASM, or from the wheel nvidia-cuda-nvdisasm), the machine
code's tensor core instructions are counted, and the registers that warpgroups use are held against
those they ask for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from warpgroup_registers import shares

ROOT = Path(__file__).parents[1]
# Every architecture that is named anywhere, oldest first.
ARCHITECTURES = ("80", "86", "89", "90a", "120")

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

    def faults(self) -> list[str]:
        """What no kernel may have, a line each."""
        where = f"{self.file}: {self.name} on sm_{self.architecture}"
        found = []
        if self.stack_bytes or self.spill_bytes:
            found.append(
                f"{where} has {self.stack_bytes} bytes of stack, spills {self.spill_bytes}"
            )
        if self.tensor_instructions == 0:
            found.append(f"{where} has no {tensor_instruction(self.name, self.architecture)}")
        return found


def tensor_instruction(name: str, architecture: str) -> str | None:
    """The tensor core instruction that a kernel of this name is made for, if it is for one."""
    for start, architectures, instruction in _TENSOR_KERNELS:
        if name.startswith(start) and re.fullmatch(architectures, architecture):
            return instruction
    return None


def has_kernels(source: Path, architecture: str) -> bool:
    """False where a file is for Hopper alone, whose copy engine and products no other has."""
    return architecture == "90a" or "FCL_CUDA_SM90" not in source.read_text(encoding="utf-8")


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
        instruction = tensor_instruction(name, architecture)
        if counts is not None and instruction is not None:
            kernel.tensor_instructions = counts[kernel.name][instruction]
        kernel.name = name
    return kernels


def version(nvcc: str) -> str:
    """What the compiler calls itself."""
    run = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release .*", run.stdout)
    return f"nvcc {found[0]}" if found else "nvcc of an unknown version"
