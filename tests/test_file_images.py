# SPDX-License-Identifier: Apache-2.0
"""Images that stay files: the same pixels, the same training, the same features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fclearn.datasets import files, load_image_folder
from fclearn.datasets.files import FileImages
from fclearn.embedding import embed
from fclearn.encoders import SmallCnn
from fclearn.features import Fingerprint
from fclearn.losses import CosineClassifierLoss, LossTerm
from fclearn.training import TrainConfig, Trainer


@pytest.fixture
def folder(tmp_path):
    """Images of several formats, sides and modes."""
    random = np.random.default_rng(0)
    for number in range(24):
        side = 20 + 3 * number
        pixels = random.integers(0, 255, (side, 30 + number, 3), dtype=np.uint8)
        name = tmp_path / "photos" / f"class{number % 3}" / f"{number:02}"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(name.with_suffix([".png", ".jpg", ".webp"][number % 3]))
    return tmp_path / "photos"


@pytest.fixture(params=[False, True], ids=["rgb", "grey"])
def both(request, folder, monkeypatch):
    """The data set in memory, and as files."""
    held = load_image_folder(folder, size=16, grey=request.param)
    monkeypatch.setattr(files, "MEMORY_BYTES", 0)
    return held, load_image_folder(folder, size=16, grey=request.param)


def test_same_pixels(both):
    held, lazy = both
    assert isinstance(lazy.images, FileImages)
    assert isinstance(held.images, np.ndarray)
    assert lazy.images.shape == held.images.shape
    assert lazy.channels == held.channels
    np.testing.assert_array_equal(lazy.pixels(), held.images)
    rows = np.array([5, 0, 5, 23])
    lazy.prefetch(rows)
    assert torch.equal(lazy.tensor(rows), held.tensor(rows))
    part = lazy.select_classes([2, 0])
    assert isinstance(part.images, FileImages)
    assert torch.equal(part.tensor([0, 3]), held.select_classes([2, 0]).tensor([0, 3]))


def test_same_training_and_features(both, tmp_path):
    stores = []
    for name, data in zip(("held", "lazy"), both, strict=True):
        torch.manual_seed(0)
        encoder = SmallCnn(4, channels=data.channels, width=4)
        losses = [LossTerm("new", 1.0, CosineClassifierLoss(3, 4))]
        history = Trainer(encoder, losses, data, TrainConfig(epochs=2, batch_size=8)).fit()
        fingerprint = Fingerprint("model", 4)
        store = embed(encoder, data, tmp_path / name, fingerprint=fingerprint, batch_size=5)
        stores.append((history[-1]["loss"], np.array(store.features)))
    assert stores[0][0] == stores[1][0]
    np.testing.assert_array_equal(stores[0][1], stores[1][1])


def test_what_nobody_takes_does_not_pile_up(both):
    _, lazy = both
    for begin in range(20):
        lazy.prefetch(np.arange(begin, begin + 4))
    assert len(lazy.images._pending) <= 20


def test_an_unreadable_image_is_named_when_it_is_needed(folder, monkeypatch):
    (folder / "class1" / "01.jpg").write_bytes(b"no image")
    monkeypatch.setattr(files, "MEMORY_BYTES", 0)
    data = load_image_folder(folder, size=16)
    bad = data.ids.index("class1/01.jpg")
    data.tensor([bad - 1])
    with pytest.raises(ValueError, match=r"01\.jpg: cannot be read"):
        data.tensor([bad])
