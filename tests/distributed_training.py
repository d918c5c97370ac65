# SPDX-License-Identifier: Apache-2.0
"""Run by torchrun: trainings on made-up images, one after another, as the test asks for.

Each argument is one: a folder, then options, all separated by commas: ``method``, ``epochs``,
``die`` (epoch in which the last process kills itself, at the first start), ``augment``,
``precision``, ``accumulate``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fclearn import KnnGraph
from fclearn._launch import under_torchrun
from fclearn.datasets import ImageDataset
from fclearn.distributed import joined_world
from fclearn.distributed.training import DistributedTrainer
from fclearn.methods import Assets, build_method
from fclearn.training import TrainConfig, Trainer

CLASSES, IMAGES, DIM, OLD_DIM = 5, 60, 8, 6


def images() -> ImageDataset:
    """Bars in five places, on noise."""
    random = np.random.default_rng(0)
    labels = np.arange(IMAGES) % CLASSES
    pixels = random.integers(0, 120, (IMAGES, 16, 16), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[3 * label : 3 * label + 2] = 255
    names = [f"class {number}" for number in range(CLASSES)]
    return ImageDataset(
        pixels, labels, [f"image-{row}" for row in range(IMAGES)], class_names=names
    )


def assets() -> Assets:
    """Old features of these images, and what an old service finds by them."""
    labels = torch.arange(IMAGES) % CLASSES
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(CLASSES, OLD_DIM, generator=generator)
    noise = torch.randn(IMAGES, OLD_DIM, generator=generator)
    old_model = nn.Sequential(nn.Flatten(), nn.Linear(256, OLD_DIM))
    with torch.no_grad():
        old_model[1].weight.copy_(torch.randn(OLD_DIM, 256, generator=generator))
    features = centres[labels] + 0.5 * noise
    scores = KnnGraph.build(features, 9)
    return Assets(labels, old_features=features, old_model=old_model, old_scores=scores)


class Encoder(nn.Module):
    """Without batch norm, which sees a part of the batch, and without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(392, DIM)
        )

    def forward(self, batch: Tensor) -> Tensor:
        out: Tensor = self.body(batch)
        return out


def make(folder: str | None, options: dict[str, str], **trainer: object) -> Trainer:
    """A trainer, distributed if it gets a world."""
    torch.manual_seed(0)
    encoder = Encoder()
    losses = build_method(options.get("method", "ni-fcl"), assets(), DIM)
    config = TrainConfig(
        epochs=int(options.get("epochs", 3)),
        batch_size=12,
        accumulate=int(options.get("accumulate", 1)),
        learning_rate=5e-3,
        warmup_epochs=1.0,
        augment=options.get("augment", "no") == "yes",
        precision=options.get("precision", "float32"),
    )
    kind = DistributedTrainer if "world" in trainer else Trainer
    return kind(encoder, losses, images(), config, output_dir=folder, progress=False, **trainer)


def weights(trainer: Trainer) -> Tensor:
    """The encoder's, in one row."""
    return torch.cat([p.detach().double().flatten() for p in trainer.encoder.parameters()])


def main() -> None:
    torch.set_num_threads(1)
    assert under_torchrun()
    with joined_world("cpu") as world:
        for argument in sys.argv[1:]:
            folder, *pairs = argument.split(",")
            options = dict(pair.split("=") for pair in pairs)
            trainer = make(folder, options, world=world)
            if "die" in options and world.rank == world.size - 1:
                _die_once(trainer, int(options["die"]))
            history = trainer.fit()
            if world.is_first:
                result = {"history": history, "weights": weights(trainer).tolist()}
                (Path(folder) / "result.json").write_text(json.dumps(result))
            world.barrier()


def _die_once(trainer: Trainer, epoch: int) -> None:
    """Kill this process, with no chance to tidy up, in the middle of an epoch."""
    step = trainer._step

    def deadly(*arguments: object) -> None:
        if trainer._epoch + 1 == epoch and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        step(*arguments)

    trainer._step = deadly


if __name__ == "__main__":
    main()
