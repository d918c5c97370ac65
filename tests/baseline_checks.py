# SPDX-License-Identifier: Apache-2.0
"""A batch with old features, and values with their gradients: what tests of the baselines share."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fclearn.methods import Assets

IMAGES, CLASSES, DIM, EXTRA, BATCH = 30, 4, 5, 2, 9


class Batch:
    """Old features of all images, unit and float64, and a batch of embeddings two dims wider."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(IMAGES, generator=self.generator)
        self.feature_labels = (torch.arange(IMAGES) % CLASSES)[order]
        self.features = F.normalize(
            self.normal(CLASSES, DIM)[self.feature_labels] + 0.7 * self.normal(IMAGES, DIM), dim=1
        )
        self.rows = torch.randperm(IMAGES, generator=self.generator)[:BATCH]
        self.labels = self.feature_labels[self.rows]
        self.embeddings = (3 * self.normal(BATCH, DIM + EXTRA)).requires_grad_()

    def normal(self, *shape):
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    @property
    def arguments(self):
        return self.embeddings, self.labels, self.rows

    @property
    def part(self):
        return F.normalize(self.embeddings[:, :DIM], dim=1)

    @property
    def assets(self):
        return Assets(self.feature_labels, old_features=self.features.float())

    def centres(self):
        sums = torch.zeros(CLASSES, DIM, dtype=torch.float64)
        return F.normalize(sums.index_add(0, self.feature_labels, self.features), dim=1)


def same(value, expected, embeddings, tolerance=1e-10):
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    (exact,) = torch.autograd.grad(expected, embeddings, retain_graph=True)
    (gradient,) = torch.autograd.grad(value, embeddings, retain_graph=True)
    torch.testing.assert_close(gradient, exact, rtol=10 * tolerance, atol=10 * tolerance)
