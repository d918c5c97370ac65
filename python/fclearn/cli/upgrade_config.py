# SPDX-License-Identifier: Apache-2.0
"""What ``fcl upgrade`` plays through: a folder of images, an old and a new model, methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fclearn.config import EncoderConfig
from fclearn.training import TrainConfig


@dataclass(frozen=True)
class UpgradeImages:
    """Training and test images, one folder per class each.

    Attributes:
        path: Folder that holds both.
        train: Name of the folder of the training images in it.
        test: Name of that of the test images; each is a query, the others its gallery.
        size: Side in pixels.
        short_side: The short side is scaled to it before the centre is cut out; None: to ``size``.
        augmentation: Of `fclearn.config.DataConfig`.
    """

    path: str = ""
    train: str = "train"
    test: str = "val"
    size: int = 224
    short_side: int | None = 256
    augmentation: Literal["drawings", "photos"] = "photos"


@dataclass(frozen=True)
class UpgradeModel:
    """An encoder, its training, and the classes it sees.

    Attributes:
        encoder: Network.
        train: Hyper-parameters.
        class_share: Share of the classes it is trained on.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    class_share: float = 1.0


@dataclass(frozen=True)
class UpgradeRunConfig:
    """An upgrade on a folder of images, from nothing to the numbers.

    Attributes:
        data: Images.
        old: The model that is replaced.
        new: All models that may replace it: the independent one, and one per method.
        methods: Of `fclearn.methods.METHODS`.
        published: Numbers to print beside ours, in percent, by ``"new/old cmc@1 METHOD"``;
            without a method for ``old/old`` and ``independent/independent``.
        output: Folder of the models, stores and reports.
        device: As of ``fcl train``.

    Raises:
        ValueError: No method.
    """

    data: UpgradeImages = field(default_factory=UpgradeImages)
    old: UpgradeModel = field(default_factory=lambda: UpgradeModel(class_share=0.5))
    new: UpgradeModel = field(default_factory=UpgradeModel)
    methods: tuple[str, ...] = ("ni-fcl",)
    published: Mapping[str, float] = field(default_factory=dict)
    output: str = "runs/upgrade"
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods: expected at least one of fcl methods")
