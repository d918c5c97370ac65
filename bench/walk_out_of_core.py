# SPDX-License-Identifier: Apache-2.0
"""A walk from file to file in a process that cannot have more memory than it says.

``python bench/walk_out_of_core.py --write bench/results/out_of_core.json`` makes a graph and a file
of features, walks it in a process of its own whose private memory the system limits (RLIMIT_DATA:
what is asked for above it fails), and compares rows with a walk of a few columns in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from fclearn import KnnGraph
from fclearn.out_of_core import walk_file

CLUSTER, STRAY, CHECKED_COLUMNS = 64, 0.1, 2
STEPS = {"damping": 0.9, "num_steps": 10}


def make(folder: Path, nodes: int, neighbours: int, dim: int) -> None:
    """Clusters of neighbours with a tenth of the edges anywhere, and features in blocks."""
    generator = torch.Generator().manual_seed(0)
    col = torch.arange(nodes, dtype=torch.int32)[:, None] // CLUSTER * CLUSTER + torch.randint(
        0, CLUSTER, (nodes, neighbours), generator=generator, dtype=torch.int32
    )
    stray = torch.rand(nodes, neighbours, generator=generator) < STRAY
    away = torch.randint(0, nodes, (int(stray.sum()),), generator=generator, dtype=torch.int32)
    col[stray] = away
    col.clamp_(max=nodes - 1)
    similarities = torch.rand(nodes, neighbours, generator=generator)
    KnnGraph.from_knn(col, similarities).normalize(temperature=0.5).save(folder / "graph")
    rows = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (nodes, dim))
    random = np.random.default_rng(0)
    for begin in range(0, nodes, 1 << 18):
        block = rows[begin : begin + (1 << 18)]
        block[:] = random.standard_normal(block.shape, dtype=np.float32)
    rows.flush()


def walk(folder: Path, cap: int) -> None:
    """What runs under the cap; prints what it took."""
    resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    graph = KnnGraph.load(folder / "graph")
    # The rest is for Python, torch, and what a step needs for itself.
    array_bytes = cap - (1 << 30)
    private: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            private.append(_private_kilobytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    walk_file(
        graph, folder / "features.npy", folder / "walked.npy", memory_bytes=array_bytes, **STEPS
    )
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "peak_private_mb": max(private) / 1024}))


def _private_kilobytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/status has no RssAnon")


def difference(folder: Path) -> float:
    """Largest relative difference of a few columns from their walk in memory."""
    graph = KnnGraph.load(folder / "graph")
    source = np.load(folder / "features.npy", mmap_mode="r")
    columns = torch.from_numpy(np.ascontiguousarray(source[:, :CHECKED_COLUMNS]))
    expected = graph.walk(columns, **STEPS)
    walked = torch.from_numpy(
        np.ascontiguousarray(np.load(folder / "walked.npy", mmap_mode="r")[:, :CHECKED_COLUMNS])
    )
    return float((walked - expected).abs().max() / expected.abs().max())


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5_000_000)
    parser.add_argument("--neighbours", type=int, default=16)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--cap-gb", type=float, default=4.0)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--walk-in", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cap = int(arguments.cap_gb * 2**30)
    if arguments.walk_in is not None:
        walk(arguments.walk_in, cap)
        return
    with tempfile.TemporaryDirectory(prefix="fcl_walk_") as name:
        folder = Path(name)
        make(folder, arguments.nodes, arguments.neighbours, arguments.dim)
        command = [sys.executable, __file__, "--walk-in", name, "--cap-gb", str(arguments.cap_gb)]
        output = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
        result = {
            "nodes": arguments.nodes,
            "neighbours": arguments.neighbours,
            "dim": arguments.dim,
            "steps": STEPS["num_steps"],
            "cap_gb": arguments.cap_gb,
            "file_gb": (folder / "features.npy").stat().st_size / 2**30,
            **json.loads(output),
            "largest_relative_difference": difference(folder),
        }
    print(json.dumps(result, indent=1))
    if arguments.write is not None:
        arguments.write.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
