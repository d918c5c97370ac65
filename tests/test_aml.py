# SPDX-License-Identifier: Apache-2.0
"""Asymmetric metric learning: each loss pair by pair, in float64, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fclearn.methods import Assets, build_method
from fclearn.methods.aml import AsymmetricMetricLoss

LOSSES = ["regression", "contrastive", "contrastive+", "triplet", "multi-similarity"]
IMAGES, CLASSES, DIM, BATCH = 24, 5, 4, 8


class Batch:
    """Old features of all images, one class with a single image, and a batch of embeddings."""

    def __init__(self, seed=0, extra=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        self.feature_labels = torch.arange(IMAGES) % (CLASSES - 1)
        self.feature_labels[-1] = CLASSES - 1
        self.features = 2 * normal(IMAGES, DIM)
        self.embeddings = (3 * normal(BATCH, DIM + extra)).requires_grad_()
        # The single image is always there, and a class of which the batch has two.
        self.rows = torch.cat([torch.tensor([IMAGES - 1, 0, 4]), torch.tensor([1, 6, 2, 3, 11])])
        self.labels = self.feature_labels[self.rows]


def _by_definition(batch, loss, drawn, *, margin, num_negatives, symmetric):
    """Loops over anchors, positives and negatives."""
    new = F.normalize(batch.embeddings[:, :DIM], dim=1)
    old = F.normalize(batch.features, dim=1)
    if symmetric:
        others = list(zip(new, batch.labels.tolist(), batch.rows.tolist(), strict=True))
    else:
        rows = [*batch.rows.tolist(), *drawn.tolist()]
        others = [(old[row], int(batch.feature_labels[row]), row) for row in rows]
    total = 0.0
    for anchor, label, row in zip(new, batch.labels.tolist(), batch.rows.tolist(), strict=True):
        positives = [x for x, its_label, its_row in others if its_label == label and its_row != row]
        negatives = [x for x, its_label, _ in others if its_label != label]
        if loss == "regression":
            total = total + 0.5 * (anchor - old[row]).square().sum()
            continue
        if loss == "multi-similarity":
            away = [torch.exp(-2.0 * (anchor @ x - 0.5)) for x in positives]
            near = [torch.exp(40.0 * (anchor @ x - 0.5)) for x in negatives]
            total = total + torch.log(1 + sum(away) + anchor.sum() * 0) / 2
            total = total + torch.log(1 + sum(near)) / 40
            continue
        negatives = sorted(negatives, key=lambda x: -(anchor @ x).item())[:num_negatives]
        far = [(anchor - x).norm() for x in negatives]
        if loss == "triplet":
            losses = [
                F.relu((anchor - x).square().sum() - d.square() + margin)
                for x in positives
                for d in far
            ]
            total = total + (sum(losses) / len(losses) if losses else 0.0)
            continue
        if loss == "contrastive+":
            positives = [*positives, old[row]]
        pulls = [0.5 * (anchor - x).square().sum() for x in positives]
        total = total + (sum(pulls) / len(pulls) if pulls else 0.0)
        total = total + sum(0.5 * F.relu(margin - d).square() for d in far) / len(far)
    return total / len(new)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_by_definition(loss, extra, symmetric, monkeypatch):
    if symmetric and loss == "regression":
        return
    batch = Batch(extra=extra)
    options = {"margin": 1.1, "num_negatives": 3, "symmetric": symmetric}
    module = AsymmetricMetricLoss(batch.features, batch.feature_labels, loss=loss, **options)
    drawn = module._another_of_the_class(batch.labels, batch.rows)
    monkeypatch.setattr(module, "_another_of_the_class", lambda *_: drawn)
    expected = _by_definition(batch, loss, drawn, **options)
    (exact,) = torch.autograd.grad(expected, batch.embeddings)
    value = module(batch.embeddings, batch.labels, batch.rows)
    (gradient,) = torch.autograd.grad(value, batch.embeddings)
    assert value > 0
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, exact, rtol=1e-9, atol=1e-12)
    assert not gradient[:, DIM:].any()


def test_drawn_positives_are_any_other_image_of_the_class():
    batch = Batch()
    module = AsymmetricMetricLoss(batch.features, batch.feature_labels)
    rows = torch.arange(IMAGES).repeat(200)
    torch.manual_seed(0)
    drawn = module._another_of_the_class(batch.feature_labels[rows], rows)
    assert torch.equal(batch.feature_labels[drawn], batch.feature_labels[rows])
    for row in range(IMAGES):
        others = (batch.feature_labels == batch.feature_labels[row]).nonzero()[:, 0].tolist()
        others = [other for other in others if other != row] or [row]
        assert sorted(set(drawn[rows == row].tolist())) == others


def test_batch_of_one_class_and_perfect_embeddings_have_finite_gradients():
    """No negatives at all, distances of zero: nothing to push, and no NaN."""
    features = torch.eye(3)[[0, 0, 1]]
    labels = torch.zeros(3, dtype=torch.int64)
    for loss in LOSSES:
        for symmetric in {False, loss != "regression"}:
            module = AsymmetricMetricLoss(features, labels, loss=loss, symmetric=symmetric)
            embeddings = features.clone().requires_grad_()
            value = module(embeddings, labels, torch.arange(3))
            value.backward()
            assert math.isfinite(value.item())
            assert embeddings.grad.isfinite().all(), loss
    # Two classes at one place: the square root of a distance of zero.
    module = AsymmetricMetricLoss(torch.ones(2, 3), torch.tensor([0, 1]), loss="contrastive")
    embeddings = torch.ones(2, 3, requires_grad=True)
    module(embeddings, torch.tensor([0, 1]), torch.arange(2)).backward()
    assert embeddings.grad.isfinite().all()


def test_old_features_are_not_in_the_checkpoint():
    batch = Batch()
    module = AsymmetricMetricLoss(batch.features, batch.feature_labels, loss="triplet", margin=0.1)
    assert module.state_dict() == {}
    assert list(module.parameters()) == []
    assert repr(module) == (
        "AsymmetricMetricLoss(num_features=24, dim=4, loss='triplet', margin=0.1, "
        "num_negatives=5, symmetric=False)"
    )


def test_settings_choose_loss_and_margin():
    assets = Assets(torch.arange(6) % 2, old_features=torch.eye(6))
    margins = {"triplet": 0.1, "contrastive": 0.7, "contrastive+": 0.7}
    for loss, margin in margins.items():
        module = build_method("aml", assets, 8, loss=loss)[1].module
        assert (module.loss, module.margin, module.symmetric) == (loss, margin, False)
    assert build_method("aml", assets, 8, symmetric=True)[1].module.symmetric
    with pytest.raises(TypeError, match=r"symmetric: .* expects true or false as its default"):
        build_method("aml", assets, 8, symmetric=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ms"}, r"loss: expected one of \['regression', .* got 'ms'"),
        ({"margin": -0.1}, "margin: expected a number >= 0, got -0.1"),
        ({"margin": math.nan}, "margin: expected a number >= 0, got nan"),
        ({"num_negatives": 0}, "num_negatives: expected at least 1, got 0"),
        ({"loss": "regression", "symmetric": True}, "symmetric: regression has no pairs"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AsymmetricMetricLoss(torch.eye(2), torch.tensor([0, 1]), **options)


def test_regression_at_the_default_weight_is_l2_at_its_own():
    assets = Assets(torch.arange(6) % 2, old_features=torch.randn(6, 4))
    arguments = torch.randn(6, 5), assets.labels, torch.arange(6)
    values = []
    for name, options in (("aml", {"loss": "regression"}), ("l2", {})):
        term = build_method(name, assets, 5, **options)[1]
        values.append(term.weight * term.module(*arguments))
    torch.testing.assert_close(*values)
