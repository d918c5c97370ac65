# SPDX-License-Identifier: Apache-2.0
"""Time of one walk step and of building a kNN graph as nodes and dims grow, ours and peers.

``python bench/plot_graphs.py --write bench/results/graphs`` writes graphs.json and graphs.png.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_knn_graph as knn
import bench_random_walk as walk
import torch
from matplotlib.figure import Figure

ROUNDS = 2
# What is held while the other grows.
NODES, DIM, NEIGHBOURS, STEPS = 100_000, 128, 32, 10
KNN_NODES = 20_000
WALK_NODES = (1_000, 10_000, 100_000, 1_000_000)
KNN_SIZES = (1_000, 5_000, 20_000, 50_000)
DIMS = (16, 64, 256, 512)
WALKS = (walk.ours, walk.ours_prepared, walk.embedding_bag, walk.torch_csr, walk.scipy_csr)
BUILDERS = (knn.ours, knn.faiss_flat, knn.torch_topk)


def medians(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each; their rounds take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(ROUNDS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_:  # the first makes what each needs
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def walk_step(nodes: int, dim: int) -> dict[str, float]:
    """Seconds of one of `STEPS` steps on a clustered graph with shuffled ids, all else included."""
    problem = walk._clustered((nodes, NEIGHBOURS, dim, STEPS))
    found = medians({peer.__name__: functools.partial(peer, problem) for peer in WALKS})
    return {name: seconds / STEPS for name, seconds in found.items()}


def knn_graph(nodes: int, dim: int) -> dict[str, float]:
    """Seconds of the exact kNN graph of random rows."""
    rows = torch.randn(nodes, dim, generator=torch.Generator().manual_seed(0))
    return medians({p.__name__: functools.partial(p, rows, NEIGHBOURS) for p in BUILDERS})


def plot(panels: dict[str, list[dict[str, Any]]], target: Path) -> None:
    """One panel per measurement, on logarithmic axes."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    for axis, (title, rows) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        variable = "nodes" if len({row["nodes"] for row in rows}) > 1 else "dim"
        for peer in rows[0]["seconds"]:
            axis.plot(
                [row[variable] for row in rows],
                [row["seconds"][peer] for row in rows],
                marker="o",
                label=peer,
            )
        axis.set(xscale="log", yscale="log", xlabel=variable, ylabel="seconds")
        sizes = [row[variable] for row in rows]
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axis.set_xticks([], minor=True)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(
        f"k = {NEIGHBOURS}, {STEPS} steps, float32, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
        fontsize=10,
    )
    figure.savefig(target, dpi=130)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, required=True, help="path without its ending")
    target: Path = parser.parse_args().write
    plans = {
        f"step of the walk, D = {DIM}": (walk_step, [(n, DIM) for n in WALK_NODES]),
        f"step of the walk, N = {NODES}": (walk_step, [(NODES, d) for d in DIMS]),
        f"exact kNN graph, D = {DIM}": (knn_graph, [(n, DIM) for n in KNN_SIZES]),
        f"exact kNN graph, N = {KNN_NODES}": (knn_graph, [(KNN_NODES, d) for d in DIMS]),
    }
    panels = {}
    for title, (measure, sizes) in plans.items():
        panels[title] = [
            {"nodes": nodes, "dim": dim, "seconds": measure(nodes, dim)} for nodes, dim in sizes
        ]
        print(title, *panels[title], sep="\n", flush=True)
    target.with_suffix(".json").write_text(json.dumps(panels, indent=1) + "\n", encoding="utf-8")
    plot(panels, target.with_suffix(".png"))


if __name__ == "__main__":
    main()
