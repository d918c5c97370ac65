# SPDX-License-Identifier: Apache-2.0
"""Compatibility terms in a LightningModule: logs, checkpoints, epochs, and what is refused."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from fclearn.integrations import CompatTerms
from fclearn.integrations.lightning import compat_loss
from fclearn.losses import InstanceCompatLoss, L2CompatLoss, LossTerm
from fclearn.methods.adv_bct import OldOrNewLoss

# Warnings of the engine about itself are none of ours.
pytestmark = pytest.mark.filterwarnings("ignore")

ROWS, CLASSES, IN_DIM, OLD_DIM, DIM = 64, 8, 10, 6, 8


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def engine(request):
    pytest.importorskip(request.param)
    return importlib.import_module(request.param)


def make_data():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % CLASSES
    inputs = torch.randn(CLASSES, IN_DIM, generator=draw)[labels]
    inputs = inputs + 0.3 * torch.randn(ROWS, IN_DIM, generator=draw)
    old = inputs @ torch.randn(IN_DIM, OLD_DIM, generator=draw)
    return inputs, labels, old


def loader():
    inputs, labels, _ = make_data()
    data = torch.utils.data.TensorDataset(inputs, labels, torch.arange(ROWS))
    return torch.utils.data.DataLoader(data, batch_size=16)


def make_terms(epochs=None):
    """Frozen terms; one that is trained and follows epochs; and which epochs it was told."""
    _, labels, old = make_data()

    class Following(OldOrNewLoss):
        def on_epoch(self, epoch, of_epochs):
            if epochs is not None:
                epochs.append((epoch, of_epochs))
            super().on_epoch(epoch, of_epochs)

    torch.manual_seed(1)
    return CompatTerms(
        [
            LossTerm("instances", 1.0, InstanceCompatLoss(old, labels)),
            LossTerm("own", 3.0, L2CompatLoss(old)),
            LossTerm("adversary", 0.1, Following(old, width=4)),
        ],
        labels,
    )


def make_net(engine, terms):
    class Net(engine.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.encoder = nn.Linear(IN_DIM, DIM)
            self.head = nn.Linear(DIM, CLASSES)
            self.compat = terms

        def training_step(self, batch, _number):
            inputs, labels, rows = batch
            embeddings = self.encoder(inputs)
            own = nn.functional.cross_entropy(self.head(embeddings), labels)
            loss = own + compat_loss(self, self.compat, embeddings, rows)
            self.log_dict({"own": own, "loss": loss})
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    return Net()


def make_trainer(engine, folder, **options):
    return engine.Trainer(
        **{
            "accelerator": "cpu",
            "default_root_dir": folder,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            **options,
        }
    )


class Recorder:
    """Keeps what was logged in every step."""

    def __new__(cls, engine):
        class Kept(engine.Callback):
            def __init__(self):
                self.steps = []

            def on_train_batch_end(self, trainer, *_):
                logged = trainer.callback_metrics
                self.steps.append({key: float(value) for key, value in logged.items()})

        return Kept()


def test_training_adds_and_logs_each_term(engine, tmp_path):
    told = []
    recorder = Recorder(engine)
    trainer = make_trainer(engine, tmp_path, max_epochs=20, callbacks=[recorder])
    net = make_net(engine, make_terms(told))
    trainer.fit(net, loader())
    assert told == [(epoch, 20) for epoch in range(1, 21)]
    for step in recorder.steps:
        parts = [step[key] for key in ("compat/instances", "compat/own", "compat/adversary")]
        assert step["loss"] == pytest.approx(step["own"] + sum(parts), rel=1e-5)
    first, last = recorder.steps[0], recorder.steps[-1]
    assert last["compat/own"] < 0.3 * first["compat/own"]
    assert last["compat/instances"] < first["compat/instances"]


def test_resumed_from_a_checkpoint_it_ends_as_if_never_stopped(engine, tmp_path):
    straight = make_net(engine, make_terms())
    make_trainer(engine, tmp_path, max_epochs=4).fit(straight, loader())

    half = make_net(engine, make_terms())
    first = make_trainer(engine, tmp_path, max_epochs=4)

    class StopAfterTwo(engine.Callback):
        def on_train_epoch_end(self, trainer, _module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")
                trainer.should_stop = True

    first.callbacks.append(StopAfterTwo())
    first.fit(half, loader())
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert any(key.startswith("compat.modules_of_terms.2.discriminator") for key in saved)
    assert not any(key.endswith((".features", ".labels")) for key in saved)

    told = []
    resumed = make_net(engine, make_terms(told))
    make_trainer(engine, tmp_path, max_epochs=4).fit(
        resumed, loader(), ckpt_path=tmp_path / "half.ckpt"
    )
    assert told == [(3, 4), (4, 4)]
    for (name, value), other in zip(
        straight.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


def test_terms_elsewhere_than_in_the_module_are_refused(engine):
    net = make_net(engine, make_terms())
    rows = torch.arange(4)
    with pytest.raises(ValueError, match=r"set self.compat = terms in its __init__"):
        compat_loss(net, make_terms(), torch.ones(4, DIM), rows)
    # In a container of the module they are as good as in the module.
    quiet = CompatTerms([LossTerm("own", 1.0, L2CompatLoss(make_data()[2]))], make_data()[1])
    net.more = nn.ModuleDict({"terms": quiet})
    assert float(compat_loss(net, quiet, torch.ones(4, DIM), rows)) > 0


def test_terms_that_follow_epochs_need_to_know_how_many(engine, tmp_path):
    trainer = make_trainer(engine, tmp_path, max_epochs=-1, max_steps=3)
    with pytest.raises(ValueError, match=r"expected max_epochs, .* got -1"):
        trainer.fit(make_net(engine, make_terms()), loader())
