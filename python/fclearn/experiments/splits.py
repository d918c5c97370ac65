# SPDX-License-Identifier: Apache-2.0
"""Who sees what in a setting: which classes, which of their images, under which labels."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fclearn.datasets import LabelledSet
from fclearn.experiments.settings import BenchConfig
from fclearn.experiments.upgrade import UpgradeData, split_images


def make_setting(images: LabelledSet, config: BenchConfig) -> UpgradeData:
    """Who sees what in a setting; equal configurations give equal data.

    Args:
        images: All of them.
        config: The setting; ``config.train.seed`` decides what is random.

    Raises:
        ValueError: Too few classes.

    Example:
        >>> from fclearn.datasets import ImageDataset
        >>> images = ImageDataset(np.zeros((12, 8, 8), np.uint8), np.arange(12) // 2,
        ...                       ids=list("abcdefghijkl"), class_names=list("uvwxyz"))
        >>> config = BenchConfig(num_old_classes=1, num_new_classes=4, classes="open")
        >>> data = make_setting(images, config)
        >>> data.new.num_classes, sorted({*data.old.class_names} & {*data.new.class_names})
        (3, [])
    """
    split = split_images(images, config)
    old, training = split.old, split.new
    if config.classes == "open":
        training = training.select_classes(range(config.num_old_classes, config.num_new_classes))
    elif config.classes in {"extended-data", "open-data"}:
        share = np.random.default_rng([config.train.seed, 2])
        seen = _share_of_each_class(training.labels, config.old_image_share, share)
        old = training.subset(seen)
        training = training.subset(~seen) if config.classes == "open-data" else training
    rng = np.random.default_rng([config.train.seed, 1])
    training = _at_most(training, config.images_per_class, rng)
    labels = _shuffled(training.labels, config.label_noise, rng)
    return replace(split, old=old, new=training.relabelled(labels, training.class_names))


def shared_classes(data: UpgradeData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Classes that both training sets have: their labels in the old one, and in the new one."""
    place = {name: label for label, name in enumerate(data.new.class_names)}
    pairs = [(old, place[n]) for old, n in enumerate(data.old.class_names) if n in place]
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def data_fingerprint(data: UpgradeData) -> str:
    """Tells the images, labels, groups and ids of one comparison from those of another."""
    digest = hashlib.sha256()
    for part in (data.old, data.new, data.test):
        digest.update("\n".join(part.ids).encode())
        for array in (part.array(), part.labels, part.groups):
            if array is not None:
                digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _at_most(images: LabelledSet, count: int | None, rng: np.random.Generator) -> LabelledSet:
    if count is None:
        return images
    return images.subset(np.flatnonzero(_place_in_class(images.labels, rng) < count))


def _share_of_each_class(
    labels: NDArray[np.int64], share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which rows belong to a random share of each class: one at least, and not all of two."""
    sizes = np.bincount(labels)
    wanted = np.clip(np.rint(share * sizes), 1, np.maximum(sizes - 1, 1))
    chosen: NDArray[np.bool_] = _place_in_class(labels, rng) < wanted[labels]
    return chosen


def _place_in_class(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Place of each row among those of its class, in random order."""
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    ordered = labels[by_class]
    place = np.empty(len(labels), np.int64)
    place[by_class] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return place


def _shuffled(
    labels: NDArray[np.int64], share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    chosen = np.flatnonzero(rng.permutation(len(labels)) < round(share * len(labels)))
    noisy: NDArray[np.int64] = labels.copy()
    noisy[chosen] = labels[rng.permutation(chosen)]
    return noisy
