# SPDX-License-Identifier: Apache-2.0
"""LCE: the aligned classifier and the boundary loss, by definition in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from baseline_checks import CLASSES, DIM, EXTRA, IMAGES, Batch, same

from fclearn.losses import CosineClassifierLoss
from fclearn.methods import build_method
from fclearn.methods.lce import AlignmentLoss, BoundaryLoss


def test_alignment_moves_the_new_classifier_to_the_old_centres():
    batch = Batch()
    classifier = CosineClassifierLoss(CLASSES, DIM + EXTRA).double()
    term = AlignmentLoss(classifier, batch.centres())
    rows = classifier.prototypes[:, :DIM]
    total = sum(
        (row / row.norm() - centre).square().sum()
        for row, centre in zip(rows, batch.centres(), strict=True)
    )
    same(term(*batch.arguments), total / (CLASSES * DIM), classifier.prototypes)
    with torch.no_grad():
        classifier.prototypes[:, :DIM] = 3 * batch.centres()
    assert term(*batch.arguments) < 1e-30
    with pytest.raises(ValueError, match=r"centres: expected one per class \(4\), got 3"):
        AlignmentLoss(classifier, batch.centres()[:3])


def test_boundary_is_that_of_the_farthest_old_feature():
    batch = Batch()
    centres = batch.centres()
    term = BoundaryLoss(batch.features, batch.feature_labels, centres)
    losses = []
    for z, label in zip(batch.part, batch.labels.tolist(), strict=True):
        members = batch.features[batch.feature_labels == label]
        farthest = min(float(member @ centres[label]) for member in members)
        losses.append(F.relu(farthest - z @ centres[label]))
    same(term(*batch.arguments), torch.stack(losses).mean(), batch.embeddings)
    everything = torch.arange(IMAGES)
    assert term(batch.features, batch.feature_labels, everything) < 1e-15


def test_lce_shares_the_new_classifier():
    new, alignment, _ = build_method("lce", Batch().assets, DIM + EXTRA)
    assert alignment.module.classifier is new.module
    terms = torch.nn.ModuleList([new.module, alignment.module])
    assert len(list(terms.parameters())) == 1
