# SPDX-License-Identifier: Apache-2.0
"""Compatibility terms trained by `SentenceTransformerTrainer`, by one process and by several."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from tiny_sentence_transformers import (
    DIM,
    OLD_DIM,
    make_texts,
    old_model,
    sentence_transformers_engine,
    two_terms,
)
from torch import nn
from torchrun import TESTS, torchrun

import fclearn
from fclearn.integrations import CompatTerms
from fclearn.losses import L2CompatLoss, LossTerm

# Warnings of the engine about itself are none of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    yield from sentence_transformers_engine(tmp_path_factory)


def test_training_makes_new_queries_comparable_with_old_vectors(engine, tmp_path):
    texts, labels = make_texts(seed=1)
    queries, query_labels = make_texts(seed=2)
    old, gallery = old_model(texts), old_model(queries)
    model = engine.model()
    data = engine.Dataset.from_dict(
        {"text": texts, "label": labels.tolist(), "row": list(range(len(texts)))}
    )
    loss = engine.of_ours.CompatLoss(
        model, engine.losses.BatchAllTripletLoss(model), two_terms(old, labels)
    )
    trainer = engine.trainer(model, data, loss, num_train_epochs=10, learning_rate=2e-3)
    engine.of_ours.pass_rows(trainer)

    def cross_test():
        new = model.encode(queries, convert_to_tensor=True)[:, :OLD_DIM]
        return fclearn.evaluate_retrieval(
            F.normalize(new, dim=1),
            F.normalize(gallery, dim=1),
            query_labels=query_labels,
            gallery_labels=query_labels,
            exclude_self=True,
            query_ids=range(len(queries)),
            gallery_ids=range(len(queries)),
            metrics=("map",),
        )["map"]

    before = cross_test()
    trainer.train()
    after = cross_test()
    logged = [row for row in trainer.state.log_history if "compat/own" in row]
    assert {"own", "compat/instances", "compat/own", "loss"} <= set(logged[0])
    for row in logged:
        parts = row["own"] + row["compat/instances"] + row["compat/own"]
        assert row["loss"] == pytest.approx(parts, abs=1e-3)
    for name in ("compat/instances", "compat/own"):
        assert logged[-1][name] < 0.5 * logged[0][name]
    trainer.save_model(tmp_path / "saved")  # with a card that describes loss and data
    assert before < 0.3
    assert after > 0.7


def test_pairs_through_the_trainer_and_labels_stay_free(engine):
    """Row columns by text column, and a sampler that needs the label column."""
    texts, labels = make_texts(seed=1)
    old = old_model(texts)
    seen = []

    class Recording(L2CompatLoss):
        def forward(self, embeddings, labels, rows):
            seen.append(rows.tolist())
            return super().forward(embeddings, labels, rows)

    model = engine.model()
    terms = CompatTerms([LossTerm("own", 1.0, Recording(old))], labels)
    anchors, positives = list(range(24)), list(range(24, 48))
    data = engine.Dataset.from_dict(
        {
            "anchor": [texts[row] for row in anchors],
            "positive": [texts[row] for row in positives],
            "anchor_row": anchors,
            "positive_row": positives,
        }
    )
    loss = engine.of_ours.CompatLoss(
        model, engine.losses.MultipleNegativesRankingLoss(model), terms
    )
    trainer = engine.trainer(
        model,
        data,
        loss,
        per_device_train_batch_size=8,
        num_train_epochs=1,
        batch_sampler="no_duplicates",
    )
    engine.of_ours.pass_rows(trainer, {"anchor": "anchor_row", "positive": "positive_row"})
    trainer.train()
    assert sorted(itertools.chain(*seen)) == [*anchors, *positives]
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert [row + 24 for row in first] == second

    seen.clear()
    data = engine.Dataset.from_dict(
        {"text": texts, "label": labels.tolist(), "row": range(len(texts))}
    )
    loss = engine.of_ours.CompatLoss(model, engine.losses.BatchAllTripletLoss(model), terms)
    trainer = engine.trainer(model, data, loss, max_steps=3, batch_sampler="group_by_label")
    engine.of_ours.pass_rows(trainer, "row")
    trainer.train()
    for rows in seen:
        counts = labels[rows].bincount()
        # pairs of a label, not a random draw
        assert set(counts.tolist()) <= set(range(0, 13, 2))


def test_data_sets_with_losses_of_their_own(engine):
    texts, labels = make_texts(seed=1)
    model = engine.model()
    compat = engine.of_ours.CompatLoss(model, None, two_terms(old_model(texts), labels))
    plain = engine.losses.MultipleNegativesRankingLoss(model)
    data = {
        "ours": engine.Dataset.from_dict({"text": texts[:24], "row": list(range(24))}),
        "theirs": engine.Dataset.from_dict({"anchor": texts[:24], "positive": texts[12:36]}),
    }
    trainer = engine.trainer(
        model,
        data,
        {"ours": compat, "theirs": plain},
        per_device_train_batch_size=12,
        num_train_epochs=1,
    )
    engine.of_ours.pass_rows(trainer)
    trainer.train()
    assert trainer.state.global_step == 4


def test_terms_that_follow_epochs_are_told(engine):
    texts, labels = make_texts(seed=1)
    told = []

    class Following(L2CompatLoss):
        def on_epoch(self, epoch, epochs):
            told.append((epoch, epochs))

    model = engine.model()
    terms = CompatTerms([LossTerm("own", 1.0, Following(old_model(texts)))], labels)
    data = engine.Dataset.from_dict({"text": texts, "row": list(range(len(texts)))})
    trainer = engine.trainer(
        model,
        data,
        engine.of_ours.CompatLoss(model, None, terms),
        num_train_epochs=3,
        per_device_train_batch_size=72,
    )
    engine.of_ours.pass_rows(trainer)
    trainer.train()
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_loss_is_a_module_like_others(engine):
    """What is trained in it reaches the optimizer; old features reach no state."""
    texts, labels = make_texts(seed=1)
    model = engine.model()
    terms = CompatTerms.from_method("l2", old_model(texts), labels, dim=DIM, own_classifier=True)
    loss = engine.of_ours.CompatLoss(model, None, terms)
    data = engine.Dataset.from_dict({"text": texts, "row": list(range(len(texts)))})
    trainer = engine.trainer(model, data, loss, max_steps=2, learning_rate=1e-2)
    engine.of_ours.pass_rows(trainer)
    classifier = next(
        m for m in terms.modules_of_terms if isinstance(m, fclearn.losses.CosineClassifierLoss)
    )
    before = classifier.prototypes.detach().clone()
    trainer.train()
    assert not torch.equal(classifier.prototypes, before)
    assert set(terms.state_dict()) == {"modules_of_terms.0.prototypes"}
    assert isinstance(loss, nn.Module)


def test_several_processes_train_as_one(engine):
    """The trainer's DistributedDataParallel takes the model's place in the loss."""
    assert engine
    found = []
    for processes in (1, 2):
        run = torchrun(processes, TESTS / "distributed_sentence_transformers.py", str(processes))
        found.append(re.search(r"wrapped: (\w+), norm: ([\d.]+)", run.stdout).groups())
    assert [name for name, _ in found] == ["DistributedDataParallel"] * 2
    assert float(found[0][1]) == pytest.approx(float(found[1][1]), rel=1e-5)
