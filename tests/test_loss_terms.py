# SPDX-License-Identifier: Apache-2.0
"""What loss modules say of themselves, whether they inherit it or not, and what follows from it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn

import fclearn.methods
from fclearn import losses
from fclearn.integrations import CompatTerms
from fclearn.losses import L2CompatLoss, LossModule, LossTerm

METHODS = [
    importlib.import_module(f"fclearn.methods.{found.name}")
    for found in pkgutil.iter_modules(fclearn.methods.__path__)
]


class Own(nn.Module):
    """A module of somebody who knows nothing of ours; remembers what it is called with."""

    def forward(self, *arguments):
        self.seen = arguments
        return arguments[0].sum()


class OwnThatSees(Own):
    sees_images = True


class OwnOfTheWholeBatch(Own):
    whole_batch = True


@pytest.fixture
def batch():
    """Embeddings, labels, rows and images."""
    return torch.rand(3, 4), torch.tensor([0, 1, 1]), torch.arange(3), torch.rand(3, 1, 8, 8)


def test_all_losses_have_the_base():
    found = {
        kind
        for module in (losses, *METHODS)
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__name__.endswith("Loss")
    }
    assert len(found) >= 18
    assert [kind for kind in found if not issubclass(kind, LossModule)] == []


def test_the_base_alone_is_no_loss():
    with pytest.raises(TypeError, match="abstract"):
        LossModule()


@pytest.mark.parametrize(
    ("kind", "whole_batch", "sees_images"),
    [(Own, False, False), (OwnThatSees, False, True), (OwnOfTheWholeBatch, True, False)],
)
def test_modules_without_the_base_are_terms(kind, whole_batch, sees_images, batch):
    term = LossTerm("compat", 2.0, kind())
    assert (term.whole_batch, term.sees_images) == (whole_batch, sees_images)
    assert float(term.value(*batch)) == pytest.approx(2 * float(batch[0].sum()))
    assert len(term.module.seen) == 3 + sees_images
    assert all(one is other for one, other in zip(term.module.seen, batch, strict=False))


def test_a_term_that_sees_images_is_refused_where_there_are_none(batch):
    embeddings, labels, rows, _ = batch
    terms = [LossTerm("own", 1.0, L2CompatLoss(torch.eye(3))), LossTerm("all", 1.0, Own())]
    assert torch.isfinite(CompatTerms(terms, labels)(embeddings, rows))
    with pytest.raises(
        ValueError,
        match=r"^terms: expected terms of embeddings, labels and rows, got 'seen' \(OwnThatSees\), "
        "which sees images; .*$",
    ):
        CompatTerms([*terms, LossTerm("seen", 1.0, OwnThatSees())], labels)
