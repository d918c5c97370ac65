# SPDX-License-Identifier: Apache-2.0
"""Settings of the field: which images, which classes, how clean, how many a class."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fclearn.datasets import ImageDataset, load_fashion_mnist, load_icons
from fclearn.datasets.fashion_mnist import DEFAULT_PATH as FASHION_MNIST_PATH
from fclearn.experiments.upgrade import QUICK, UpgradeConfig, UpgradeData, split_images
from fclearn.training import TrainConfig

Dataset = Literal["icons", "fashion-mnist"]
Setting = Literal["extended", "open"]


@dataclass(frozen=True)
class BenchConfig(UpgradeConfig):
    """What methods are compared on: `UpgradeConfig`, and what makes it harder.

    Attributes:
        dataset: Which images.
        classes: ``"extended"``: the new training set has the old model's classes and others;
            ``"open"``: only the others, ``num_new_classes - num_old_classes`` of them.
        label_noise: Share of the new training images whose labels are shuffled among them, so that
            classes keep their sizes; a few come out right by chance. The old model saw none of it.
        images_per_class: Most images of a class in the new training set; None: all.

    Raises:
        ValueError: A value out of range.
    """

    dataset: Dataset = "icons"
    classes: Setting = "extended"
    label_noise: float = 0.0
    images_per_class: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("dataset", get_args(Dataset)), ("classes", get_args(Setting))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {list(known)}, got {getattr(self, name)!r}"
                )
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"label_noise: expected a number in [0, 1], got {self.label_noise}")
        if self.images_per_class is not None and self.images_per_class < 1:
            raise ValueError(f"images_per_class: expected at least 1, got {self.images_per_class}")
        if not 1 <= self.num_old_classes < self.num_new_classes:
            raise ValueError(
                f"num_old_classes: expected 1 to {self.num_new_classes - 1}, fewer than the new "
                f"ones, got {self.num_old_classes}"
            )


#: The demo's recipe on icons. Ten classes tell little: Fashion-MNIST is there to see that
#: everything runs on images of another kind.
DEFAULTS: dict[str, BenchConfig] = {
    "icons": BenchConfig(),
    "fashion-mnist": BenchConfig(
        num_old_classes=3,
        num_new_classes=6,
        train=TrainConfig(epochs=10),
        dataset="fashion-mnist",
    ),
}

#: Exercises everything in seconds; its numbers mean nothing.
QUICK_SETTINGS: dict[str, BenchConfig] = {
    "icons": BenchConfig(**vars(QUICK)),
    "fashion-mnist": replace(
        DEFAULTS["fashion-mnist"],
        num_test_classes=2,
        old_dim=QUICK.old_dim,
        new_dim=QUICK.new_dim,
        train=QUICK.train,
        images_per_class=50,
    ),
}


def load_images(config: BenchConfig, path: str | os.PathLike[str] | None = None) -> ImageDataset:
    """All images of a data set, of which `make_setting` takes what a setting wants.

    Of Fashion-MNIST the 10,000 test images: a thousand a class is plenty.

    Args:
        config: Says which.
        path: Folder of Fashion-MNIST's files; None: where Debian's package has them.

    Raises:
        ModuleNotFoundError: The package with the icon fonts is missing.
        ValueError: Fashion-MNIST's files are missing or damaged, or a path for icons, which are
            drawn from a package.
    """
    if config.dataset == "icons":
        if path is not None:
            raise ValueError(f"path: icons are drawn from a package and take none: {str(path)!r}")
        return load_icons()
    return load_fashion_mnist(path or FASHION_MNIST_PATH, part="test")


def make_setting(images: ImageDataset, config: BenchConfig) -> UpgradeData:
    """Who sees what in a setting; equal configurations give equal data.

    Args:
        images: All of them.
        config: The setting; ``config.train.seed`` decides what is random.

    Raises:
        ValueError: Too few classes.

    Example:
        >>> images = ImageDataset(np.zeros((12, 8, 8), np.uint8), np.arange(12) // 2,
        ...                       ids=list("abcdefghijkl"), class_names=list("uvwxyz"))
        >>> config = BenchConfig(num_old_classes=1, num_new_classes=4, classes="open")
        >>> data = make_setting(images, config)
        >>> data.new.num_classes, sorted({*data.old.class_names} & {*data.new.class_names})
        (3, [])
    """
    split = split_images(images, config)
    training = split.new
    if config.classes == "open":
        training = training.select_classes(range(config.num_old_classes, config.num_new_classes))
    rng = np.random.default_rng([config.train.seed, 1])
    training = _at_most(training, config.images_per_class, rng)
    labels = _shuffled(training.labels, config.label_noise, rng)
    return replace(split, new=replace(training, labels=labels))


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
        for array in (part.pixels(), part.labels, part.groups):
            if array is not None:
                digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _at_most(images: ImageDataset, count: int | None, rng: np.random.Generator) -> ImageDataset:
    if count is None:
        return images
    order = rng.permutation(len(images))
    by_class = order[np.argsort(images.labels[order], kind="stable")]
    labels = images.labels[by_class]
    place = np.arange(len(labels)) - np.searchsorted(labels, labels)
    return images.subset(np.sort(by_class[place < count]))


def _shuffled(
    labels: NDArray[np.int64], share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    chosen = np.flatnonzero(rng.permutation(len(labels)) < round(share * len(labels)))
    noisy: NDArray[np.int64] = labels.copy()
    noisy[chosen] = labels[rng.permutation(chosen)]
    return noisy
