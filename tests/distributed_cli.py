# SPDX-License-Identifier: Apache-2.0
"""Run as a process of its own: verbs of ``fcl`` by two processes each, as torchrun starts them.

torch is imported once, before the processes part: it takes longer than the verbs. The argument is a
folder; the verbs write there.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# Imported here, for the processes to come.
import fclearn.distributed.embedding
import fclearn.distributed.evaluation
import fclearn.distributed.graph
import fclearn.distributed.training
import fclearn.distributed.walk  # noqa: F401
from fclearn.cli import main

PROCESSES = 2


def _one(rank: int, port: int, arguments: list[str], log: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with Path(log).open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        sys.exit(main(arguments))


def fcl(folder: Path, name: str, *arguments: str | Path) -> None:
    """Run a verb; what process r prints on stdout goes to ``NAME.r.txt``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(
            target=_one,
            args=(rank, port, [str(word) for word in arguments], f"{folder}/{name}.{rank}.txt"),
        )
        for rank in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    codes = [process.exitcode for process in processes]
    (folder / f"{name}.codes").write_text(repr(codes))
    for process in processes:
        process.kill()


def write_images(folder: Path) -> None:
    """Four classes of six small pictures."""
    random = np.random.default_rng(0)
    for label in range(4):
        (folder / f"class-{label}").mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(0, 120, (16, 16), dtype=np.uint8)
            pixels[4 * label : 4 * label + 3] = 255
            Image.fromarray(pixels).save(folder / f"class-{label}" / f"{number}.png")


def run(folder: Path) -> None:
    """All verbs."""
    write_images(folder / "images")
    data = ["data.kind=folder", f"data.path={folder / 'images'}", "data.size=16", "data.grey=true"]
    small = ["encoder.dim=8", "train.epochs=2", "train.batch_size=8", "device=cpu"]
    train = ["train", "--json", *data, *small, f"output={folder / 'model'}"]
    fcl(folder, "train", *train, "method.name=independent")
    fcl(folder, "train-again", *train, "method.name=independent")
    fcl(folder, "train-other", *train, "method.name=independent", "train.epochs=3")
    fcl(
        *(folder, "embed", "embed", folder / "model", folder / "images"),
        *("--out", folder / "store", "--json", "--device", "cpu"),
    )
    graph = folder / "graph.safetensors"
    fcl(folder, "graph", "graph", folder / "store", "--k", "3", "--out", graph, "--json")
    fcl(folder, "walk", "walk", graph, folder / "store", "--out", folder / "walked", "--json")
    stores = ["--old-query", folder / "store", "--new-query", folder / "walked"]
    fcl(folder, "eval", "eval", *stores, "--json", "--report", folder / "report")
    fcl(folder, "gate", "eval", *stores, "--gate", "new/old.map>1")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
