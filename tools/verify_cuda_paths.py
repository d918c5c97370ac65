#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Verify a path of the CUDA kernels on this machine's GPU, and record that it was.

Runs the GPU tests of the operators (``tests/test_cuda_*_device.py`` and their own, with
``FCL_CUDA_PATH`` set to the path). If they pass, ``fcl_ext/cuda_verified.json`` names the path for
the operators given, and from the next import on it is taken unasked.

Usage: ``python tools/verify_cuda_paths.py mma softmax_readout softmax_readout_backward``, or
``gather random_walk``, or ``union random_walk_union``, or ``mma knn_graph``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from fcl_ext import cuda_paths

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "fcl_ext" / "cuda_verified.json"
READOUT = ("test_cuda_readout_device", "test_softmax_readout", "test_compat_losses")
WALK = ("test_cuda_walk_device", "test_random_walk", "test_random_walk_bf16")
KNN = ("test_cuda_knn_device", "test_knn_graph")
#: Test files of each operator that has paths.
TESTS = {
    "softmax_readout": READOUT,
    "softmax_readout_backward": READOUT,
    "random_walk": WALK,
    "random_walk_union": WALK,
    "knn_graph": KNN,
}
PATHS = ("simt", "mma", "sm90", "gather", "union")


def run_tests(path: str, operators: list[str]) -> int:
    """Pytest's exit status."""
    others = " or ".join(other for other in PATHS if other != path)
    # Each file once, in the order of the table.
    names = dict.fromkeys(name for operator in operators for name in TESTS[operator])
    files = [str(ROOT / "tests" / f"{name}.py") for name in names]
    command = [sys.executable, "-m", "pytest", "-m", "needs_cuda", "-k", f"not ({others})", *files]
    environment = {**os.environ, "FCL_CUDA_PATH": path}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    """The tests' exit status; the record is written if it is 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", choices=PATHS)
    parser.add_argument("operators", nargs="+", choices=TESTS, help="as in torch.ops.fcl")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("verify_cuda_paths: this machine has no GPU", file=sys.stderr)
        return 2
    status = run_tests(options.path, options.operators)
    if status != 0:
        return status
    device, today = torch.cuda.get_device_name(), datetime.date.today().isoformat()
    entries = cuda_paths.verified(RECORD)
    for operator in options.operators:
        entries.append(
            cuda_paths.Verified(options.path, operator, device, torch.__version__, today)
        )
    text = json.dumps([vars(entry) for entry in entries], indent=2)
    RECORD.write_text(text + "\n", encoding="utf-8")
    print(f"{RECORD} names {options.path} for {', '.join(options.operators)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
