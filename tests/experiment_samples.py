# SPDX-License-Identifier: Apache-2.0
"""A comparison of methods in seconds: images of patterns, small encoders, few epochs."""

from __future__ import annotations

import json

import numpy as np

from fclearn.datasets import ImageDataset
from fclearn.experiments.benchmark import bench_methods
from fclearn.experiments.settings import BenchConfig
from fclearn.training import TrainConfig

NUM_CLASSES, PER_CLASS = 12, 12
CONFIG = BenchConfig(
    num_old_classes=3,
    num_new_classes=8,
    old_encoder="tiny-cnn",
    new_encoder="tiny-cnn",
    old_dim=8,
    new_dim=12,
    train=TrainConfig(epochs=2, batch_size=16),
)
METHODS_RUN = ("ni-fcl", "bct", "bt2", "independent", "map-ridge")


def pattern_images():
    """Each class a pattern, each image that pattern under noise; two near-copies a group."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (NUM_CLASSES, 16, 16))
    labels = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
    noisy = patterns[labels] + rng.integers(0, 56, (len(labels), 16, 16))
    return ImageDataset(
        noisy.astype(np.uint8),
        labels,
        ids=[f"image {row}" for row in range(len(labels))],
        groups=np.arange(len(labels)) // 2 % 3,
        class_names=[f"class {label}" for label in range(NUM_CLASSES)],
    )


def compare(folder, images, **options):
    config = options.pop("config", CONFIG)
    options = {"methods": METHODS_RUN, "seeds": (0, 1), **options}
    return bench_methods(
        config, folder, images=images, progress=False, say=lambda _: None, **options
    )


def copy(folder, target):
    for path in folder.glob("*.json"):
        target.mkdir(exist_ok=True)
        (target / path.name).write_bytes(path.read_bytes())
    return target


def edit(path, change):
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")
