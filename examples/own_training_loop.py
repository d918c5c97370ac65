# SPDX-License-Identifier: Apache-2.0
"""Bring your own encoder and your own loop: two more terms, fed by cached old features.

    python examples/own_training_loop.py

Vectors stand for images: 40 numbers in which a class is mixed with a larger nuisance (light, pose).
The old model has seen 30 classes, the new one 150; both are tested on 50 others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fclearn
from fclearn.losses import CosineClassifierLoss, InstanceCompatLoss, L2CompatLoss


def make_images(num_classes: int, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs ``(N, 40)`` and their classes ``(N,)``."""
    world = torch.Generator().manual_seed(0)
    mixing = torch.randn(40, 40, generator=world) / 40**0.5
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes * per_class) % num_classes
    signal = torch.randn(num_classes, 16, generator=draw)[labels]
    signal = signal + 0.3 * torch.randn(len(labels), 16, generator=draw)
    nuisance = 1.5 * torch.randn(len(labels), 24, generator=draw)
    return torch.cat([signal, nuisance], 1) @ mixing, labels


def encoder_of(dim: int) -> nn.Module:
    """Your network; anything that maps a batch to ``(B, dim)``."""
    return nn.Sequential(nn.Linear(40, 128), nn.ReLU(), nn.Linear(128, dim))


def train(
    images: Tensor, labels: Tensor, dim: int, epochs: int, old_features: Tensor | None = None
) -> nn.Module:
    """A plain torch loop; with old features, the new model becomes compatible with them."""
    encoder = encoder_of(dim)
    own = CosineClassifierLoss(int(labels.max()) + 1, dim)
    if old_features is not None:
        instances = InstanceCompatLoss(old_features, labels)
        nearby = L2CompatLoss(old_features)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *own.parameters()], lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(128):
            embeddings = encoder(images[rows])
            loss = own(embeddings, labels[rows])
            if old_features is not None:
                loss = loss + instances(embeddings, labels[rows], rows)
                loss = loss + nearby(embeddings, labels[rows], rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return encoder.eval()


def main() -> dict[str, float]:
    """Upgrade, and compare mAP on unseen classes."""
    torch.manual_seed(0)
    images, labels = make_images(150, 20, seed=1)
    test_images, test_labels = make_images(50, 20, seed=2)
    known = labels < 30
    old = train(images[known], labels[known], dim=16, epochs=3)
    with torch.no_grad():
        cached = old(images)  # once; from here on the old model may be gone
        old_test = old(test_images)
    new = train(images, labels, dim=32, epochs=15, old_features=cached)
    with torch.no_grad():
        new_test = new(test_images)
    report = fclearn.compatibility_report(
        old_query=old_test,
        old_gallery=old_test,
        new_query=new_test,
        new_gallery=new_test,
        query_labels=test_labels,
        gallery_labels=test_labels,
        exclude_self=True,
        num_bootstrap=100,
    )
    found = {name: entry["map"] for name, entry in report.matrix.items()}
    for name, value in found.items():
        print(f"{name}: mAP {100 * value:.1f}")
    return found


if __name__ == "__main__":
    main()
