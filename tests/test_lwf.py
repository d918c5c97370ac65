# SPDX-License-Identifier: Apache-2.0
"""LwF: its loss by definition in float64, through both heads, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from baseline_checks import DIM, EXTRA, Batch

import reference
from fclearn import PseudoClassifier
from fclearn.losses import DistillCompatLoss
from fclearn.methods import Assets, build_method


def test_lwf_distils_through_the_learned_or_the_old_head():
    batch = Batch()
    rows, classes = batch.normal(2, DIM).float(), torch.tensor([3, 0])
    owned = Assets(batch.feature_labels, batch.assets.old_features, rows, classes)
    learned = PseudoClassifier.fit(batch.features, batch.feature_labels).prototypes
    for assets, head, expected in ((batch.assets, "learned", learned), (owned, "old", rows)):
        term = build_method("lwf", assets, DIM + EXTRA, head=head)[1]
        assert isinstance(term.module, DistillCompatLoss)
        torch.testing.assert_close(term.module.prototypes, F.normalize(expected, dim=1))
        value = term.module(batch.embeddings.float(), batch.labels, batch.rows)
        exact = reference.compat_kl(
            batch.part,
            expected.double(),
            teacher_embeddings=batch.features[batch.rows],
            scale=10.0,
        )
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


def test_lwf_refuses():
    with pytest.raises(ValueError, match="head='old' needs the old classifier"):
        build_method("lwf", Batch().assets, DIM, head="old")
    with pytest.raises(ValueError, match="head: expected 'learned' or 'old', got 'mean'"):
        build_method("lwf", Batch().assets, DIM, head="mean")
