# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random instants: artifacts stay whole, and the same call ends where it would have.

    python tools/kill_loop.py --kills 100
    python tools/kill_loop.py --kills 20 --only embed,walk --seed 3

Each job (training, embedding, an out-of-core walk, the plan of a backfill) runs once undisturbed.
Then it is started, killed and started again, until it ends by itself; what it left is compared with
the undisturbed result, bit by bit, and the next one begins, until there were enough kills. After
each kill, a result that is visible must be whole.

Jobs run in processes forked from one that has imported everything, so that kills fall into the work
and not into imports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fclearn import FeatureStore, Fingerprint, KnnGraph, TrainConfig, Trainer, embed
from fclearn._checkpoint import load_checkpoint
from fclearn.backfill import backfill_order
from fclearn.backfill.files import write_plan
from fclearn.datasets import ImageDataset
from fclearn.encoders import SmallCnn
from fclearn.losses import CosineClassifierLoss, LossTerm
from fclearn.out_of_core import walk_file


@dataclass(frozen=True)
class Job:
    """Something that resumes.

    Attributes:
        run: Does it in a folder, from where the last attempt got to.
        result: Of a finished folder, as bytes.
        check: Raises if what is visible in an unfinished folder is not whole.
    """

    run: Callable[[Path], None]
    result: Callable[[Path], bytes]
    check: Callable[[Path], None]


def images(count: int) -> ImageDataset:
    """Random grey images of four classes."""
    pixels = np.random.default_rng(0).integers(0, 255, (count, 16, 16), dtype=np.uint8)
    names = [f"image-{row}" for row in range(count)]
    return ImageDataset(pixels, np.arange(count) % 4, names, class_names=list("abcd"))


def _train(folder: Path) -> None:
    torch.manual_seed(0)
    terms = [LossTerm("new", 1.0, CosineClassifierLoss(4, 8))]
    config = TrainConfig(epochs=12, batch_size=16)
    trainer = Trainer(
        SmallCnn(8, width=4), terms, images(64), config, output_dir=folder, progress=False
    )
    trainer.fit()


def _trained(folder: Path) -> bytes:
    state = load_checkpoint(folder / "checkpoint.pt", torch.device("cpu"))
    tensors = [value for value in state["modules"].values() if isinstance(value, torch.Tensor)]
    return b"".join(tensor.numpy().tobytes() for tensor in tensors)


def _check_training(folder: Path) -> None:
    if (folder / "checkpoint.pt").exists():
        load_checkpoint(folder / "checkpoint.pt", torch.device("cpu"))


def _embed(folder: Path) -> None:
    torch.manual_seed(0)
    encoder = SmallCnn(8, width=4)
    mark = Fingerprint("tiny", 8)
    embed(encoder, images(512), folder / "store", fingerprint=mark, batch_size=8, progress=False)


def _check_store(folder: Path) -> None:
    if (folder / "store").exists():
        FeatureStore.open(folder / "store")


def _walk(folder: Path) -> None:
    rows = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))
    np.save(folder / "rows.npy", rows.numpy())
    # A kNN graph would take longer than the walk.
    neighbours = (torch.arange(3000)[:, None] + torch.tensor([1, 5, 30, 700])) % 3000
    graph = KnnGraph.from_knn(neighbours, torch.ones(3000, 4)).normalize()
    size = 3000 * 4 * 4
    walk_file(graph, folder / "rows.npy", folder / "out.npy", num_steps=30, memory_bytes=12 * size)


def _check_walk(folder: Path) -> None:
    if (folder / "out.npy").exists():
        np.load(folder / "out.npy")


def _plan(folder: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((20_000, 16)).astype(np.float32)
    order = backfill_order("margin", rows, labels=np.arange(20_000) % 50)
    write_plan(folder / "plan.csv", order, [str(row) for row in range(20_000)], budget=0.2)


def _check_plan(folder: Path) -> None:
    path = folder / "plan.csv"
    if path.exists() and len(path.read_text(encoding="utf-8").splitlines()) != 20_001:
        raise ValueError(f"{path} is not whole")


JOBS = {
    "train": Job(_train, _trained, _check_training),
    "embed": Job(
        _embed,
        lambda folder: b"".join(path.read_bytes() for path in sorted((folder / "store").iterdir())),
        _check_store,
    ),
    "walk": Job(_walk, lambda folder: (folder / "out.npy").read_bytes(), _check_walk),
    "backfill": Job(_plan, lambda folder: (folder / "plan.csv").read_bytes(), _check_plan),
}


def _in_process(run: Callable[[Path], None], folder: Path) -> None:
    # One thread: the pool of the process it is forked from does not come along.
    torch.set_num_threads(1)
    run(folder)


def _start(job: Job, folder: Path) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(
        target=_in_process, args=(job.run, folder)
    )
    process.start()
    return process


def torture(name: str, kills: int, rng: random.Random, root: Path) -> dict[str, int]:
    """Kill a job that often, and compare every finished result with the undisturbed one.

    Returns:
        Kills, and runs that ended.

    Raises:
        ValueError: Something visible was not whole, a job failed, or a result differs.
    """
    job = JOBS[name]
    calm = root / f"{name}-calm"
    calm.mkdir(parents=True)
    begin = time.monotonic()
    undisturbed = _start(job, calm)
    undisturbed.join()
    seconds = time.monotonic() - begin
    if undisturbed.exitcode != 0:
        raise ValueError(f"{name}: failed undisturbed, exit code {undisturbed.exitcode}")
    expected = hashlib.sha256(job.result(calm)).hexdigest()
    count = ended = 0
    while count < kills:
        folder = root / f"{name}-{ended}"
        folder.mkdir()
        while True:
            process = _start(job, folder)
            # Up to its whole time: some attempts end, and some kills come at the very end.
            process.join(timeout=rng.uniform(0, seconds) if count < kills else None)
            if process.exitcode is None:
                process.kill()
                process.join()
            if process.exitcode == 0:
                break
            if process.exitcode != -signal.SIGKILL:
                raise ValueError(f"{name}: failed after {count} kills, see above")
            count += 1
            job.check(folder)
        ended += 1
        if hashlib.sha256(job.result(folder)).hexdigest() != expected:
            raise ValueError(f"{name}: another result after {count} kills, in {folder}")
    return {"kills": count, "ended": ended}


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of all jobs together")
    parser.add_argument("--only", default=",".join(JOBS), help="names, by commas")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as root:
        found = {
            name: torture(name, -(-arguments.kills // len(names)), rng, Path(root))
            for name in names
        }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
