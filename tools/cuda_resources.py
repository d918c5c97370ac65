#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Registers, shared memory and spills of every CUDA kernel, as ptxas reports them.

Compiles each ``csrc/ops/cuda/*.cu`` to machine code for each architecture (``cuda_kernels.py``) and
prints one line per kernel. A spill, a stack frame, tensor cores that wait or are not used, and
warpgroups that use more registers than they ask for fail the run.

``docs/cuda_resources.txt`` is the committed output for all architectures. ``make cuda-resources``
brings it up to date where kernels changed, and a test fails where it is not.

Usage: ``python tools/cuda_resources.py [--architectures 80 90a] [--files softmax_readout_mma]
[--json FILE] [--update FILE] [--against FILE]``. Needs nvcc, but no GPU.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from cuda_kernels import ARCHITECTURES, ROOT, Kernel, compile_kernels, has_kernels, version
from cuda_report import Report, differences, digest, gaps, read, render


def compile_all(nvcc: str, sources: list[Path], architectures: list[str]) -> list[Kernel]:
    """The kernels of all files on all architectures, as many compilers at a time as cores."""
    jobs = [(s, a) for s in sources for a in architectures if has_kernels(s, a)]
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        found = pool.map(lambda job: compile_kernels(nvcc, *job, folder), jobs)
        return [kernel for group in found for kernel in group]


def main() -> int:
    """Print or write the report; 1 if a kernel has a fault or the report one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    all_of_them = list(ARCHITECTURES)
    parser.add_argument("--architectures", nargs="+", default=all_of_them, metavar="SM")
    parser.add_argument("--files", nargs="+", default=["*"], help="names of .cu files (patterns)")
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--against", type=Path, help="a report with the same figures, or fail")
    parser.add_argument("--update", type=Path, help="compile what changed since this, rewrite it")
    options = parser.parse_args()
    if options.update is not None and (
        options.files != ["*"] or options.architectures != all_of_them
    ):
        parser.error("--update is of all files and architectures")
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if nvcc is None:
        print("cuda_resources: nvcc is not on PATH (or set CUDACXX)", file=sys.stderr)
        return 2
    folder = ROOT / "csrc" / "ops" / "cuda"
    sources = sorted({s for pattern in options.files for s in folder.glob(f"{pattern}.cu")})
    compiler = version(nvcc)
    kept = Report(compiler, [], {})
    if options.update is not None and options.update.exists():
        kept = read(options.update.read_text(encoding="utf-8")).current(compiler, sources)
    changed = [s for s in sources if s.name not in kept.digests]
    kernels = kept.kernels + compile_all(nvcc, changed, options.architectures)
    kernels.sort(key=lambda k: (k.file, options.architectures.index(k.architecture)))
    report = Report(compiler, kernels, {s.name: digest(s) for s in sources})

    if options.json is not None:
        options.json.write_text(json.dumps([asdict(k) for k in kernels], indent=1) + "\n")
    text = render(report)
    faults = [fault for kernel in kernels for fault in kernel.faults()]
    if options.update is not None:
        print(f"{len(changed)} of {len(sources)} files compiled")
        options.update.write_text(text, encoding="utf-8")
        faults += gaps(report, sources, options.architectures)
    else:
        print(text, end="")
    if options.against is not None:
        committed = read(options.against.read_text(encoding="utf-8"))
        if committed.compiler != compiler:
            print(f"{options.against} is by {committed.compiler}: figures are not compared")
        faults += differences(report, committed)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
