# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of a training, and the optimizer and schedule they mean."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters of a training.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images per step; a last, smaller batch is left out.
        accumulate: Parts a step's images go through the encoder in, one after another, to save
            memory; a divisor of ``batch_size``. Batch norm, and losses between the images of a
            batch, see a part at a time.
        optimizer: ``"adamw"`` or ``"sgd"`` (momentum 0.9).
        learning_rate: Peak; reached after the warm-up, then decayed to zero along a cosine.
        weight_decay: Decoupled for adamw.
        warmup_epochs: Linear warm-up.
        augment: Random shift, rotation, scaling of each image.
        clean_share: Share of the images, drawn anew for every batch, that augmentation leaves as
            they are: old features were made of such images, and such images will be searched for.
        max_grad_norm: Gradients are clipped to this norm; 0: not at all.
        precision: ``"float32"``, or ``"bfloat16"``: the encoder under autocast, losses in float32.
        seed: Order of the images and augmentation.

    Raises:
        ValueError: A value out of range.
    """

    epochs: int = 40
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup_epochs: float = 2.0
    augment: bool = True
    clean_share: float = 0.3
    max_grad_norm: float = 5.0
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate: expected a divisor of batch_size ({self.batch_size}), "
                f"got {self.accumulate}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a number > 0, got {self.learning_rate}")
        for name in ("weight_decay", "warmup_epochs", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)}")
        if not 0 <= self.clean_share <= 1:
            raise ValueError(f"clean_share: expected a number in [0, 1], got {self.clean_share}")
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer: expected 'adamw' or 'sgd', got {self.optimizer!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision: expected 'float32' or 'bfloat16', got {self.precision!r}")


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainConfig
) -> torch.optim.Optimizer:
    """The optimizer that ``config`` names, of all parameters that want a gradient."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(wanted, lr=rate, weight_decay=decay, momentum=0.9)
    return torch.optim.AdamW(wanted, lr=rate, weight_decay=decay)


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine down to zero."""
    total = config.epochs * steps_per_epoch
    warmup = min(config.warmup_epochs * steps_per_epoch, 0.5 * total)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(total - warmup, 1))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
