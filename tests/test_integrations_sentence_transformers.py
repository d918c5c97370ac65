# SPDX-License-Identifier: Apache-2.0
"""Compatibility terms in `SentenceTransformerTrainer`: values, training, and what is refused."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchrun import TESTS, torchrun

import fclearn
from fclearn.integrations import CompatTerms
from fclearn.losses import InstanceCompatLoss, L2CompatLoss, LossTerm

# Warnings of the engine about itself are none of ours.
pytestmark = pytest.mark.filterwarnings("ignore")

CLASSES, PER_CLASS, OLD_DIM, DIM = 12, 12, 16, 32
WORDS_OF_CLASS, FILLERS = 4, 20


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """What the tests need of the engine, and a maker of tiny BERT models with random weights."""
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import sentence_transformers
        from datasets import Dataset
        from sentence_transformers import losses, models
        from transformers import BertConfig, BertModel, BertTokenizerFast

        from fclearn.integrations import sentence_transformers as integration

        folder = tmp_path_factory.mktemp("bert")
        words = [f"c{c}w{w}" for c in range(CLASSES) for w in range(WORDS_OF_CLASS)]
        words += [f"f{number}" for number in range(FILLERS)]
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)

        def model(dropout=0.1):
            torch.manual_seed(0)
            config = BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=DIM,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=2 * DIM,
                max_position_embeddings=32,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
            )
            BertModel(config).save_pretrained(folder)
            return sentence_transformers.SentenceTransformer(
                modules=[models.Transformer(str(folder)), models.Pooling(DIM)], device="cpu"
            )

        def trainer(model, data, loss, **options):
            arguments = sentence_transformers.SentenceTransformerTrainingArguments(
                **{
                    "output_dir": str(tmp_path_factory.mktemp("run")),
                    "report_to": "none",
                    "save_strategy": "no",
                    "disable_tqdm": True,
                    "use_cpu": True,
                    "logging_steps": 1,
                    "per_device_train_batch_size": 24,
                    **options,
                }
            )
            return sentence_transformers.SentenceTransformerTrainer(
                model, arguments, train_dataset=data, loss=loss
            )

        yield SimpleNamespace(
            model=model, trainer=trainer, losses=losses, Dataset=Dataset, of_ours=integration
        )


def make_texts(seed):
    """Texts of words of their class among fillers, and their classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES * PER_CLASS) % CLASSES
    texts = []
    for label in labels.tolist():
        own = torch.randint(WORDS_OF_CLASS, (2,), generator=draw).tolist()
        fillers = torch.randint(FILLERS, (4,), generator=draw).tolist()
        texts.append(" ".join([*(f"c{label}w{w}" for w in own), *(f"f{f}" for f in fillers)]))
    return texts, labels


def old_model(texts):
    """The old model: a fixed random vector per class and per filler, added up."""
    draw = torch.Generator().manual_seed(7)
    classes = torch.randn(CLASSES, OLD_DIM, generator=draw)
    fillers = 0.5 * torch.randn(FILLERS, OLD_DIM, generator=draw)
    return torch.stack(
        [
            sum(
                classes[int(word[1:].split("w")[0])] if word[0] == "c" else fillers[int(word[1:])]
                for word in text.split()
            )
            for text in texts
        ]
    )


def two_terms(old, labels):
    return CompatTerms(
        [
            LossTerm("instances", 1.0, InstanceCompatLoss(old, labels)),
            LossTerm("own", 3.0, L2CompatLoss(old)),
        ],
        labels,
    )


def batch_of(model, texts, rows=None):
    """Features of a text column as the collator makes them."""
    features = model.tokenize(texts)
    return features if rows is None else {**features, "fcl_rows": torch.as_tensor(rows)}


def calls_of(model):
    """A list that grows with every call of the model."""
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    return calls


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


def pair_features(model, texts, anchors, positives):
    return [
        batch_of(model, [texts[row] for row in anchors], anchors),
        batch_of(model, [texts[row] for row in positives], positives),
    ]


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
        assert set(counts.tolist()) <= {
            0,
            2,
            4,
            6,
            8,
            10,
            12,
        }  # pairs of a label, not a random draw


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
