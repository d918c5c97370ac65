# SPDX-License-Identifier: Apache-2.0
"""What tests of `SentenceTransformerTrainer` train: a tiny BERT on made-up texts of classes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fclearn.integrations import CompatTerms
from fclearn.losses import InstanceCompatLoss, L2CompatLoss, LossTerm

CLASSES, PER_CLASS, OLD_DIM, DIM = 12, 12, 16, 32
WORDS_OF_CLASS, FILLERS = 4, 20


def sentence_transformers_engine(tmp_path_factory):
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


def pair_features(model, texts, anchors, positives):
    return [
        batch_of(model, [texts[row] for row in anchors], anchors),
        batch_of(model, [texts[row] for row in positives], positives),
    ]
