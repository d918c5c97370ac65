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
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_clock import ROUNDS, Clock, Row, assert_close, unit_rows
from gpu_readout import readouts
from torch import Tensor

import fcl_ext

# nodes, neighbours, dim, steps
WALKS = {"smoke": [(50, 4, 8, 2)], "full": [(200_000, 32, 128, 10), (1_000_000, 32, 64, 10)]}
# rows, dim, k
NEIGHBOURS = {"smoke": [(60, 8, 3)], "full": [(50_000, 128, 32), (100_000, 256, 32)]}


def walks(shapes: str, device: str, clock: Clock) -> Iterator[Row]:
    """Exact steps of the walk on a random graph of fixed degree, the worst order there is."""
    for nodes, neighbours, dim, steps in WALKS[shapes]:
        generator = torch.Generator().manual_seed(2)
        col = torch.randint(0, nodes, (nodes * neighbours,), generator=generator).to(device)
        crow = torch.arange(0, nodes * neighbours + 1, neighbours, device=device)
        values = torch.full((len(col),), 1 / neighbours, device=device)
        features = unit_rows(nodes, dim, torch.float32, device, 3)
        ids = col.to(torch.int32)
        matrix = torch.sparse_csr_tensor(crow, col, values, (nodes, nodes), check_invariants=False)
        bags = col.reshape(nodes, neighbours)
        weights = values.reshape(nodes, neighbours)

        def ours(crow=crow, ids=ids, values=values, features=features, steps=steps) -> Tensor:
            return torch.ops.fcl.random_walk(crow, ids, values, features, 0.9, steps)

        def repeat(product: Callable[[Tensor], Tensor], features=features, steps=steps) -> Tensor:
            state = features
            for _ in range(steps):
                state = torch.add(0.1 * features, product(state), alpha=0.9)
            return state

        def torch_csr(matrix=matrix, repeat=repeat) -> Tensor:
            return repeat(lambda state: matrix @ state)

        def embedding_bag(bags=bags, weights=weights, repeat=repeat) -> Tensor:
            return repeat(
                lambda state: F.embedding_bag(bags, state, mode="sum", per_sample_weights=weights)
            )

        assert_close(ours(), torch_csr(), 1e-5)
        for who in (ours, torch_csr, embedding_bag):
            ms, mb = clock.run(who)
            moved = steps * nodes * (neighbours * (4 * dim + 8) + 12 * dim)
            shape = f"{nodes}x{neighbours}x{dim}, {steps} steps"
            yield Row(
                "random_walk", shape, "float32", who.__name__, ms, mb, moved / ms / 1e9, "TB/s"
            )


def neighbours(shapes: str, device: str, clock: Clock) -> Iterator[Row]:
    """Exact nearest neighbours among the rows themselves."""
    for rows, dim, k in NEIGHBOURS[shapes]:
        features = unit_rows(rows, dim, torch.float32, device, 4)

        def ours(features=features, k=k) -> Tensor:
            return fcl_ext.knn_graph(features, k)[1]

        def torch_topk(features=features, k=k) -> Tensor:
            best = []
            for begin in range(0, len(features), 4096):
                block = features[begin : begin + 4096] @ features.T
                block[torch.arange(len(block)), torch.arange(begin, begin + len(block))] = -2
                best.append(block.topk(k).values)
            return torch.cat(best)

        assert_close(ours(), torch_topk(), 1e-4)
        for who in (ours, torch_topk):
            ms, mb = clock.run(who)
            rate = 2 * rows * rows * dim / ms / 1e9
            yield Row(
                "knn_graph",
                f"{rows}x{dim}, k={k}",
                "float32",
                who.__name__,
                ms,
                mb,
                rate,
                "TFLOP/s",
            )


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
    print(f"{'op':21} {'shape':26} {'dtype':9} {'who':14} {'ms':>10} {'extra MB':>9} {'rate':>8}")
    for r in rows:
        print(
            f"{r.op:21} {r.shape:26} {r.dtype:9} {r.who:14} {r.milliseconds:10.3f} "
            f"{r.megabytes:9.1f} {r.rate:8.3f} {r.unit}"
        )


if __name__ == "__main__":
    main()
