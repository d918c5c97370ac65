#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the operators on a GPU beside what plain torch offers for the same result.

Every row is checked against its peer before it is timed. Yardsticks (a large bf16 product, a device
copy) are measured in the same run: fractions of them are what compares across machines.

Usage: ``python bench/gpu_measure.py [--shapes smoke|full] [--device cuda|cpu] [--json FILE]``; cpu
with smoke shapes only checks this script.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_clock import ROUNDS, Clock
from gpu_graph import neighbours, walks
from gpu_readout import readouts

import fcl_ext


def yardsticks(shapes: str, device: str, clock: Clock) -> dict[str, float]:
    """What this device does at its best, now."""
    size = 8192 if shapes == "full" else 64
    out = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(size, size, device=device).to(dtype)
        ms, _ = clock.run(lambda a=a: a @ a)
        out[f"{str(dtype)[6:]} product, TFLOP/s"] = 2 * size**3 / ms / 1e9
    source = torch.empty(size * size * 4, device=device)
    target = torch.empty_like(source)
    ms, _ = clock.run(lambda: target.copy_(source))
    out["copy, TB/s"] = 2 * 4 * source.numel() / ms / 1e9
    return out


def facts(device: str) -> dict[str, object]:
    """What the numbers depend on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "fcl_ext": fcl_ext.__version__,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "rounds": ROUNDS,
    }


def main() -> None:
    """Measure, write JSON, print the table last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=("smoke", "full"), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clock = Clock(options.device)
    report = facts(options.device) | yardsticks(options.shapes, options.device, clock)
    rows = []
    for measure in (readouts, walks, neighbours):
        rows += measure(options.shapes, options.device, clock)
        if options.json is not None:  # a run that is cut short keeps what it has
            full = {**report, "rows": [asdict(row) for row in rows]}
            options.json.write_text(json.dumps(full, indent=1) + "\n")
    for name, value in report.items():
        print(f"{name}: {value if not isinstance(value, float) else round(value, 3)}")
    print(f"{'op':21} {'shape':34} {'dtype':9} {'who':18} {'ms':>10} {'extra MB':>9} {'rate':>8}")
    for r in rows:
        print(
            f"{r.op:21} {r.shape:34} {r.dtype:9} {r.who:18} {r.milliseconds:10.3f} "
            f"{r.megabytes:9.1f} {r.rate:8.3f} {r.unit}"
        )


if __name__ == "__main__":
    main()
