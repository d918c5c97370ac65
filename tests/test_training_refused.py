# SPDX-License-Identifier: Apache-2.0
"""Training refuses what does not fit, and checkpoints of something else."""

from __future__ import annotations

import csv
import math
import pickle
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import TensorDataset
from training_samples import CLASSES, DIM, FAST, StopAt, make_losses, make_trainer, old_features

from fclearn import training
from fclearn.encoders import SmallCnn
from fclearn.losses import CosineClassifierLoss, L2CompatLoss, LossTerm
from fclearn.methods import Assets, build_method
from fclearn.training import TrainConfig, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"accumulate": 0}, "accumulate: expected at least 1, got 0"),
        ({"batch_size": 10, "accumulate": 4}, "accumulate: expected a divisor of batch_size"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number > 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate: expected a number > 0, got nan"),
        ({"weight_decay": -1.0}, "weight_decay: expected a number >= 0, got -1.0"),
        ({"warmup_epochs": math.nan}, "warmup_epochs: expected a number >= 0, got nan"),
        ({"max_grad_norm": -0.1}, "max_grad_norm: expected a number >= 0, got -0.1"),
        ({"optimizer": "adam"}, "optimizer: expected 'adamw' or 'sgd', got 'adam'"),
        ({"precision": "fp16"}, "precision: expected 'float32' or 'bfloat16', got 'fp16'"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_trainer_refuses(bars):
    with pytest.raises(ValueError, match="losses: expected at least one term"):
        make_trainer(bars, losses=[])
    with pytest.raises(
        ValueError, match=r"batch_size: expected at most the number of images \(48\), got 49"
    ):
        make_trainer(bars, {"batch_size": 49})
    too_few = [LossTerm("new", 1.0, CosineClassifierLoss(2, DIM))]
    with pytest.raises(RuntimeError, match=r"expected labels in \[0, 2\), got"):
        make_trainer(bars, losses=too_few).fit()


def test_other_kinds_of_datasets_are_refused_with_what_is_expected(bars):
    pairs = TensorDataset(bars.tensor(range(len(bars))), torch.from_numpy(bars.labels))
    alike = SimpleNamespace(labels=bars.labels, tensor=bars.tensor, __len__=lambda: 48)
    for dataset, kind in ((pairs, "TensorDataset"), (alike, "SimpleNamespace")):
        message = (
            rf"dataset: expected a fclearn\.datasets\.LabelledSet, got {kind}; .*ImageDataset\("
        )
        with pytest.raises(TypeError, match=message):
            make_trainer(dataset, losses=make_losses(bars))


@pytest.mark.parametrize("count", [47, 49])
def test_terms_for_another_number_of_images_are_refused(bars, count):
    features = torch.cat([old_features(bars), old_features(bars)])[:count]
    new = make_losses(bars)[0]
    losses = [new, LossTerm("compat", 1.0, L2CompatLoss(features))]
    with pytest.raises(
        ValueError,
        match=r"losses\[1\]: expected 48 rows, as in dataset, in the features of L2CompatLoss, "
        f"got {count}",
    ):
        make_trainer(bars, losses=losses)
    # Its terms look nothing up by row, but the labels were those of other images.
    labels = torch.arange(count) % CLASSES
    assets = Assets(labels, old_features=features)
    with pytest.raises(
        ValueError,
        match=rf"losses\[0\]: expected a term for 48 rows, as in dataset, got one for {count}",
    ):
        make_trainer(bars, losses=build_method("ni-fcl-mean", assets, DIM))


def test_terms_for_images_in_another_order_are_refused(bars):
    labels = torch.from_numpy(bars.labels)
    features = old_features(bars)
    make_trainer(bars, losses=build_method("ni-fcl", Assets(labels, features), DIM))
    turned = Assets(labels.roll(1), features.roll(1, 0))
    with pytest.raises(
        ValueError,
        match=r"losses\[0\]: expected the classes in dataset, got 3 for row 0, which has 0 .*: "
        "Assets and dataset must have the same rows in the same order",
    ):
        make_trainer(bars, losses=build_method("ni-fcl", turned, DIM))


def test_whole_set_as_one_batch(bars):
    history = make_trainer(bars, {"batch_size": 48, "epochs": 1}).fit()
    assert history[0]["step"] == 1


def test_unwritable_folder_is_refused_before_training(bars, tmp_path):
    (tmp_path / "file").write_text("")
    steps = StopAt(0)
    with pytest.raises(OSError, match="file"):
        make_trainer(
            bars, losses=[LossTerm("new", 1.0, steps)], output_dir=tmp_path / "file" / "run"
        ).fit()
    assert steps.seen == 0


def test_read_only_folder_is_refused_before_training(bars, tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError("read-only")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    steps = StopAt(0)
    with pytest.raises(PermissionError, match="read-only"):
        make_trainer(bars, losses=[LossTerm("new", 1.0, steps)], output_dir=tmp_path).fit()
    assert steps.seen == 0


@pytest.fixture
def run(bars, tmp_path):
    make_trainer(bars, {"epochs": 1, "warmup_epochs": 0.0}, output_dir=tmp_path).fit()
    return tmp_path


SAME = {"epochs": 1, "warmup_epochs": 0.0}


def test_checkpoint_of_another_configuration_names_what_differs(bars, run):
    with pytest.raises(
        ValueError,
        match=r"checkpoint\.pt: made with another configuration: learning_rate \(\S+, now 0\.1\), "
        r"seed \(0, now 4\) differ; use another output folder or remove it$",
    ):
        make_trainer(bars, {**SAME, "seed": 4, "learning_rate": 0.1}, output_dir=run).fit()


def test_checkpoint_of_other_images_is_refused(bars, run):
    others = bars.subset(range(len(bars) - 1, -1, -1))
    with pytest.raises(ValueError, match=r"another configuration: images \(48 im.* differ; use"):
        make_trainer(others, SAME, output_dir=run).fit()


def test_checkpoint_of_another_encoder_or_loss_is_refused(bars, run):
    with pytest.raises(ValueError, match=r"checkpoint\.pt: made with another encoder or other los"):
        make_trainer(bars, SAME, encoder=SmallCnn(DIM, width=4), output_dir=run).fit()


def test_checkpoint_of_other_losses_or_old_features_is_refused(bars, run):
    new, compat = make_losses(bars)
    other_features = L2CompatLoss(old_features(bars, seed=1))
    smoothed = CosineClassifierLoss(CLASSES, DIM, label_smoothing=0.1)
    for losses, named in (
        ([new], "losses (2, now 1)"),
        ([new, LossTerm("compat", 0.75, compat.module)], "losses[1].weight (0.5, now 0.75)"),
        ([new, LossTerm("own", 0.5, compat.module)], "losses[1].name (compat, now own)"),
        (
            [LossTerm("new", 1.0, smoothed), compat],
            "losses[0].module.label_smoothing (0.0, now 0.1)",
        ),
        ([new, LossTerm("compat", 0.5, other_features)], "losses[1].module.features"),
        (
            [new, LossTerm("compat", 0.5, StopAt(0))],
            "losses[1].module (L2CompatLoss, now StopAt)",
        ),
    ):
        message = re.escape(f"another configuration: {named} differ; use another output folder")
        with pytest.raises(ValueError, match=message):
            make_trainer(bars, SAME, losses=losses, output_dir=run).fit()
    # Refused before anything was loaded over them.
    fresh = L2CompatLoss(old_features(bars, seed=1))
    assert torch.equal(other_features.features, fresh.features)


def test_losses_that_were_trained_on_are_to_be_made_anew(bars, tmp_path):
    assets = Assets(torch.from_numpy(bars.labels), old_features=old_features(bars))
    losses = build_method("uni-bct", assets, DIM, k=3)
    make_trainer(bars, losses=losses, output_dir=tmp_path).fit()
    trained = make_trainer(bars, losses=losses, output_dir=tmp_path)
    message = (
        r"module\.last_embeddings differ; .* \(losses that were trained on are to be made anew"
    )
    with pytest.raises(ValueError, match=message):
        trained.fit()
    losses = build_method("uni-bct", assets, DIM, k=3)
    make_trainer(bars, losses=losses, output_dir=tmp_path).fit()


def test_old_features_may_differ_by_rounding(bars, run):
    new, _ = make_losses(bars)
    noise = torch.randn(len(bars), DIM - 2)

    def resumed(size):
        almost = L2CompatLoss(old_features(bars) * (1 + size * noise))
        losses = [new, LossTerm("compat", 0.5, almost)]
        return make_trainer(bars, SAME, losses=losses, output_dir=run).fit()

    assert len(resumed(1e-6)) == 1
    with pytest.raises(ValueError, match=r": losses\[1\]\.module\.features differ"):
        resumed(1e-4)


def test_a_checkpoint_of_an_earlier_key_is_refused_in_one_line(bars, run):
    path = run / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["terms"]
    torch.save({**state, "losses": {"0: new 1 CosineClassifierLoss()": [1.0, 0.5]}}, path)
    with pytest.raises(ValueError, match=r"not a checkpoint of this version .* remove it to start"):
        make_trainer(bars, SAME, output_dir=run).fit()


def test_killed_before_the_last_checkpoint_leaves_a_whole_history(bars, tmp_path, monkeypatch):
    def kill(*_):
        raise MemoryError

    trainer = make_trainer(bars, {"epochs": 1}, output_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_checkpoint", kill)
        with pytest.raises(MemoryError):
            trainer.fit()
    assert not (tmp_path / "checkpoint.pt").exists()
    with (tmp_path / "history.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1


class _Bomb:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (self.witness,))


def test_pickles_and_damaged_checkpoints_are_refused_in_one_line(bars, run):
    path, witness = run / "checkpoint.pt", run / "exploded"
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    torch.save({**state, "history": [_Bomb(witness)]}, path)
    bomb = path.read_bytes()
    torch.save({name: value for name, value in state.items() if name != "generator"}, path)
    incomplete = path.read_bytes()
    torch.save([1, 2], path)
    contents = [
        bomb,
        pickle.dumps(_Bomb(witness)),
        b"",
        b"hello",
        whole[: len(whole) // 2],
        incomplete,
        path.read_bytes(),
    ]
    for number, content in enumerate(contents):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint\.pt: not a .*remove it") as caught:
            make_trainer(bars, SAME, output_dir=run).fit()
        assert "\n" not in str(caught.value), number
        assert path.read_bytes() == content
    assert not witness.exists()
    path.write_bytes(whole)
    assert len(make_trainer(bars, SAME, output_dir=run).fit()) == 1


def test_progress_bar_stays_away_from_pipes(bars, capfd):
    torch.manual_seed(0)
    losses = [LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM))]
    config = TrainConfig(**{**FAST, "epochs": 1})
    Trainer(SmallCnn(DIM, width=4), losses, bars, config).fit()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
