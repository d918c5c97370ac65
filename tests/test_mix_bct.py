# SPDX-License-Identifier: Apache-2.0
"""MixBCT: which features are mixed in, by definition, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from baseline_checks import CLASSES, DIM, IMAGES, Batch

import reference
from fclearn.losses import CosineClassifierLoss
from fclearn.methods.mix_bct import MixedClassifierLoss


def test_mix_bct_replaces_a_share_by_credible_old_features(monkeypatch):
    batch = Batch()
    term = MixedClassifierLoss(
        batch.features, batch.feature_labels, mix=0.5, keep=0.6, scale=5.0, margin=0.2
    )
    cosines = (batch.features * batch.centres()[batch.feature_labels]).sum(1)
    best = set(cosines.argsort(descending=True)[:18].tolist())
    assert set(term.credible.nonzero()[:, 0].tolist()) == best

    term.double()
    seen = []
    forward = term.classifier.forward
    monkeypatch.setattr(
        term.classifier, "forward", lambda x, y: seen.append(x.detach()) or forward(x, y)
    )
    torch.manual_seed(0)
    sets = set()
    rows = torch.arange(IMAGES)
    new = batch.normal(IMAGES, DIM)
    for _ in range(20):
        embeddings = new.clone().requires_grad_()
        value = term(embeddings, batch.feature_labels, rows)
        value.backward()
        replaced = {
            row for row in range(IMAGES) if torch.allclose(seen[-1][row], batch.features[row])
        }
        assert len(replaced) == 15
        assert replaced <= best
        sets.add(frozenset(replaced))
        mixed = F.normalize(new, dim=1)
        for row in replaced:
            mixed[row] = batch.features[row]
        exact = reference.compat_loss(
            mixed,
            term.classifier.prototypes.detach(),
            batch.feature_labels,
            scale=5.0,
            margin=0.2,
            margin_type="arcface",
        )
        torch.testing.assert_close(value.detach(), exact)
        still = {row for row in range(IMAGES) if not embeddings.grad[row].any()}
        assert still == replaced
    assert len(sets) > 10


def test_mix_bct_never_mixes_in_what_is_not_credible():
    batch = Batch()
    term = MixedClassifierLoss(batch.features, batch.feature_labels, mix=0.9, keep=0.1)
    doubtful = (~term.credible).nonzero()[:, 0]
    embeddings = batch.normal(len(doubtful), DIM).float().requires_grad_()
    term.float()(embeddings, batch.feature_labels[doubtful], doubtful).backward()
    assert embeddings.grad.any(1).all()


def test_mix_bct_starts_at_the_class_means_or_at_random():
    batch = Batch()
    owned = batch.features, batch.feature_labels
    rows = MixedClassifierLoss(*owned).classifier.prototypes
    torch.testing.assert_close(rows.detach(), batch.centres().float())
    assert rows.requires_grad
    torch.manual_seed(0)
    term = MixedClassifierLoss(*owned, start="random")
    torch.manual_seed(0)
    assert torch.equal(term.classifier.prototypes, CosineClassifierLoss(CLASSES, DIM).prototypes)
    with pytest.raises(ValueError, match="start: expected 'means' or 'random', got 'zero'"):
        MixedClassifierLoss(*owned, start="zero")


def test_mix_bct_refuses_shares_out_of_range():
    batch = Batch()
    for name, value, message in (
        ("mix", 1.0, r"mix: expected a share in \[0, 1\), got 1\.0"),
        ("mix", -0.1, r"mix: expected a share in \[0, 1\), got -0\.1"),
        ("keep", 0.0, r"keep: expected a share in \(0, 1\], got 0\.0"),
        ("keep", math.nan, r"keep: expected a share in \(0, 1\], got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            MixedClassifierLoss(batch.features, batch.feature_labels, **{name: value})
