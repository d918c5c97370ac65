# SPDX-License-Identifier: Apache-2.0
"""Training learns, and keeps to its schedule, weights and augmentation."""

from __future__ import annotations

import csv
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from training_samples import CLASSES, DIM, make_trainer

from fclearn.encoders import SmallCnn
from fclearn.losses import CosineClassifierLoss, L2CompatLoss, LossTerm
from fclearn.training import HISTORY_COLUMNS, TrainConfig, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_loss_falls_and_accuracy_rises(bars, optimizer):
    rate = {"adamw": 5e-3, "sgd": 5e-2}[optimizer]
    trainer = make_trainer(
        bars,
        {"epochs": 25, "optimizer": optimizer, "learning_rate": rate, "augment": False},
        losses=[LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM))],
        encoder=SmallCnn(DIM, width=4),
    )
    history = trainer.fit()
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["accuracy"] > 0.9
    trainer.encoder.eval()
    with torch.no_grad():
        embeddings = trainer.encoder(bars.tensor(range(len(bars))))
    prototypes = trainer.losses[0].module.prototypes
    cosines = nn.functional.normalize(embeddings) @ nn.functional.normalize(prototypes).T
    assert (cosines.argmax(1).numpy() == bars.labels).mean() > 0.9


def test_history_columns_and_csv(bars, tmp_path):
    trainer = make_trainer(bars, output_dir=tmp_path / "run")
    history = trainer.fit()
    assert [tuple(row) for row in history] == [HISTORY_COLUMNS] * 3
    assert [row["epoch"] for row in history] == [1, 2, 3]
    # 48 images in batches of 16.
    assert [row["step"] for row in history] == [3, 6, 9]
    for row in history:
        assert row["loss"] == pytest.approx(row["loss_new"] + row["loss_compat"], rel=1e-5)
        assert 0 <= row["accuracy"] <= 1
        assert row["images_per_second"] == pytest.approx(48 / row["seconds"])
    with (tmp_path / "run" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items()} for row in rows] == history
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint.pt", "history.csv"]


def test_accuracy_needs_a_new_classifier(bars):
    old = LossTerm("compat", 1.0, L2CompatLoss(torch.randn(len(bars), DIM)))
    history = make_trainer(bars, {"epochs": 1}, losses=[old]).fit()
    assert math.isnan(history[0]["accuracy"])
    assert history[0]["loss_new"] == 0


def test_learning_rate_warms_up_and_falls_to_zero(bars):
    rates = []
    trainer = make_trainer(bars, {"epochs": 8, "learning_rate": 0.01, "warmup_epochs": 2.0})
    trainer._optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    trainer.fit()
    assert len(rates) == 24
    assert all(a < b for a, b in pairwise(rates[:7]))
    assert max(rates) == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(rates[6:]))
    assert trainer.history[-1]["lr"] == pytest.approx(0, abs=1e-6)


def test_gradients_are_clipped(bars):
    trainer = make_trainer(bars, {"epochs": 1, "optimizer": "sgd", "max_grad_norm": 1e-3})
    norms = []

    def watch(*_):
        grads = [p.grad.norm() for p in trainer._modules.parameters()]
        norms.append(float(torch.stack(grads).norm()))

    trainer._optimizer.register_step_pre_hook(watch)
    trainer.fit()
    assert max(norms) == pytest.approx(1e-3, rel=1e-3)


def test_loss_weights_and_the_prototypes_are_trained(bars):
    torch.manual_seed(1)
    term = LossTerm("new", 0.0, CosineClassifierLoss(CLASSES, DIM))
    before = term.module.prototypes.detach().clone()
    trainer = make_trainer(bars, {"epochs": 1, "weight_decay": 0.0}, losses=[term])
    assert trainer.fit()[0]["loss"] == 0
    torch.testing.assert_close(term.module.prototypes.detach(), before)
    term = LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM))
    before = term.module.prototypes.detach().clone()
    make_trainer(bars, {"epochs": 1}, losses=[term]).fit()
    assert not torch.equal(term.module.prototypes.detach(), before)


def test_bfloat16(bars):
    seen = []

    class Loss(CosineClassifierLoss):
        def forward(self, embeddings, labels, rows=None):
            seen.append(embeddings.dtype)
            return super().forward(embeddings, labels, rows)

    trainer = make_trainer(
        bars,
        {"precision": "bfloat16", "epochs": 6, "learning_rate": 5e-3},
        losses=[LossTerm("new", 1.0, Loss(CLASSES, DIM))],
        encoder=SmallCnn(DIM, width=4),
    )
    history = trainer.fit()
    assert set(seen) == {torch.float32}
    assert {p.dtype for p in trainer._modules.parameters()} == {torch.float32}
    assert history[-1]["loss"] < history[0]["loss"]


def test_augmentation_gets_the_batch_and_can_be_left_out(bars):
    shapes = []

    def augment(images, generator):
        assert isinstance(generator, torch.Generator)
        shapes.append(tuple(images.shape))
        return images

    make_trainer(bars, {"epochs": 1}, augment=augment).fit()
    assert shapes == [(16, 1, 16, 16)] * 3
    make_trainer(bars, {"epochs": 1, "augment": False}, augment=augment).fit()
    assert len(shapes) == 3


def test_a_share_of_the_images_stays_as_it_is(bars):
    seen = []

    class Watching(SmallCnn):
        def forward(self, images):
            seen.append(images.flatten(1).any(1))
            return super().forward(images)

    def blank(images, generator):  # noqa: ARG001
        return torch.zeros_like(images)

    def share(clean_share):
        seen.clear()
        trainer = Trainer(
            Watching(8, width=4),
            [LossTerm("new", 1.0, CosineClassifierLoss(4, 8))],
            bars,
            TrainConfig(epochs=20, batch_size=16, clean_share=clean_share),
            augment=blank,
            progress=False,
        )
        trainer.fit()
        return float(torch.cat(seen).float().mean())

    assert share(0.0) == 0
    assert share(1.0) == 1
    assert 0.2 < share(0.3) < 0.4


def test_augmentation_that_changes_the_size_needs_a_clean_share_of_0(bars):
    def crop(images, generator):  # noqa: ARG001
        return images[:, :, :8, :8]

    with pytest.raises(ValueError, match=r"set clean_share=0"):
        make_trainer(bars, {"epochs": 1}, augment=crop).fit()
    make_trainer(bars, {"epochs": 1, "clean_share": 0.0}, augment=crop).fit()


def test_each_epoch_shows_each_image_once_with_its_label_and_row(bars):
    seen = []

    class Loss(nn.Module):
        def forward(self, embeddings, labels, rows):
            assert (bars.labels[rows.numpy()] == labels.numpy()).all()
            seen.extend(rows.tolist())
            return embeddings.square().mean()

    make_trainer(bars, {"epochs": 2}, losses=[LossTerm("compat", 1.0, Loss())]).fit()
    assert sorted(seen[:48]) == sorted(seen[48:]) == list(range(48))
    assert seen[:48] != seen[48:]
    assert seen[:48] != list(range(48))
