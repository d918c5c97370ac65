# SPDX-License-Identifier: Apache-2.0
"""Run by torchrun: `SentenceTransformerTrainer` with compatibility terms, by several processes.

Prints the weights' norm after some steps, which is the same for any number of processes.
"""

from __future__ import annotations

import sys
import tempfile

import torch
import torch.distributed as dist
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    models,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from fclearn.distributed import leave_world
from fclearn.integrations import CompatTerms
from fclearn.integrations.sentence_transformers import CompatLoss, pass_rows
from fclearn.losses import InstanceCompatLoss, L2CompatLoss, LossTerm

ROWS, CLASSES, OLD_DIM, DIM = 32, 4, 5, 8


def main() -> None:
    processes = int(sys.argv[1])
    words = Tokenizer(WordLevel({"[UNK]": 0, **{f"w{n}": n + 1 for n in range(12)}}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    model = SentenceTransformer(
        modules=[models.StaticEmbedding(words, embedding_dim=DIM)], device="cpu"
    )
    old = torch.randn(ROWS, OLD_DIM)
    labels = torch.arange(ROWS) % CLASSES
    terms = CompatTerms(
        [
            LossTerm("instances", 1.0, InstanceCompatLoss(old, labels)),
            LossTerm("own", 3.0, L2CompatLoss(old)),
        ],
        labels,
    )
    texts = [f"w{row % CLASSES} w{row % 7}" for row in range(ROWS)]
    data = Dataset.from_dict({"text": texts, "row": list(range(ROWS))})
    arguments = SentenceTransformerTrainingArguments(
        tempfile.mkdtemp(),
        # One batch is the whole data set: the same images, however many processes share them.
        per_device_train_batch_size=ROWS // processes,
        max_steps=5,
        learning_rate=0.1,
        use_cpu=True,
        ddp_backend="gloo",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=data, loss=CompatLoss(model, None, terms)
    )
    pass_rows(trainer)
    trainer.train()
    norm = float(sum(p.detach().double().square().sum() for p in model.parameters()))
    if int(trainer.args.process_index) == 0:
        print(f"wrapped: {type(trainer.loss.model).__name__}, norm: {norm:.6f}")
    if dist.is_initialized():
        dist.barrier()
        leave_world()


if __name__ == "__main__":
    sys.exit(main())
