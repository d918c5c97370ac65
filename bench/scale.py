# SPDX-License-Identifier: Apache-2.0
"""Cost of one job by the processes of a torchrun: seconds, and memory of the largest process.

``torchrun --nproc-per-node P bench/scale.py JOB [KEY=VALUE …]``; results: docs/scale.md. Jobs:

* ``loss rows=1024 classes=200000 dim=128``: forward and backward of the sharded loss, and apart
  from it the collectives of one step, on as many numbers;
* ``graph rows=100000 dim=64 k=10``, ``walk rows=2000000 dim=64 k=5 steps=10``,
  ``eval rows=2000000 dim=64 queries=1000``, on made-up features in a file.

Every process computes with one thread, so that one and two processes differ by their number alone.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fclearn import KnnGraph, evaluate_retrieval
from fclearn.distributed import World, joined_world, row_range, sharded_compat_loss
from fclearn.distributed.collectives import gather, sum_scatter
from fclearn.distributed.evaluation import evaluating_by_all
from fclearn.distributed.graph import graph_by_all
from fclearn.distributed.walk import walk_by_all

Result = dict[str, float]
_REPEATS = 5


def _seconds(world: World, work: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Median over repeats of the time until the last process is done."""
    times = []
    for _ in range(repeats):
        world.barrier()
        start = time.perf_counter()
        work()
        world.barrier()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def loss(world: World, _folder: Path, rows: int, classes: int, dim: int) -> Result:
    """One step of the loss with a trainable classifier."""
    own = rows // world.size
    begin, end = row_range(classes, world.rank, world.size)
    torch.manual_seed(world.rank)
    embeddings = torch.randn(own, dim, requires_grad=True)
    shard = torch.randn(end - begin, dim, requires_grad=True)
    labels = torch.randint(classes, (own,))

    def step() -> None:
        embeddings.grad = shard.grad = None
        options = {"first": begin, "num_classes": classes, "group": world.group}
        sharded_compat_loss(embeddings, shard, labels, **options).backward()

    def collectives() -> None:
        everyone = gather(embeddings.detach(), world.group)
        sum_scatter(everyone, world.group)
        sum_scatter(everyone, world.group)
        gather(embeddings.detach(), world.group)

    step()
    return {
        "step_seconds": _seconds(world, step),
        "collectives_seconds": _seconds(world, collectives),
        "bytes_per_process": 4 * 4 * rows * dim * (world.size - 1) / world.size,
    }


def _features(world: World, folder: Path, rows: int, dim: int) -> Path:
    path = folder / "features.npy"
    if world.is_first:
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dim))
        random = np.random.default_rng(0)
        for first in range(0, rows, 1 << 16):
            block = out[first : first + (1 << 16)]
            block[:] = random.standard_normal(block.shape, dtype=np.float32)
        out.flush()
    world.barrier()
    return path


def graph(world: World, folder: Path, rows: int, dim: int, k: int) -> Result:
    """The exact kNN graph of a file."""
    path = _features(world, folder, rows, dim)
    piece = -(-rows // (4 * world.size))

    def build() -> None:
        graph_by_all(path, k, folder / "graph", world=world, piece_rows=piece)

    return {"seconds": _seconds(world, build, 1)}


def walk(world: World, folder: Path, rows: int, dim: int, k: int, steps: int) -> Result:
    """A walk over a graph of random edges, from file to files."""
    path = _features(world, folder, rows, dim)
    saved = folder / "graph.safetensors"
    if world.is_first:
        columns = torch.randint(rows, (rows, k), dtype=torch.int32)
        KnnGraph.from_knn(columns, torch.rand(rows, k)).normalize().save(saved)
    world.barrier()

    def run() -> None:
        options = {"damping": 0.5, "num_steps": steps, "memory_bytes": 1 << 30}
        walk_by_all(KnnGraph.load(saved), path, folder / "walked", world=world, **options)

    return {"seconds": _seconds(world, run, 1)}


def eval_(world: World, folder: Path, rows: int, dim: int, queries: int) -> Result:
    """Metrics of the first ranks, and of all by a twentieth of the queries, from a file."""
    path = _features(world, folder, rows, dim)
    labels = np.arange(rows) % 1000
    query = np.array(np.load(path, mmap_mode="r")[:queries])

    def run(*metrics: str, queries: int = queries) -> None:
        with evaluating_by_all(world):
            options = {"query_labels": labels[:queries], "gallery_labels": labels}
            evaluate_retrieval(query[:queries], path, metrics=metrics, **options)

    return {
        "first_ranks_seconds": _seconds(world, lambda: run("cmc@1", "map@100"), 1),
        "all_ranks_seconds": _seconds(world, lambda: run("map", queries=queries // 20), 1),
    }


def main() -> None:
    """Run the job that the command line names."""
    name, *pairs = sys.argv[1:]
    sizes = {key: int(value) for key, value in (pair.split("=") for pair in pairs)}
    torch.set_num_threads(1)
    job: Callable[..., Result] = {"loss": loss, "graph": graph, "walk": walk, "eval": eval_}[name]
    with joined_world("cpu") as world, tempfile.TemporaryDirectory() as own:
        result = job(world, Path(world.from_first(own)), **sizes)
        peak = max(world.all_of(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)) / 1024
        if world.is_first:
            facts = {"job": name, **sizes, "processes": world.size, "torch": torch.__version__}
            print(json.dumps({**facts, **result, "peak_mib_per_process": round(peak)}), flush=True)
        world.barrier()


if __name__ == "__main__":
    main()
