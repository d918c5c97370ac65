# SPDX-License-Identifier: Apache-2.0
"""What a comparison is made on: images or texts, and what a frozen old model says of them."""

from __future__ import annotations

import os

import numpy as np
import torch

from fclearn.datasets import (
    ImageDataset,
    LabelledSet,
    VectorDataset,
    load_fashion_mnist,
    load_glosses,
    load_icons,
)
from fclearn.datasets.fashion_mnist import DEFAULT_PATH as FASHION_MNIST_PATH
from fclearn.datasets.wordnet import DEFAULT_PATH as WORDNET_PATH
from fclearn.experiments.frozen import frozen_images, frozen_texts
from fclearn.experiments.settings import BenchConfig
from fclearn.features import FeatureStore, as_tensor


def load_images(config: BenchConfig, path: str | os.PathLike[str] | None = None) -> LabelledSet:
    """All images of a data set, of which `make_setting` takes what a setting wants.

    Of Fashion-MNIST the 10,000 test images: a thousand a class is plenty. Of WordNet the new frozen
    model's features of all glosses that both models know a word of.

    Args:
        config: Says which.
        path: Folder of Fashion-MNIST's or WordNet's files; None: where Debian's packages have them.

    Raises:
        ModuleNotFoundError: The package with the icon fonts, or that of a frozen model, is missing.
        ValueError: Files are missing or damaged, or a path for icons, which are drawn from a
            package.
    """
    if config.dataset == "icons":
        if path is not None:
            raise ValueError(f"path: icons are drawn from a package and take none: {str(path)!r}")
        return load_icons()
    if config.dataset == "wordnet":
        return _glosses(config, path or WORDNET_PATH)
    return load_fashion_mnist(path or FASHION_MNIST_PATH, part="test")


def load_old(
    config: BenchConfig, images: LabelledSet, path: str | os.PathLike[str] | None = None
) -> FeatureStore | None:
    """Features of the old model by id, where others have trained it; None where it is trained here.

    Args:
        config: Says which.
        images: From `load_images`.
        path: As of `load_images`.

    Raises:
        ModuleNotFoundError: A package of the model is missing.
    """
    if not config.old_is_frozen:
        return None
    if isinstance(images, ImageDataset):
        return frozen_images(config.old_encoder, images)
    return frozen_texts(config.old_encoder, load_glosses(path or WORDNET_PATH))


def _glosses(config: BenchConfig, path: str | os.PathLike[str]) -> VectorDataset:
    glosses = load_glosses(path)
    old, new = (
        as_tensor(frozen_texts(name, glosses)) for name in (config.old_encoder, config.new_encoder)
    )
    # A text that a model knows nothing of has no direction in its space.
    known = (old.any(1) & new.any(1)).numpy()
    kept = glosses.subset(np.flatnonzero(known))
    vectors = torch.nn.functional.normalize(new, dim=1).numpy()[known]
    return VectorDataset(vectors, kept.labels, kept.ids, class_names=kept.class_names)
