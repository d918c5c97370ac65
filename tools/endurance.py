# SPDX-License-Identifier: Apache-2.0
"""Memory and handles over many steps: what does not grow in 10,000 steps does not leak.

    python tools/endurance.py --steps 10000 --write bench/results/endurance.json

For each kind of work: resident memory sampled over the second half of the steps (the first fills
caches and the allocator's free lists), its slope by least squares, and open files and threads
before and after. Exit code 1 if memory grew by more than ``--limit-mb`` over as many steps, or if a
handle stayed open.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import nn

import fcl_ext
from fclearn import FeatureStore, Fingerprint, KnnGraph, PseudoClassifier, evaluate_retrieval
from fclearn.losses import CosineClassifierLoss, InstanceCompatLoss, L2CompatLoss

_SAMPLES = 200
_PAGE = resource.getpagesize()


class Found(TypedDict):
    """What was measured over one kind of work."""

    steps: int
    growth_mb: float
    resident_mb: float
    files: int
    threads: int
    seconds: float


def _loss() -> Callable[[], object]:
    rows = torch.randn(64, 32, requires_grad=True)
    prototypes, labels = torch.randn(500, 32, requires_grad=True), torch.arange(64)

    def step() -> None:
        fcl_ext.compat_loss(rows, prototypes, labels).backward()
        rows.grad = prototypes.grad = None

    return step


def _supcon() -> Callable[[], object]:
    rows, bank = torch.randn(32, 32, requires_grad=True), torch.randn(400, 32)
    labels = torch.arange(400) % 40

    def step() -> None:
        fcl_ext.compat_supcon(rows, labels[:32], bank, labels).backward()
        rows.grad = None

    return step


def _walk() -> Callable[[], object]:
    features = torch.randn(400, 32)
    graph = KnnGraph.build(features, 8).normalize()
    return lambda: graph.walk(features, 0.9, num_steps=3)


def _graph() -> Callable[[], object]:
    features, labels = torch.randn(200, 16), torch.arange(200) % 10

    def step() -> None:
        graph = KnnGraph.build(features, 5).normalize()
        PseudoClassifier.from_means(features, labels).refine(graph, 0.9)

    return step


def _train() -> Callable[[], object]:
    images, labels = torch.randn(256, 24), torch.arange(256) % 16
    old = torch.randn(256, 8)
    encoder = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16))
    terms = [CosineClassifierLoss(16, 16), InstanceCompatLoss(old, labels), L2CompatLoss(old)]
    optimizer = torch.optim.AdamW([*encoder.parameters(), *terms[0].parameters()])

    def step() -> None:
        rows = torch.randint(256, (32,))
        embeddings = encoder(images[rows])
        loss = sum(term(embeddings, labels[rows], rows) for term in terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _evaluation() -> Callable[[], object]:
    rows, labels = torch.randn(100, 16), torch.arange(100) % 10
    return lambda: evaluate_retrieval(
        rows[:10], rows, query_labels=labels[:10], gallery_labels=labels
    )


def _files(folder: Path) -> Callable[[], object]:
    rows = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    columns = {"id": [str(row) for row in range(50)], "label": np.arange(50) % 5}
    graph = KnnGraph.build(torch.from_numpy(rows), 4)

    def step() -> None:
        fingerprint = Fingerprint("m", 8, norm="none")
        store = FeatureStore.write(folder / "store", rows, columns, fingerprint)
        store.features.sum()
        graph.save(folder / "graph")
        KnnGraph.load(folder / "graph")

    return step


def work(folder: Path) -> dict[str, Callable[[], object]]:
    """A step of each kind of work; files go into the folder."""
    return {
        "loss": _loss(),
        "supcon": _supcon(),
        "walk": _walk(),
        "graph": _graph(),
        "train": _train(),
        "evaluation": _evaluation(),
        "files": _files(folder),
    }


def measure(step: Callable[[], object], steps: int) -> Found:
    """Repeat a step, and see what stays.

    Args:
        step: What is repeated.
        steps: How often, at least 4.

    Example:
        >>> kept = []
        >>> measure(lambda: kept.append(bytearray(1 << 20)), 40)["growth_mb"] > 30
        True
    """
    # Lazy imports, thread pools.
    for _ in range(max(2, steps // 100)):
        step()
    gc.collect()
    files, threads = _count("fd"), _count("task")
    every = max(1, steps // 2 // _SAMPLES)
    begin = time.monotonic()
    places, resident = [], []
    for number in range(steps):
        step()
        if number >= steps // 2 and number % every == 0:
            places.append(number)
            resident.append(_resident_mb())
    seconds = time.monotonic() - begin
    gc.collect()
    slope = float(np.polyfit(places, resident, 1)[0])
    return {
        "steps": steps,
        "growth_mb": slope * steps,
        "resident_mb": resident[-1],
        "files": _count("fd") - files,
        "threads": _count("task") - threads,
        "seconds": seconds,
    }


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 1e6


def _count(kind: str) -> int:
    return len(os.listdir(f"/proc/self/{kind}"))  # noqa: PTH208  (no Path per entry while counting)


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--only", default="", help="names, by commas; default: all")
    parser.add_argument("--limit-mb", type=float, default=8.0)
    parser.add_argument("--write", type=Path, help="where to keep the numbers")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        jobs = work(Path(folder))
        names = arguments.only.split(",") if arguments.only else list(jobs)
        found = {}
        for name in names:
            found[name] = measure(jobs[name], arguments.steps)
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    if arguments.write is not None:
        known = {}
        if arguments.write.exists():
            known = json.loads(arguments.write.read_text(encoding="utf-8"))
        text = json.dumps({**known, **found}, indent=1)
        arguments.write.write_text(text + "\n", encoding="utf-8")
    leaks = [
        name
        for name, one in found.items()
        if one["growth_mb"] > arguments.limit_mb or one["files"] > 0 or one["threads"] > 0
    ]
    for name in leaks:
        print(f"{name}: grew: {found[name]}", file=sys.stderr)
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
