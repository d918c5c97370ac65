#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build, test and measure on a machine with a GPU, in one call and without a network.

Steps, each with its own time limit: build for this GPU (against the torch of this Python), the
operators' tests on it, measurements, memory and race checks where compute-sanitizer is. A step that
fails does not stop the next; the tables come last. Results and logs go to ``--out``.

Usage: ``python bench/gpu_all.py [--out bench/results] [--seconds 570] [--skip build ...]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
OPERATOR_TESTS = [
    "softmax_readout",
    "sparse_readout",
    "compat_losses",
    "random_walk",
    "random_walk_bf16",
    "edge_dot",
    "csr_transpose",
    "knn_graph",
]
# Every operator once, with shapes of several tiles: what the sanitizers watch.
SANITIZED = "tests/test_cuda_device.py::test_every_operator_runs_once"


def steps(out: Path) -> dict[str, tuple[list[str], int]]:
    """Command and time limit in seconds of each step."""
    major, minor = torch.cuda.get_device_capability()
    # 9.0 has instructions of its own that only code for exactly it may use.
    architecture = f"{major}{minor}a" if major >= 9 else f"{major}{minor}"
    python = sys.executable
    pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-v"]
    defines = {"FCL_CUDA": "ON", "FCL_CUDA_ARCHITECTURES": architecture, "FCL_WERROR": "ON"}
    build = [*pip, *(f"-Ccmake.define.{k}={v}" for k, v in defines.items()), "--editable", "."]
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests = [f"tests/test_{name}.py" for name in OPERATOR_TESTS]
    # Torch's allocator would hide reads past the end of one tensor inside a larger block.
    sanitizer = ["compute-sanitizer", "--error-exitcode=3", "--tool"]
    return {
        "build": (build, 240),
        "registration": ([*pytest, "tests/test_cuda_registration.py"], 60),
        "device": ([*pytest, "tests/test_cuda_device.py"], 120),
        "paths": ([*pytest, "tests/test_cuda_readout_device.py"], 240),
        "walk": ([*pytest, "tests/test_cuda_walk_device.py"], 120),
        "neighbours": ([*pytest, "tests/test_cuda_knn_device.py"], 120),
        "operators": ([*pytest, *tests, "-m", "needs_cuda"], 240),
        "measure": ([python, "bench/gpu_measure.py", "--json", str(out / "gpu.json")], 150),
        "memcheck": ([*sanitizer, "memcheck", *pytest, SANITIZED], 90),
        "racecheck": ([*sanitizer, "racecheck", *pytest, SANITIZED], 90),
        "resources": ([python, "tools/cuda_resources.py", "--architectures", architecture], 120),
    }


def run(name: str, command: list[str], limit: int, out: Path) -> dict[str, object]:
    """One step: its log in out/<name>.log, its verdict returned."""
    print(f"=== {name}: {' '.join(command)}", flush=True)
    if shutil.which(command[0]) is None:
        return {"step": name, "result": f"skipped: no {command[0]}", "seconds": 0}
    if limit < 10:
        return {"step": name, "result": "skipped: no time left", "seconds": 0}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if name in ("memcheck", "racecheck"):
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    start = time.perf_counter()
    with (out / f"{name}.log").open("w") as log:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                timeout=limit,
                check=False,
            ).returncode
            result = "ok" if code == 0 else f"FAILED ({code})"
        except subprocess.TimeoutExpired:
            result = f"STOPPED after {limit} s"
    seconds = round(time.perf_counter() - start, 1)
    lines = (out / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    last = lines[-1] if lines else ""
    if result == "ok" and "pytest" in command and " passed" not in last:
        result = "FAILED: every test was skipped"
    print("\n".join(lines[-(3 if result == "ok" else 60) :]), flush=True)
    return {"step": name, "result": result, "seconds": seconds, "last": last}


def main() -> int:
    """Run all steps; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--seconds", type=int, default=570, help="for everything together")
    parser.add_argument("--skip", nargs="*", default=[], metavar="STEP")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_all: torch sees no CUDA device", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "driver": _first_line(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        ),
        "nvcc": _first_line(["sh", "-c", "nvcc --version | tail -n 1"]),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(facts), flush=True)
    end = time.monotonic() + options.seconds
    verdicts = [
        run(name, command, min(limit, int(end - time.monotonic())), options.out)
        for name, (command, limit) in steps(options.out.resolve()).items()
        if name not in options.skip
    ]
    summary = json.dumps({**facts, "steps": verdicts}, indent=1)
    (options.out / "gpu_all.json").write_text(summary + "\n", encoding="utf-8")
    if (options.out / "measure.log").exists():
        print((options.out / "measure.log").read_text(encoding="utf-8"))
    print(f"{'step':14} {'seconds':>8}  result")
    for v in verdicts:
        print(f"{v['step']:14} {v['seconds']:8}  {v['result']}  {v.get('last', '')}"[:150])
    return int(any(str(v["result"])[0].isupper() for v in verdicts))


def _first_line(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return "unknown"
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return (run.stdout.splitlines() or ["unknown"])[0]


if __name__ == "__main__":
    sys.exit(main())
