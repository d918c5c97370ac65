# SPDX-License-Identifier: Apache-2.0
"""Compatibility terms as one module: values, names, state, epochs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchrun import TESTS, torchrun

from fclearn import FeatureStore, Fingerprint
from fclearn.integrations import CompatTerms
from fclearn.losses import (
    CosineClassifierLoss,
    DistillCompatLoss,
    InstanceCompatLoss,
    L2CompatLoss,
    LossTerm,
    PseudoClassifierLoss,
)
from fclearn.methods import Assets, build_method
from fclearn.methods.ni_fcl import spread

ROWS, CLASSES, OLD_DIM, DIM = 30, 5, 6, 9


@pytest.fixture
def old():
    return torch.randn(ROWS, OLD_DIM, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    return torch.arange(ROWS) % CLASSES


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(7, DIM, generator=draw), torch.randperm(ROWS, generator=draw)[:7]


def all_terms(old, labels):
    prototypes = old[:CLASSES]
    return [
        LossTerm("instances", 0.5, InstanceCompatLoss(old, labels)),
        LossTerm("compat", 2.0, PseudoClassifierLoss(prototypes)),
        LossTerm("compat", 1.5, PseudoClassifierLoss(prototypes, soft_targets=old)),
        LossTerm("compat", 1.0, L2CompatLoss(old)),
        LossTerm("distilled", 3.0, DistillCompatLoss(prototypes, old)),
    ]


def test_values_are_the_weighted_losses_and_forward_their_sum(old, labels, batch):
    embeddings, rows = batch
    listed = all_terms(old, labels)
    terms = CompatTerms(listed, labels)
    values = terms.values(embeddings, rows)
    expected = [term.weight * term.module(embeddings, labels[rows], rows) for term in listed]
    assert list(values) == [
        "instances",
        "PseudoClassifierLoss_1",
        "PseudoClassifierLoss_2",
        "L2CompatLoss",
        "distilled",
    ]
    torch.testing.assert_close(list(values.values()), expected)
    torch.testing.assert_close(terms(embeddings, rows.int()), sum(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(old, labels, batch, dtype):
    embeddings, rows = batch
    terms = CompatTerms(all_terms(old, labels), labels)
    half = embeddings.to(dtype).requires_grad_()
    loss = terms(half, rows)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, terms(half.detach().float(), rows))
    loss.backward()
    assert half.grad.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(terms(half, rows), loss)


def test_a_method_without_and_with_its_classifier(old, labels, batch):
    embeddings, rows = batch
    terms = CompatTerms.from_method("ni-fcl", old, labels, dim=DIM, own_weight=7.0)
    assert terms.names == ["InstanceCompatLoss", "PseudoClassifierLoss", "L2CompatLoss"]
    assert terms.weights == [1.0, 1.0, 7.0 / spread(old)]
    assert not list(terms.parameters())
    assert float(terms(embeddings, rows)) > 0
    more = CompatTerms.from_method("ni-fcl", old, labels, dim=DIM, own_classifier=True)
    assert more.names == ["CosineClassifierLoss", *terms.names]
    assert [p.shape for p in more.parameters()] == [(CLASSES, DIM)]


def test_own_features_count_by_their_spread(old, labels):
    """Old features that all lean one way are close together: distances to them weigh more."""
    unit = F.normalize(old, dim=1)
    assert spread(3 * old) == pytest.approx(float(unit.var(0, correction=0).sum()), abs=1e-3)
    leaning = unit + 2 * torch.eye(len(old[0]))[0]
    assert spread(leaning) < 0.5 * spread(old)
    plain, more = (
        CompatTerms.from_method("ni-fcl", rows, labels, dim=DIM).weights[2]
        for rows in (old, leaning)
    )
    assert more > 2 * plain


def test_a_store_is_read(old, labels, batch, tmp_path):
    embeddings, rows = batch
    store = FeatureStore.write(
        tmp_path / "old",
        old,
        {"id": [str(row) for row in range(ROWS)], "label": labels.numpy()},
        Fingerprint("old-api", OLD_DIM, norm="none"),
    )
    of_store = CompatTerms.from_method("l2", store, labels, dim=DIM)
    of_path = CompatTerms.from_method("l2", str(tmp_path / "old"), labels, dim=DIM)
    expected = CompatTerms.from_method("l2", np.asarray(old), labels, dim=DIM)(embeddings, rows)
    assert of_store(embeddings, rows) == of_path(embeddings, rows) == expected


def test_old_features_are_not_in_the_state_but_move_with_the_module(old, labels):
    terms = CompatTerms(all_terms(old, labels), labels)
    assert "labels" not in terms.state_dict()
    assert not any(key.endswith(".features") for key in terms.state_dict())
    names = {name for name, _ in terms.named_buffers()}
    assert {"labels", "modules_of_terms.0.features", "modules_of_terms.3.features"} <= names


def test_epochs_are_told_once_each(old, labels):
    told = []

    class Following(L2CompatLoss):
        def on_epoch(self, epoch, epochs):
            told.append((epoch, epochs))

    quiet = CompatTerms([LossTerm("own", 1.0, L2CompatLoss(old))], labels)
    assert not quiet.follows_epochs
    quiet.begin_epoch(1, 2)
    terms = CompatTerms([LossTerm("own", 1.0, Following(old))], labels)
    assert terms.follows_epochs
    for epoch in (1, 1, 2, 2, 2):
        terms.begin_epoch(epoch, 2)
    assert told == [(1, 2), (2, 2)]


def test_bad_terms_are_refused(old, labels):
    with pytest.raises(ValueError, match="terms: expected at least one"):
        CompatTerms([], labels)
    own = [LossTerm("own", 1.0, L2CompatLoss(old))]
    with pytest.raises(
        ValueError, match=r"labels: expected int64 of shape \(N,\), got torch.float32"
    ):
        CompatTerms(own, labels.float())
    with pytest.raises(
        ValueError,
        match=r"terms\[0\]: expected 29 rows, as in labels, in the features of L2Comp.*, got 30",
    ):
        CompatTerms(own, labels[:-1])
    distil = DistillCompatLoss(old[:CLASSES], old)
    with pytest.raises(ValueError, match="in the teacher_mean of DistillCompatLoss, got 30"):
        CompatTerms([LossTerm("compat", 1.0, distil)], labels[:-1])
    # Instance rows need not be those of the training set: here, a part of them.
    CompatTerms([LossTerm("compat", 1.0, InstanceCompatLoss(old[:9], labels[:9]))], labels)
    CompatTerms([LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM))], labels)


def test_terms_made_for_other_labels_are_refused(old, labels):
    terms = build_method("ni-fcl", Assets(labels, old), DIM)
    assert len(CompatTerms(terms, labels.clone()).names) == len(terms)
    with pytest.raises(
        ValueError,
        match=r"terms\[0\]: expected the classes in labels, got 0 for row 0, which has 4 \(30 such"
        r"\): Assets and labels must have the same rows in the same order",
    ):
        CompatTerms(terms, labels.roll(1))
    # Nothing in it has a row per label.
    (mean,) = build_method("ni-fcl-mean", Assets(labels, old), DIM)[1:]
    with pytest.raises(
        ValueError, match=r"terms\[0\]: expected a term for 29 rows, as in labels, got one for 30"
    ):
        CompatTerms([mean], labels[:-1])


def test_bad_methods_are_refused(old, labels):
    with pytest.raises(ValueError, match="'independent': expected one with compatibility terms"):
        CompatTerms.from_method("independent", old, labels, dim=DIM)
    with pytest.raises(ValueError, match="'lce': its terms act on the classifier"):
        CompatTerms.from_method("lce", old, labels, dim=DIM)
    CompatTerms.from_method("lce", old, labels, dim=DIM, own_classifier=True)
    with pytest.raises(ValueError, match="dim: expected at least the 6 dims"):
        CompatTerms.from_method("l2", old, labels, dim=OLD_DIM - 1)


def test_bad_batches_are_refused(old, labels, batch):
    embeddings, rows = batch
    terms = CompatTerms(all_terms(old, labels), labels)
    for bad in (-1, ROWS):
        with pytest.raises(ValueError, match=rf"training rows in \[0, 30\), got {bad}"):
            terms(embeddings, torch.full_like(rows, bad))
    with pytest.raises(ValueError, match=r"rows: expected integers of shape \(7,\).*\[6\]"):
        terms(embeddings, rows[:-1])
    with pytest.raises(ValueError, match=r"rows: expected integers .* got torch.float32"):
        terms(embeddings, rows.float())
    with pytest.raises(ValueError, match=r"embeddings: expected floating of shape \(B, D\)"):
        terms(embeddings[0], rows)
    with pytest.raises(ValueError, match="at least the 6 dims of the old features, got 5"):
        terms(embeddings[:, :5], rows)


@pytest.mark.usefixtures("one_thread")
def test_several_processes_are_one():
    assert "as one process" in torchrun(2, TESTS / "distributed_terms.py").stdout
