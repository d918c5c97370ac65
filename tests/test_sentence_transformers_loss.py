# SPDX-License-Identifier: Apache-2.0
"""Compatibility terms in a loss of sentence-transformers: values, gradients, what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_sentence_transformers import (
    DIM,
    batch_of,
    make_texts,
    old_model,
    pair_features,
    sentence_transformers_engine,
    two_terms,
)

from fclearn.integrations import CompatTerms
from fclearn.losses import InstanceCompatLoss, L2CompatLoss, LossTerm

# Warnings of the engine about itself are none of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    yield from sentence_transformers_engine(tmp_path_factory)


def calls_of(model):
    """A list that grows with every call of the model."""
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_parts_are_the_losses_and_the_model_runs_once(engine):
    texts, labels = make_texts(seed=1)
    old, rows = old_model(texts), torch.tensor([5, 0, 17, 30])
    model = engine.model(dropout=0.0)
    some = [texts[row] for row in rows]
    terms = two_terms(old, labels)
    own = engine.losses.BatchAllTripletLoss(model)
    calls = calls_of(model)
    got = engine.of_ours.CompatLoss(model, own, terms)([batch_of(model, some, rows)], labels[rows])
    assert len(calls) == 1
    embeddings = model(batch_of(model, some))["sentence_embedding"]
    expected = {
        "own": own([batch_of(model, some)], labels[rows]),
        "compat/instances": InstanceCompatLoss(old, labels)(embeddings, labels[rows]),
        "compat/own": 3 * L2CompatLoss(old)(embeddings, labels[rows], rows),
    }
    assert set(got) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


def test_columns_with_rows_are_averaged(engine):
    texts, labels = make_texts(seed=1)
    model = engine.model(dropout=0.0)
    terms = two_terms(old_model(texts), labels)
    loss = engine.of_ours.CompatLoss(
        model, engine.losses.MultipleNegativesRankingLoss(model), terms
    )
    both = loss(pair_features(model, texts, [0, 1, 2], [12, 13, 14]))
    single = []
    for kept in (0, 1):
        features = pair_features(model, texts, [0, 1, 2], [12, 13, 14])
        del features[1 - kept]["fcl_rows"]
        single.append(loss(features))
    for name in ("compat/instances", "compat/own"):
        torch.testing.assert_close(both[name], (single[0][name] + single[1][name]) / 2)
        assert single[0][name] != single[1][name]


@pytest.mark.parametrize("name", ["plain", "cached", "matryoshka", "merged"])
def test_losses_that_embed_in_their_own_way(engine, name):
    """Caching, merging and truncating losses: the terms and their gradient are the same."""
    texts, labels = make_texts(seed=1)
    anchors, positives = [0, 1, 2, 3], [12, 13, 14, 15]
    scores = torch.tensor([1.0, 0.0, 0.5, 0.2]) if name == "merged" else None

    def own(model):
        plain = engine.losses.MultipleNegativesRankingLoss(model)
        if name == "cached":
            return engine.losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
        if name == "matryoshka":
            return engine.losses.MatryoshkaLoss(model, plain, [DIM, 8])
        return engine.losses.CosineSimilarityLoss(model) if name == "merged" else plain

    def gradient(compute):
        model = engine.model(dropout=0.0).train()
        value = compute(model)
        value.backward()
        return value.detach(), torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )

    def together(model):
        loss = engine.of_ours.CompatLoss(model, own(model), two_terms(old_model(texts), labels))
        parts = loss(pair_features(model, texts, anchors, positives), scores)
        return sum(parts.values())

    def apart(model):
        features = pair_features(model, texts, anchors, positives)
        rows = [column.pop("fcl_rows") for column in features]
        terms = two_terms(old_model(texts), labels)
        compat = sum(
            terms(model(dict(column))["sentence_embedding"], row)
            for column, row in zip(features, rows, strict=True)
        )
        parts = own(model)(features, scores)
        return compat / 2 + (sum(parts.values()) if isinstance(parts, dict) else parts)

    value, grad = gradient(together)
    expected, expected_grad = gradient(apart)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_evaluation_without_rows_gives_the_own_loss(engine):
    texts, labels = make_texts(seed=1)
    model = engine.model(dropout=0.0)
    own = engine.losses.BatchAllTripletLoss(model)
    loss = engine.of_ours.CompatLoss(model, own, two_terms(old_model(texts), labels))
    with torch.no_grad():
        got = loss([batch_of(model, texts[:8])], labels[:8])
        expected = own([batch_of(model, texts[:8])], labels[:8])
        alone = engine.of_ours.CompatLoss(model, None, loss.terms)
        with pytest.raises(ValueError, match="rows: expected the numbers"):
            alone([batch_of(model, texts[:8])], labels[:8])
    assert set(got) == {"own"}
    torch.testing.assert_close(got["own"], expected)


def test_wrong_use_is_told_in_one_line(engine):
    texts, labels = make_texts(seed=1)
    old = old_model(texts)
    model = engine.model()
    own = engine.losses.BatchAllTripletLoss(model)
    loss = engine.of_ours.CompatLoss(model, own, two_terms(old, labels))
    with pytest.raises(ValueError, match=r"call pass_rows\(trainer, COLUMN\)"):
        loss([batch_of(model, texts[:4])], labels[:4])
    with pytest.raises(ValueError, match=r"rows: expected numbers .* in \[0, 144\), got 144"):
        loss([batch_of(model, texts[:2], [0, 144])], labels[:2])
    wide = CompatTerms([LossTerm("own", 1.0, L2CompatLoss(torch.ones(144, DIM + 1)))], labels)
    with pytest.raises(
        ValueError, match=f"at least the {DIM + 1} dims of the old features, got {DIM}"
    ):
        engine.of_ours.CompatLoss(model, None, wide)([batch_of(model, texts[:2], [0, 1])])

    plain = {"text": texts, "label": labels.tolist()}
    trainer = engine.trainer(model, engine.Dataset.from_dict(plain), loss)
    with pytest.raises(
        ValueError, match=r"expected a column 'row' .* got columns \['text', 'label'\]"
    ):
        engine.of_ours.pass_rows(trainer)
    trainer = engine.trainer(model, engine.Dataset.from_dict(plain), own)
    with pytest.raises(
        ValueError, match="expected a CompatLoss as its loss, got BatchAllTripletLoss"
    ):
        engine.of_ours.pass_rows(trainer)

    collate = engine.of_ours.RowCollator(trainer.data_collator, {"body": "row"})
    with pytest.raises(ValueError, match=r"text column among \['text'\], got 'body'"):
        collate([{"text": "c0w0", "label": 0, "row": 0}])
    collate = engine.of_ours.RowCollator(trainer.data_collator, "row")
    with pytest.raises(TypeError, match="integers in column 'row', got 'doc-17'"):
        collate([{"text": "c0w0", "label": 0, "row": "doc-17"}])
