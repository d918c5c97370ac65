# SPDX-License-Identifier: Apache-2.0
"""Features in the place of images: aligned, selected, trained on, embedded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fclearn.datasets import VectorDataset
from fclearn.embedding import embed
from fclearn.encoders import build_encoder
from fclearn.features import Fingerprint
from fclearn.losses import CosineClassifierLoss, LossTerm
from fclearn.training import TrainConfig, Trainer


def dataset(**changes):
    rng = np.random.default_rng(0)
    arguments = {
        "vectors": rng.standard_normal((12, 5)).astype(np.float32),
        "labels": np.arange(12) % 3,
        "ids": [f"text {row}" for row in range(12)],
        "groups": np.arange(12) // 2,
        "class_names": ["ant", "bee", "cat"],
        "group_names": list("uvwxyz"),
    }
    return VectorDataset(**{**arguments, **changes})


def test_rows_are_images_of_one_pixel():
    data = dataset()
    assert (len(data), data.num_classes, data.channels) == (12, 3, 5)
    batch = data.tensor([7, 1])
    assert batch.shape == (2, 5, 1, 1)
    np.testing.assert_array_equal(batch[:, :, 0, 0], data.vectors[[7, 1]])
    assert data.tensor([]).shape == (0, 5, 1, 1)


def test_parts_stay_aligned():
    data = dataset()
    part = data.select_classes([2, 0])
    rows = [row for row in range(12) if row % 3 != 1]
    assert part.ids == [data.ids[row] for row in rows]
    np.testing.assert_array_equal(part.vectors, data.vectors[rows])
    assert part.labels.tolist() == [{2: 0, 0: 1}[row % 3] for row in rows]
    assert part.groups.tolist() == [row // 2 for row in rows]
    assert (list(part.class_names), part.group_names) == (["cat", "ant"], data.group_names)
    other = data.relabelled(np.arange(12) % 2, ["x", "y"])
    assert (other.ids, other.labels.tolist()) == (data.ids, [0, 1] * 6)
    assert data.subset([]).vectors.shape == (0, 5)


def test_trained_and_embedded_like_images(tmp_path):
    data = dataset()
    torch.manual_seed(0)
    encoder = build_encoder("feature-head", dim=4, channels=data.channels)
    losses = [LossTerm("new", 1.0, CosineClassifierLoss(3, 4))]
    config = TrainConfig(epochs=30, batch_size=6, augment=False, learning_rate=1e-2)
    history = Trainer(encoder, losses, data, config, progress=False).fit()
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    store = embed(encoder, data, tmp_path / "store", fingerprint=Fingerprint("head", 4))
    assert (store.ids, store.labels.tolist()) == (data.ids, data.labels.tolist())


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"vectors": np.zeros((12, 5))}, TypeError, "vectors: expected dtype float32, got float64"),
        ({"vectors": np.zeros(12, np.float32)}, ValueError, r"vectors: expected shape \[N, D\]"),
        (
            {"labels": np.zeros(3, np.int64)},
            ValueError,
            r"labels: expected shape \[12\], got \[3\]",
        ),
        ({"ids": ["a"]}, ValueError, "ids: expected 12, one per vector, got 1"),
        ({"class_names": ["a"]}, ValueError, r"labels: expected values in \[0, 1\)"),
    ],
)
def test_refused(changes, kind, message):
    with pytest.raises(kind, match=message):
        dataset(**changes)
