# SPDX-License-Identifier: Apache-2.0
"""The images a configuration, or one word of the command line, stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fclearn.config import DataConfig
from fclearn.datasets import (
    ImageDataset,
    RandomCrops,
    load_fashion_mnist,
    load_icons,
    load_image_folder,
    load_image_manifest,
    split_classes,
)
from fclearn.wording import nearest

_FASHION_MNIST_SIZE = 28


def load_images(config: DataConfig, crops: RandomCrops | None = None) -> ImageDataset:
    """Load, and keep the chosen classes.

    Args:
        config: What to load.
        crops: Of image files, to train on.

    Raises:
        ValueError: As the loaders; a class that does not exist; a size Fashion-MNIST lacks.
        ModuleNotFoundError: Icons without the package of their fonts.
    """
    if config.kind == "icons":
        data = load_icons(size=config.size or 32)
    elif config.kind in {"folder", "manifest"}:
        load = load_image_folder if config.kind == "folder" else load_image_manifest
        data = load(
            config.path or "",
            size=config.size or 64,
            grey=config.grey,
            short_side=config.short_side,
            crops=crops,
        )
    else:
        if config.size not in {None, _FASHION_MNIST_SIZE}:
            raise ValueError(f"data.size: Fashion-MNIST has 28 pixels, got {config.size}")
        where = {} if config.path is None else {"path": config.path}
        data = load_fashion_mnist(**where, part=config.part)
    if config.classes is not None:
        number = {name: label for label, name in enumerate(data.class_names)}
        for name in config.classes:
            if name not in number:
                raise ValueError(f"data.classes: no class {name!r}; {nearest(name, number)}")
        data = data.select_classes([number[name] for name in config.classes])
    if config.class_share < 1:
        kept = max(1, round(config.class_share * data.num_classes))
        data = data.select_classes(split_classes(data.num_classes, kept)[0])
    return data


def parse_source(word: str, classes: Sequence[str] = ()) -> DataConfig:
    """The images a word stands for.

    Args:
        word: ``icons``, ``fashion-mnist``, ``fashion-mnist:test``, a folder of class folders, or a
            csv or parquet manifest.
        classes: Names of the classes to keep; empty: all.

    Raises:
        ValueError: None of these.

    Example:
        >>> parse_source("fashion-mnist:test").part
        'test'
    """
    kept = tuple(classes) or None
    kind, _, part = word.partition(":")
    if word == "icons":
        return DataConfig(classes=kept)
    if kind == "fashion-mnist" and part in {"", "train", "test"}:
        config = DataConfig(kind="fashion-mnist", classes=kept)
        return replace(config, part="test") if part == "test" else config
    if Path(word).is_dir():
        return DataConfig(kind="folder", path=word, classes=kept)
    if Path(word).is_file() and Path(word).suffix in {".csv", ".parquet"}:
        return DataConfig(kind="manifest", path=word, classes=kept)
    raise ValueError(
        f"data: expected icons, fashion-mnist[:train|:test], a folder with one folder per class, "
        f"or a .csv or .parquet manifest, got {word!r}"
    )
