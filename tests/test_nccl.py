# SPDX-License-Identifier: Apache-2.0
"""NCCL: the neighbour contrast by definition in float64, and which features are credible."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from baseline_checks import CLASSES, DIM, EXTRA, IMAGES, Batch, same

from fclearn.losses import CosineClassifierLoss
from fclearn.methods import build_method
from fclearn.methods.nccl import NeighbourContrastLoss, _credible


def _contrast(query, rows, batch, credible, scale):
    """Positive by positive."""
    logs = torch.log_softmax(scale * query @ rows[credible].T, dim=1)
    places = credible.nonzero()[:, 0].tolist()
    losses = []
    for i, (row, label) in enumerate(zip(batch.rows.tolist(), batch.labels.tolist(), strict=True)):
        terms = [
            -0.5 * (1 + batch.features[row] @ batch.features[other]) * logs[i, at]
            for at, other in enumerate(places)
            if int(batch.feature_labels[other]) == label
        ]
        losses.append(sum(terms) / len(terms) if terms else query.new_zeros(()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("lacking", [None, 2])
def test_neighbour_contrast(lacking):
    """Also with a class that has no credible feature: its images have no loss."""
    batch = Batch()
    credible = (torch.arange(IMAGES) % 3 > 0) & (batch.feature_labels != lacking)
    term = NeighbourContrastLoss(batch.features, batch.feature_labels, credible, scale=6.0)
    expected = _contrast(batch.part, batch.features, batch, credible, 6.0)
    same(term(*batch.arguments), expected, batch.embeddings)
    assert term.state_dict() == {}


def test_neighbour_contrast_of_outputs():
    """Through D x D products, the cosines of the C outputs of both classifiers."""
    batch = Batch()
    classifier = CosineClassifierLoss(CLASSES, DIM + EXTRA).double()
    head = F.normalize(batch.normal(CLASSES, DIM), dim=1)
    credible = torch.arange(IMAGES) % 3 > 0
    term = NeighbourContrastLoss(
        *(batch.features, batch.feature_labels, credible),
        scale=6.0,
        head=head,
        classifier=classifier,
    )
    new_outputs = F.normalize(batch.embeddings @ F.normalize(classifier.prototypes, dim=1).T, dim=1)
    old_outputs = F.normalize(batch.features @ head.T, dim=1)
    expected = _contrast(new_outputs, old_outputs, batch, credible, 6.0)
    same(term(*batch.arguments), expected, batch.embeddings)
    same(term(*batch.arguments), expected, classifier.prototypes)


def test_credible_features_are_those_of_low_entropy():
    batch = Batch()
    head = F.normalize(batch.normal(CLASSES, DIM), dim=1)
    probabilities = torch.softmax(20 * batch.features @ head.T, dim=1)
    entropy = -(probabilities * probabilities.log()).sum(1)
    credible = _credible(batch.features, head, 0.2)
    assert 0 < int(credible.sum()) < IMAGES
    assert torch.equal(credible, entropy <= 0.2 * math.log(CLASSES))
    assert _credible(batch.features, head, 1.0).all()
    with pytest.raises(ValueError, match=r"max_entropy: at -1\.0 no old feature is credible"):
        build_method("nccl", batch.assets, DIM, max_entropy=-1.0)
