# SPDX-License-Identifier: Apache-2.0
"""UniBCT: prototypes refreshed over the graph, by definition in float64, and their state."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from baseline_checks import CLASSES, DIM, EXTRA, IMAGES, Batch, same

import reference
from fclearn.methods.uni_bct import RefreshedPrototypeLoss
from reference import random_walk_limit


def _refined(batch, edges, k, temperature, damping):
    """Dense, class by class: rows of P sum to 1."""
    prototypes = []
    for label in range(CLASSES):
        members = (batch.feature_labels == label).nonzero()[:, 0]
        cosines = (edges[members] @ edges[members].T).fill_diagonal_(-math.inf)
        worst = cosines.topk(min(k, len(members) - 1)).values[:, -1:]
        matrix = torch.softmax(
            (cosines / temperature).masked_fill(cosines < worst, -math.inf), dim=1
        )
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(members), dtype=torch.float64))
        walked = random_walk_limit(matrix, batch.features[members], damping=damping)
        prototypes.append(F.normalize(walked.mean(0), dim=0))
    return torch.stack(prototypes)


def test_uni_bct_refreshes_its_prototypes_from_new_embeddings():
    batch = Batch()
    options = {"k": 3, "temperature": 0.2, "damping": 0.8}
    term = RefreshedPrototypeLoss(
        batch.features, batch.feature_labels, scale=6.0, refresh_epochs=2, **options
    )
    first = _refined(batch, batch.features, **options)
    torch.testing.assert_close(term.prototypes.double(), first, rtol=0, atol=1e-5)
    assert (first - batch.centres()).norm() > 1e-2  # which a column-stochastic P cannot do
    everything = F.normalize(batch.normal(IMAGES, DIM + EXTRA), dim=1)
    for epoch in (1, 2):
        term.on_epoch(epoch, 4)
        torch.testing.assert_close(term.prototypes.double(), first, rtol=0, atol=1e-5)
        value = term(*batch.arguments)
        exact = reference.compat_loss(batch.part, term.prototypes.double(), batch.labels, scale=6.0)
        same(value, exact, batch.embeddings, 1e-6)
        term(everything.float(), batch.feature_labels, torch.arange(IMAGES))
    term.eval()
    term(*batch.arguments)
    term.on_epoch(3, 4)
    second = _refined(batch, F.normalize(everything[:, :DIM], dim=1), **options)
    torch.testing.assert_close(term.prototypes.double(), second, rtol=0, atol=1e-5)
    assert (first - second).norm() > 1e-2


def test_uni_bct_state_is_what_changes():
    batch = Batch()
    term = RefreshedPrototypeLoss(batch.features, batch.feature_labels, refresh_epochs=1)
    assert set(term.state_dict()) == {"last_embeddings", "prototypes"}
    term.on_epoch(1, 3)
    term(batch.embeddings.float(), batch.labels, batch.rows)
    resumed = RefreshedPrototypeLoss(batch.features, batch.feature_labels, refresh_epochs=1)
    resumed.load_state_dict(term.state_dict())
    for module in (term, resumed):
        module.on_epoch(2, 3)
    assert torch.equal(term.prototypes, resumed.prototypes)


def test_uni_bct_warms_up_without_a_loss():
    batch = Batch()
    term = RefreshedPrototypeLoss(batch.features, batch.feature_labels, warmup_epochs=2)
    values = []
    for epoch in (1, 2, 3):
        term.on_epoch(epoch, 3)
        values.append(float(term(*batch.arguments).detach()))
    assert values[:2] == [0, 0] < values[2:]
    before = term.last_embeddings.clone()
    term(batch.embeddings.flip(0), batch.labels, batch.rows)
    assert not torch.equal(term.last_embeddings, before)
    for name in ("warmup_epochs", "refresh_epochs"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 0, got -1"):
            RefreshedPrototypeLoss(batch.features, batch.feature_labels, **{name: -1})
