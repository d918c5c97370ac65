# SPDX-License-Identifier: Apache-2.0
"""What trainings make of bad or odd input: they go on where that is sound, else say why, by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fclearn.cache_check import check_cache
from fclearn.cli import main
from fclearn.datasets import VectorDataset
from fclearn.features import FeatureStore, Fingerprint
from fclearn.methods import METHODS, Assets, build_method

CLASSES, PER_CLASS = 4, 6
SMALL = ["data.size=16", "data.grey=true", "train.batch_size=8", "encoder.dim=8", "device=cpu"]
LABELS = {
    "a class of one image": [0, *([1, 2, 3] * 12)],
    "classes of one image each": list(range(24)),
    "one class": [0] * 12,
    "one image": [0],
    "a class without images": [0, 1, 3] * 10,
    "more classes than images": [0, 1, 500],
}
EMPTY = {"a class without images": 2, "more classes than images": 2}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Batches this small gain nothing from threads, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assets(labels):
    generator = torch.Generator().manual_seed(0)

    def rows(count):
        return torch.randn(count, 6, generator=generator)

    return Assets(
        torch.tensor(labels),
        old_features=rows(len(labels)),
        old_classifier=rows(1),
        old_classes=torch.tensor([0]),
        independent_features=rows(len(labels)),
    )


@pytest.mark.parametrize("case", [case for case in LABELS if case not in EMPTY])
@pytest.mark.parametrize("name", METHODS)
def test_small_classes_train(name, case):
    labels = LABELS[case]
    terms = build_method(name, assets(labels), 8)
    embeddings = torch.randn(len(labels), 8, requires_grad=True)
    for term in terms:
        getattr(term.module, "on_epoch", lambda *_: None)(1, 2)
    rows = torch.arange(len(labels))
    loss = sum(t.weight * t.module(embeddings, torch.tensor(labels), rows) for t in terms)
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("case", EMPTY)
@pytest.mark.parametrize("name", METHODS)
def test_classes_without_images_are_named(name, case):
    with pytest.raises(ValueError, match=f"labels: .*class {EMPTY[case]} has none"):
        build_method(name, assets(LABELS[case]), 8)
