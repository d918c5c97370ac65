# SPDX-License-Identifier: Apache-2.0
"""Time and extra memory of loss and gradient as the number of classes grows, ours and peers.

``python bench/plot_classes.py --write bench/results/classes`` writes classes.json and classes.png.
A peer that would not fit in memory ends where it ends; the plot shows that too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_softmax_readout import SCALE, attention, chunked, naive, ours
from matplotlib.figure import Figure
from torch import Tensor

from interleave import extra_memory_mb

ROWS, DIM = 256, 128
CLASSES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
ROUNDS = 3

# Copies of a float32 row of logits that each holds at once, and rows it holds them for: to stop
# before the machine does.
_LOGITS: dict[Callable[..., Tensor], int] = {
    ours: 0,
    naive: 4 * ROWS,
    chunked: 4 * ROWS,
    attention: 0,
}


def unit_rows(count: int, dim: int) -> Tensor:
    """Random unit rows, made in parts: the result is all the memory it takes."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.empty(count, dim)
    for part in rows.split(1 << 18):
        part.normal_(generator=generator)
        part.div_(part.norm(dim=1, keepdim=True))
    return rows


def measure(classes: int) -> list[dict[str, object]]:
    """One row per peer that fits in memory; their rounds take turns."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    w = unit_rows(classes, DIM)
    x = F.normalize(torch.randn(ROWS, DIM), dim=1).requires_grad_()
    y = torch.randint(0, classes, (ROWS,))
    steps = {
        peer.__name__: lambda peer=peer: torch.autograd.grad(peer(x, w, y), x)
        for peer, copies in _LOGITS.items()
        if 4.0 * classes * (DIM + copies) < 0.8 * total
        and (peer is not chunked or hasattr(F, "linear_cross_entropy"))
    }
    memory = {}
    for name, step in steps.items():
        step()
        gc.collect()
        memory[name] = extra_memory_mb(step)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return [
        {
            "peer": name,
            "classes": classes,
            "seconds": statistics.median(seconds[name]),
            "extra_memory_mb": memory[name],
        }
        for name in steps
    ]


def plot(results: list[dict[str, object]], target: Path) -> None:
    """Both panels on logarithmic axes."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, key, label in (
        (axes[0], "seconds", "seconds"),
        (axes[1], "extra_memory_mb", "extra memory, MB"),
    ):
        for peer in dict.fromkeys(row["peer"] for row in results):
            rows = [row for row in results if row["peer"] == peer and row[key] is not None]
            # Memory below a megabyte is the allocator's noise.
            values = [max(float(str(row[key])), 1.0 if key != "seconds" else 0.0) for row in rows]
            axis.plot([row["classes"] for row in rows], values, marker="o", label=str(peer))
        axis.set(xscale="log", yscale="log", xlabel="classes", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(
        f"Loss and gradient, {ROWS} rows of {DIM} dims, scale {SCALE:g}, float32, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        fontsize=10,
    )
    figure.savefig(target, dpi=130)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, required=True, help="path without its ending")
    target: Path = parser.parse_args().write
    results = []
    for classes in CLASSES:
        results += measure(classes)
        print(*(row for row in results if row["classes"] == classes), sep="\n", flush=True)
    target.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(results, target.with_suffix(".png"))


if __name__ == "__main__":
    main()
