# SPDX-License-Identifier: Apache-2.0
"""A small training: images, an encoder with all the state one may have, a trainer."""

from __future__ import annotations

import signal

import numpy as np
import torch
from torch import nn

from fclearn.datasets import ImageDataset
from fclearn.encoders import SmallCnn
from fclearn.losses import CosineClassifierLoss, L2CompatLoss, LossTerm
from fclearn.training import HISTORY_COLUMNS, TrainConfig, Trainer

CLASSES, PER_CLASS, DIM = 4, 12, 6
FAST = {"epochs": 3, "batch_size": 16, "warmup_epochs": 1.0}


def bars():
    """Bars in four places, on noise."""
    random = np.random.default_rng(0)
    labels = np.arange(CLASSES * PER_CLASS) % CLASSES
    images = random.integers(0, 120, (len(labels), 16, 16), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 3] = 255
    return ImageDataset(
        images, labels, [f"image-{row}" for row in range(len(labels))], class_names=list("abcd")
    )


class Encoder(nn.Module):
    """A small encoder with batch norm and dropout: all the state an encoder may have."""

    def __init__(self):
        super().__init__()
        self.body = SmallCnn(16, width=4)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(16, DIM)

    def forward(self, images):
        return self.head(self.dropout(self.body(images)))


def old_features(data, seed=0):
    """The same whatever the initial weights are, as old features are in life."""
    return torch.randn(len(data), DIM - 2, generator=torch.Generator().manual_seed(seed))


def make_trainer(data, config=None, *, losses=None, encoder=None, weights=0, **options):
    torch.manual_seed(weights)
    encoder = Encoder() if encoder is None else encoder
    if losses is None:
        old = old_features(data)
        losses = [
            LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM)),
            LossTerm("compat", 0.5, L2CompatLoss(old)),
        ]
    config = TrainConfig(**{**FAST, **(config or {})})
    return Trainer(encoder, losses, data, config, progress=False, **options)


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer._modules.state_dict().items()}


def assert_same_end(one, two):
    left, right = weights_of(one), weights_of(two)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    timed = {"seconds", "images_per_second"}
    for row, other in zip(one.history, two.history, strict=True):
        for column in set(HISTORY_COLUMNS) - timed:
            assert row[column] == other[column], column


class StopAt(nn.Module):
    """A loss term that raises SIGINT, or an error, in one step."""

    def __init__(self, step, error=None):
        super().__init__()
        # No settings of the loss, which would be the same when it goes on: hence the underscores.
        self._step, self._error, self.seen = step, error, 0

    def forward(self, embeddings, _labels, _rows):
        self.seen += 1
        if self.seen == self._step:
            if self._error is not None:
                raise self._error
            signal.raise_signal(signal.SIGINT)
        return embeddings.sum() * 0


def make_losses(data):
    torch.manual_seed(0)
    Encoder()
    old = old_features(data)
    return [
        LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM)),
        LossTerm("compat", 0.5, L2CompatLoss(old)),
    ]
