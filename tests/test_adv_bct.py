# SPDX-License-Identifier: Apache-2.0
"""AdvBCT: the elastic boundary by definition in float64, and the discriminator."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from baseline_checks import BATCH, CLASSES, Batch, same

from fclearn.methods.adv_bct import ElasticBoundaryLoss, OldOrNewLoss


def test_elastic_boundary():
    batch = Batch()
    term = ElasticBoundaryLoss(batch.features, batch.feature_labels)
    centres = batch.centres()
    largest = torch.stack(
        [
            (batch.features[batch.feature_labels == c] - centres[c]).norm(dim=1).max()
            for c in range(CLASSES)
        ]
    )
    with torch.no_grad():
        term.elasticity.copy_(batch.normal(CLASSES))
    share = 1 / (1 + torch.exp(-term.elasticity))
    radius = largest + share * (largest.mean() - largest)
    distances = (batch.part - centres[batch.labels]).norm(dim=1)
    expected = F.relu(distances - radius[batch.labels]).mean()
    # Class means are made in float32.
    same(term(*batch.arguments), expected, batch.embeddings, 1e-6)
    same(term(*batch.arguments), expected, term.elasticity, 1e-6)
    assert set(term.state_dict()) == {"elasticity"}


def test_the_discriminator_learns_and_the_encoder_gets_its_gradient_reversed():
    batch = Batch()
    torch.manual_seed(0)
    term = OldOrNewLoss(batch.features, width=8).double()
    term.on_epoch(2, 4)
    assert term._decay == 0.75
    assert term._reversal == pytest.approx(math.tanh(5 * 1.5 / 4))
    both = torch.cat([batch.part, batch.features[batch.rows]])
    targets = torch.cat([torch.zeros(BATCH), torch.ones(BATCH)]).double()
    # Mean over both halves: half of the sum of their means.
    plain = F.binary_cross_entropy_with_logits(term.discriminator(both)[:, 0], targets)
    value = term(*batch.arguments)
    torch.testing.assert_close(value, 2 * 0.75 * plain)
    parameters = list(term.parameters())
    got = torch.autograd.grad(value, [batch.embeddings, *parameters], retain_graph=True)
    exact = torch.autograd.grad(2 * 0.75 * plain, [batch.embeddings, *parameters])
    torch.testing.assert_close(got[0], -term._reversal * exact[0])
    torch.testing.assert_close(got[1:], exact[1:])
    assert all(key.startswith("discriminator.") for key in term.state_dict())


def test_adversarial_weight_falls_to_its_last_share():
    term = OldOrNewLoss(torch.eye(3))
    shares = []
    for epoch in range(1, 6):
        term.on_epoch(epoch, 5)
        shares.append((term._decay, term._reversal))
    assert [decay for decay, _ in shares] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert [reversal for _, reversal in shares] == sorted(r for _, r in shares)
    assert 0 < shares[0][1] < shares[-1][1] < 1
