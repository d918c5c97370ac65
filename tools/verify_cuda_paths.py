#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Verify a path of the CUDA kernels on this machine's GPU, and record that it was.

Runs the GPU tests of the path (``tests/test_cuda_*_device.py``, and those of the operators with
``FCL_CUDA_PATH`` set). If they pass, ``fcl_ext/cuda_verified.json`` names the path for the
operators given, and from the next import on it is taken unasked.

Usage: ``python tools/verify_cuda_paths.py mma softmax_readout softmax_readout_backward``, or
``gather random_walk``, or ``union random_walk_union``.
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
#: Test files of each path.
TESTS = {
    "simt": (*READOUT, *WALK),
    "mma": READOUT,
    "sm90": READOUT,
    "gather": WALK,
    "union": WALK,
}


def run_tests(path: str) -> int:
    """Pytest's exit status."""
    others = " or ".join(other for other in TESTS if other != path)
    files = [str(ROOT / "tests" / f"{name}.py") for name in TESTS[path]]
    command = [sys.executable, "-m", "pytest", "-m", "needs_cuda", "-k", f"not ({others})", *files]
    environment = {**os.environ, "FCL_CUDA_PATH": path}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    """The tests' exit status; the record is written if it is 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", choices=TESTS)
    parser.add_argument("operators", nargs="+", help="as in torch.ops.fcl")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("verify_cuda_paths: this machine has no GPU", file=sys.stderr)
        return 2
    status = run_tests(options.path)
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
