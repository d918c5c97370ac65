# SPDX-License-Identifier: Apache-2.0
"""The walk within a batch, by definition in float64; the walks of ni-fcl-walk by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from baseline_checks import CLASSES, DIM, Batch

from fclearn.methods import Assets, build_method
from fclearn.methods.ni_fcl_walk import BatchWalkLoss
from fclearn.methods.uni_bct import RefreshedPrototypeLoss
from reference import random_walk_limit


def loss_by_definition(embeddings, prototypes, labels, scale, temperature, damping):
    rows = F.normalize(embeddings[:, : prototypes.shape[1]], dim=1)
    affinities = (rows @ rows.T / temperature).fill_diagonal_(-torch.inf)
    walked = random_walk_limit(affinities.softmax(1), rows, damping=damping)
    return F.cross_entropy(scale * walked @ prototypes.T, labels)


@pytest.mark.parametrize("damping", [0.0, 0.5, 0.9])
def test_loss_and_gradient_by_definition(damping):
    batch = Batch()
    prototypes = F.normalize(torch.randn(CLASSES, DIM, dtype=torch.float64), dim=1)
    options = {"scale": 7.0, "temperature": 0.3, "damping": damping}
    term = BatchWalkLoss(prototypes, **options)
    embeddings = batch.embeddings.clone().requires_grad_()
    value = term(embeddings, batch.labels, batch.rows)
    expected = loss_by_definition(embeddings, prototypes, batch.labels, **options)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, embeddings)
    (reference,) = torch.autograd.grad(expected, embeddings)
    torch.testing.assert_close(gradient, reference)


def test_neighbours_of_its_class_help_an_image():
    prototypes = torch.eye(2)
    one = torch.tensor([[0.6, 0.8]])  # of class 0, a little nearer to class 1
    friends = torch.tensor([[0.8, 0.6]]).expand(4, -1)
    strangers = torch.tensor([[0.0, 1.0]]).expand(4, -1)
    term = BatchWalkLoss(prototypes, damping=0.8, temperature=1.0)

    def cosines(others):
        return term._walked(torch.cat([one, others]))[0]

    among_friends, among_strangers = cosines(friends), cosines(strangers)
    assert among_friends[0] - among_friends[1] > one[0, 0] - one[0, 1]
    assert among_strangers[0] - among_strangers[1] < one[0, 0] - one[0, 1]


def test_an_image_alone_stays_where_it_is():
    row = torch.tensor([[0.6, 0.8]])
    expected = F.cross_entropy(10 * row @ torch.eye(2), torch.tensor([0]))
    torch.testing.assert_close(BatchWalkLoss(torch.eye(2))(row, torch.tensor([0])), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a number > 0, got 0.0"),
        ({"damping": 1.0}, r"damping: expected a number in \[0, 1\), got 1.0"),
        ({"damping": -0.1}, r"damping: expected a number in \[0, 1\), got -0.1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        BatchWalkLoss(torch.eye(2), **options)


def compat_of(**settings):
    labels = torch.arange(40) % 5
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    (_, term) = build_method("ni-fcl-walk", Assets(labels, features), 8, **settings)
    return term.module


def test_each_walk_is_another_loss():
    assert isinstance(compat_of(walk="in-batch"), BatchWalkLoss)
    refreshed = compat_of(refresh_epochs=3, k=4, damping=0.8)
    assert isinstance(refreshed, RefreshedPrototypeLoss)
    assert (refreshed.refresh_epochs, refreshed.k, refreshed.damping) == (3, 4, 0.8)
    # Before the first refinement, the graph is that of the old features, as without any.
    plain = compat_of(k=4, damping=0.8)
    torch.testing.assert_close(refreshed.prototypes, plain.prototypes)
    assert compat_of(walk="soft-targets").soft_targets is not None
    assert not torch.allclose(compat_of(walk="global").prototypes, plain.prototypes)


def test_walks_that_do_not_go_together():
    with pytest.raises(ValueError, match="refresh_epochs: expected 0 with walk='global', got 2"):
        compat_of(walk="global", refresh_epochs=2)
    with pytest.raises(ValueError, match=r"walk: expected one of .*'in-batch'.*, got 'batch'"):
        compat_of(walk="batch")
