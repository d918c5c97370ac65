# SPDX-License-Identifier: Apache-2.0
"""The report on the CUDA kernels as text: written, read back, held against the sources.

A row for each kernel and architecture, then a digest for each file, of its code and that of the
headers it includes: where they differ, the report is of other kernels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cuda_kernels import ARCHITECTURES, ROOT, Kernel, has_kernels, tensor_instruction

_COLUMNS = f"{'sm':>4} {'regs':>4} {'smem':>6} {'stack':>5} {'spill':>5} {'mma':>5}"
_HEADER = f"{'file':32} {'kernel':75} {_COLUMNS}"
_ROW = re.compile(r"(\S+\.cu)\s+(.+?)\s+(\d+a?)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)(?:\s+(\d+))?\s*")
_DIGEST = re.compile(r"(\S+\.cu)\s+([0-9a-f]{16})")


@dataclass
class Report:
    """Kernels by one compiler, and the digests of the files they are from."""

    compiler: str
    kernels: list[Kernel]
    digests: dict[str, str]

    def of(self, file: str, architecture: str) -> list[Kernel]:
        """The kernels of one file on one architecture."""
        return [k for k in self.kernels if k.file == file and k.architecture == architecture]

    def current(self, compiler: str, sources: Iterable[Path]) -> Report:
        """The part that compiling these files on all architectures would not change."""
        part = Report(compiler, [], {})
        if compiler != self.compiler:
            return part
        for source in sources:
            kernels = [k for k in self.kernels if k.file == source.name]
            digests = {source.name: self.digests.get(source.name, "")}
            if not gaps(Report(compiler, kernels, digests), [source], ARCHITECTURES):
                part.kernels += kernels
                part.digests |= digests
        return part


def digest(source: Path) -> str:
    """Of what a file and the headers of ours that it includes, at any depth, say to the compiler.

    Lines that are comments are left out: to write one is no reason to compile everything again.
    """
    texts: dict[str, str] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        name = path.name if path == source else path.relative_to(ROOT / "csrc").as_posix()
        if name in texts:
            continue
        texts[name] = re.sub(r"(?m)^\s*//.*\n", "", path.read_text(encoding="utf-8"))
        headers = re.findall(r'(?m)^#include "(.*)"', texts[name])
        waiting += [ROOT / "csrc" / header for header in headers]
    everything = "".join(f"{name}\n{text}" for name, text in sorted(texts.items()))
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


def render(report: Report) -> str:
    """The report as text."""
    lines = [report.compiler, _HEADER]
    for k in report.kernels:
        tensor = "" if k.tensor_instructions is None else k.tensor_instructions
        numbers = f"{k.registers:4} {k.shared_bytes:6} {k.stack_bytes:5} {k.spill_bytes:5}"
        lines.append(f"{k.file:32} {k.name:75} {k.architecture:>4} {numbers} {tensor:>5}".rstrip())
    lines += ["", f"{'file':32} sha256 of its code and of its headers', 16 digits"]
    lines += [f"{file:32} {value}" for file, value in report.digests.items()]
    spilling = sum(bool(k.stack_bytes or k.spill_bytes) for k in report.kernels)
    lines += ["", f"{len(report.kernels)} kernels, {spilling} with a stack frame or spills"]
    made_for_tensor = [k for k in report.kernels if tensor_instruction(k.name, k.architecture)]
    if any(k.tensor_instructions is None for k in made_for_tensor):
        lines.append("nvdisasm was not found: tensor core instructions are not counted")
    else:
        idle = sum(k.tensor_instructions == 0 for k in made_for_tensor)
        lines.append(f"{idle} for tensor cores without their instructions")
    return "\n".join(lines) + "\n"


def read(text: str) -> Report:
    """A report from its text.

    Raises:
        ValueError: A line is no row, digest or summary of a report.
    """
    compiler, _, *lines = text.splitlines()
    report = Report(compiler, [], {})
    rows = lines[: lines.index("")]
    for line in rows:
        row = _ROW.fullmatch(line)
        if row is None:
            raise ValueError(f"expected a row of the report on CUDA kernels, got {line!r}")
        file, name, architecture, *numbers = row.groups()
        counts = [None if n is None else int(n) for n in numbers]
        report.kernels.append(Kernel(file, name, architecture, *counts))
    for line in lines[len(rows) :]:
        if found := _DIGEST.fullmatch(line):
            report.digests[found[1]] = found[2]
    return report


def gaps(report: Report, sources: Iterable[Path], architectures: Iterable[str]) -> list[str]:
    """Where a report is not of these sources, or not of all architectures, a line each."""
    found = []
    files = {source.name: source for source in sources}
    found += [f"{file}: no such file" for file in report.digests if file not in files]
    for file, source in files.items():
        if report.digests.get(file) != digest(source):
            found.append(f"{file}: changed since it was compiled for the report")
        names = {
            architecture: sorted(k.name for k in report.of(file, architecture))
            for architecture in architectures
            if has_kernels(source, architecture)
        }
        most = max(names.values(), key=len, default=[])
        found += [
            f"{file}: {len(of)} kernels on sm_{architecture}, {len(most)} on another"
            if len(of) != len(most)
            else f"{file}: kernels on sm_{architecture} have other names than on another"
            for architecture, of in names.items()
            if of != most or not of
        ]
    found += [
        f"{k.file}: the tensor core instructions of {k.name} on sm_{k.architecture} are not counted"
        for k in report.kernels
        if tensor_instruction(k.name, k.architecture) and k.tensor_instructions is None
    ]
    return found


def differences(report: Report, committed: Report) -> list[str]:
    """Where figures are not the committed ones, a line each; none if the compiler is another."""
    if report.compiler != committed.compiler:
        return []
    kinds = sorted({(k.file, k.architecture) for k in report.kernels})
    return [
        f"{file}: on sm_{architecture} figures are not the committed report's"
        for file, architecture in kinds
        if report.of(file, architecture) != committed.of(file, architecture)
    ]
