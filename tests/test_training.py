# SPDX-License-Identifier: Apache-2.0
"""Training: it learns, repeats itself, survives interruption, and refuses what does not fit."""

from __future__ import annotations

import csv
import math
import pickle
import signal
import tempfile
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fclearn import training
from fclearn.datasets import ImageDataset
from fclearn.encoders import SmallCnn
from fclearn.losses import CosineClassifierLoss, L2CompatLoss, LossTerm
from fclearn.training import HISTORY_COLUMNS, DivergenceError, TrainConfig, Trainer

CLASSES, PER_CLASS, DIM = 4, 12, 6
FAST = {"epochs": 3, "batch_size": 16, "warmup_epochs": 1.0}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Batches this small gain nothing from threads, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    """Bars in four places, on noise."""
    random = np.random.default_rng(0)
    labels = np.arange(CLASSES * PER_CLASS) % CLASSES
    images = random.integers(0, 120, (len(labels), 16, 16), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 3] = 255
    return ImageDataset(
        images, labels, [f"image-{row}" for row in range(len(labels))], class_names=list("abcd")
    )


class _Encoder(nn.Module):
    """A small encoder with batch norm and dropout: all the state an encoder may have."""

    def __init__(self):
        super().__init__()
        self.body = SmallCnn(16, width=4)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(16, DIM)

    def forward(self, images):
        return self.head(self.dropout(self.body(images)))


def _old_features(data, seed=0):
    """The same whatever the initial weights are, as old features are in life."""
    return torch.randn(len(data), DIM - 2, generator=torch.Generator().manual_seed(seed))


def _trainer(data, config=None, *, losses=None, encoder=None, weights=0, **options):
    torch.manual_seed(weights)
    encoder = _Encoder() if encoder is None else encoder
    if losses is None:
        old = _old_features(data)
        losses = [
            LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM)),
            LossTerm("compat", 0.5, L2CompatLoss(old)),
        ]
    config = TrainConfig(**{**FAST, **(config or {})})
    return Trainer(encoder, losses, data, config, progress=False, **options)


def _weights(trainer):
    return {name: value.clone() for name, value in trainer._modules.state_dict().items()}


def _assert_same_end(one, two):
    left, right = _weights(one), _weights(two)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    timed = {"seconds", "images_per_second"}
    for row, other in zip(one.history, two.history, strict=True):
        for column in set(HISTORY_COLUMNS) - timed:
            assert row[column] == other[column], column


@pytest.fixture(scope="module")
def undisturbed(data):
    trainer = _trainer(data)
    trainer.fit()
    return trainer


# --- learning ---


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_loss_falls_and_accuracy_rises(data, optimizer):
    rate = {"adamw": 5e-3, "sgd": 5e-2}[optimizer]
    trainer = _trainer(
        data,
        {"epochs": 25, "optimizer": optimizer, "learning_rate": rate, "augment": False},
        losses=[LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM))],
        encoder=SmallCnn(DIM, width=4),
    )
    history = trainer.fit()
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["accuracy"] > 0.9
    trainer.encoder.eval()
    with torch.no_grad():
        embeddings = trainer.encoder(data.tensor(range(len(data))))
    prototypes = trainer.losses[0].module.prototypes
    cosines = nn.functional.normalize(embeddings) @ nn.functional.normalize(prototypes).T
    assert (cosines.argmax(1).numpy() == data.labels).mean() > 0.9


def test_history_columns_and_csv(data, tmp_path):
    trainer = _trainer(data, output_dir=tmp_path / "run")
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


def test_accuracy_needs_a_new_classifier(data):
    old = LossTerm("compat", 1.0, L2CompatLoss(torch.randn(len(data), DIM)))
    history = _trainer(data, {"epochs": 1}, losses=[old]).fit()
    assert math.isnan(history[0]["accuracy"])
    assert history[0]["loss_new"] == 0


def test_accuracy_counts_the_highest_cosine(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(50, 5, generator=generator)
    prototypes = torch.randn(23, 5, generator=generator) * torch.arange(1, 24)[:, None]
    expected = (embeddings @ nn.functional.normalize(prototypes, dim=1).T).argmax(1)
    for block in (1, 7, 23, 100):
        monkeypatch.setattr(training, "_PROTOTYPE_BLOCK", block)
        assert torch.equal(training._nearest(embeddings, prototypes), expected)


def test_learning_rate_warms_up_and_falls_to_zero(data):
    rates = []
    trainer = _trainer(data, {"epochs": 8, "learning_rate": 0.01, "warmup_epochs": 2.0})
    trainer._optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    trainer.fit()
    assert len(rates) == 24
    assert all(a < b for a, b in pairwise(rates[:7]))
    assert max(rates) == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(rates[6:]))
    assert trainer.history[-1]["lr"] == pytest.approx(0, abs=1e-6)


def test_gradients_are_clipped(data):
    trainer = _trainer(data, {"epochs": 1, "optimizer": "sgd", "max_grad_norm": 1e-3})
    norms = []

    def watch(*_):
        grads = [p.grad.norm() for p in trainer._modules.parameters()]
        norms.append(float(torch.stack(grads).norm()))

    trainer._optimizer.register_step_pre_hook(watch)
    trainer.fit()
    assert max(norms) == pytest.approx(1e-3, rel=1e-3)


def test_loss_weights_and_the_prototypes_are_trained(data):
    torch.manual_seed(1)
    term = LossTerm("new", 0.0, CosineClassifierLoss(CLASSES, DIM))
    before = term.module.prototypes.detach().clone()
    trainer = _trainer(data, {"epochs": 1, "weight_decay": 0.0}, losses=[term])
    assert trainer.fit()[0]["loss"] == 0
    torch.testing.assert_close(term.module.prototypes.detach(), before)
    term = LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM))
    before = term.module.prototypes.detach().clone()
    _trainer(data, {"epochs": 1}, losses=[term]).fit()
    assert not torch.equal(term.module.prototypes.detach(), before)


def test_bfloat16(data):
    seen = []

    class Loss(CosineClassifierLoss):
        def forward(self, embeddings, labels, rows=None):
            seen.append(embeddings.dtype)
            return super().forward(embeddings, labels, rows)

    trainer = _trainer(
        data,
        {"precision": "bfloat16", "epochs": 6, "learning_rate": 5e-3},
        losses=[LossTerm("new", 1.0, Loss(CLASSES, DIM))],
        encoder=SmallCnn(DIM, width=4),
    )
    history = trainer.fit()
    assert set(seen) == {torch.float32}
    assert {p.dtype for p in trainer._modules.parameters()} == {torch.float32}
    assert history[-1]["loss"] < history[0]["loss"]


def test_augmentation_gets_the_batch_and_can_be_left_out(data):
    shapes = []

    def augment(images, generator):
        assert isinstance(generator, torch.Generator)
        shapes.append(tuple(images.shape))
        return images

    _trainer(data, {"epochs": 1}, augment=augment).fit()
    assert shapes == [(16, 1, 16, 16)] * 3
    _trainer(data, {"epochs": 1, "augment": False}, augment=augment).fit()
    assert len(shapes) == 3


def test_a_share_of_the_images_stays_as_it_is(data):
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
            data,
            TrainConfig(epochs=20, batch_size=16, clean_share=clean_share),
            augment=blank,
            progress=False,
        )
        trainer.fit()
        return float(torch.cat(seen).float().mean())

    assert share(0.0) == 0
    assert share(1.0) == 1
    assert 0.2 < share(0.3) < 0.4


def test_augmentation_that_changes_the_size_needs_a_clean_share_of_0(data):
    def crop(images, generator):  # noqa: ARG001
        return images[:, :, :8, :8]

    with pytest.raises(ValueError, match=r"set clean_share=0"):
        _trainer(data, {"epochs": 1}, augment=crop).fit()
    _trainer(data, {"epochs": 1, "clean_share": 0.0}, augment=crop).fit()


def test_each_epoch_shows_each_image_once_with_its_label_and_row(data):
    seen = []

    class Loss(nn.Module):
        def forward(self, embeddings, labels, rows):
            assert (data.labels[rows.numpy()] == labels.numpy()).all()
            seen.extend(rows.tolist())
            return embeddings.square().mean()

    _trainer(data, {"epochs": 2}, losses=[LossTerm("compat", 1.0, Loss())]).fit()
    assert sorted(seen[:48]) == sorted(seen[48:]) == list(range(48))
    assert seen[:48] != seen[48:]
    assert seen[:48] != list(range(48))


# --- the same again ---


def test_deterministic_by_seed(data, undisturbed):
    trainer = _trainer(data)
    torch.manual_seed(99)  # whatever else draws random numbers in between
    trainer.fit()
    _assert_same_end(trainer, undisturbed)
    other = _trainer(data, {"seed": 1})
    other.fit()
    assert other.history[-1]["loss"] != undisturbed.history[-1]["loss"]


def test_global_random_state_is_left_alone(data):
    trainer = _trainer(data, {"epochs": 1})
    state = torch.get_rng_state()
    trainer.fit()
    assert torch.equal(torch.get_rng_state(), state)


class _StopAt(nn.Module):
    """A loss term that raises SIGINT, or an error, in one step."""

    def __init__(self, step, error=None):
        super().__init__()
        self.step, self.error, self.seen = step, error, 0

    def forward(self, embeddings, _labels, _rows):
        self.seen += 1
        if self.seen == self.step:
            if self.error is not None:
                raise self.error
            signal.raise_signal(signal.SIGINT)
        return embeddings.sum() * 0


def _with(trainer_losses, module):
    return [*trainer_losses, LossTerm("compat", 1.0, module)]


def _losses(data):
    torch.manual_seed(0)
    _Encoder()
    old = _old_features(data)
    return [
        LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM)),
        LossTerm("compat", 0.5, L2CompatLoss(old)),
    ]


class _Counts(nn.Module):
    """A loss term with state: its weight in an epoch follows from the last batch of the former."""

    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(()))
        self.calls = []

    def on_epoch(self, epoch, epochs):
        self.calls.append((epoch, epochs))
        self.weight = epoch / epochs + self.last

    def forward(self, embeddings, _labels, _rows):
        loss = embeddings.square().mean()
        self.last = loss.detach()
        return self.weight * loss


def test_terms_are_told_of_each_epoch_and_their_state_survives_a_kill(data, tmp_path):
    whole = _trainer(data, losses=_with(_losses(data), _Counts()))
    whole.fit()
    assert whole.losses[-1].module.calls == [(1, 3), (2, 3), (3, 3)]

    stop = LossTerm("compat", 0.0, _StopAt(5, MemoryError("out of memory")))
    killed = [*_with(_losses(data), _Counts()), stop]
    with pytest.raises(MemoryError):
        _trainer(data, losses=killed, output_dir=tmp_path).fit()
    resumed = [*_with(_losses(data), _Counts()), LossTerm("compat", 0.0, _StopAt(0))]
    second = _trainer(data, losses=resumed, output_dir=tmp_path, weights=3)
    second.fit()
    assert second.losses[2].module.calls == [(2, 3), (3, 3)]
    assert second.history[-1]["loss_new"] == whole.history[-1]["loss_new"]
    assert torch.equal(second.losses[2].module.last, whole.losses[2].module.last)


@pytest.mark.parametrize("step", [1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("fresh", [True, False])
def test_interrupted_training_resumes_to_the_same_end(data, undisturbed, tmp_path, step, fresh):
    handler = signal.getsignal(signal.SIGINT)
    losses = _with(_losses(data), _StopAt(step))
    first = _trainer(data, losses=losses, output_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    assert signal.getsignal(signal.SIGINT) is handler
    # Steps 3, 6 and 9 are the last of their epochs, which then count as done.
    done = step // 3
    assert (tmp_path / "checkpoint.pt").exists() == bool(done)
    if done:
        with (tmp_path / "history.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == done
    if fresh:
        losses = _with(_losses(data), _StopAt(0))
        # Other initial weights: the checkpoint's count.
        weights = 7 if done else 0
        second = _trainer(data, losses=losses, output_dir=tmp_path, weights=weights)
    elif not done:
        with pytest.raises(RuntimeError, match=r"stopped within epoch 1, .* make a new Trainer"):
            first.fit()
        return
    else:
        second = first
    second.fit()
    assert len(second.history) == 3
    _assert_same_end(second, _reference(data))
    assert second.history[-1]["loss_new"] == undisturbed.history[-1]["loss_new"]


def _reference(data):
    trainer = _trainer(data, losses=_with(_losses(data), _StopAt(0)))
    trainer.fit()
    return trainer


def test_killed_training_resumes_to_the_same_end(data, undisturbed, tmp_path):
    """An error anywhere, as a kill would be: what was written is whole."""
    losses = _with(_losses(data), _StopAt(5, MemoryError("out of memory")))
    with pytest.raises(MemoryError):
        _trainer(data, losses=losses, output_dir=tmp_path).fit()
    (tmp_path / ".checkpoint.pt.leftover.tmp").write_bytes(b"half")
    second = _trainer(data, losses=_with(_losses(data), _StopAt(0)), output_dir=tmp_path, weights=3)
    second.fit()
    assert second.history[-1]["loss_new"] == undisturbed.history[-1]["loss_new"]
    _assert_same_end(second, _reference(data))


def test_writing_to_a_folder_changes_nothing_and_a_finished_run_is_just_read(
    data, undisturbed, tmp_path
):
    trainer = _trainer(data, output_dir=tmp_path)
    trainer.fit()
    _assert_same_end(trainer, undisturbed)
    before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    again = _trainer(data, output_dir=tmp_path, weights=5)
    assert again.fit() == trainer.history
    _assert_same_end(again, undisturbed)
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == before


def test_second_interrupt_stops_at_once(data):
    class Twice(nn.Module):
        def forward(self, _embeddings, _labels, _rows):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("still running")

    with pytest.raises(KeyboardInterrupt):
        _trainer(data, losses=[LossTerm("new", 1.0, Twice())]).fit()


def test_training_in_a_thread(data, undisturbed):
    trainer = _trainer(data)
    worker = threading.Thread(target=trainer.fit)
    worker.start()
    worker.join()
    _assert_same_end(trainer, undisturbed)


# --- divergence ---


class _Bad(nn.Module):
    """A loss that is, or whose gradient becomes, not finite in one step."""

    def __init__(self, step, kind):
        super().__init__()
        self.step, self.kind, self.seen = step, kind, 0

    def forward(self, embeddings, _labels, _rows):
        self.seen += 1
        if self.seen != self.step:
            return embeddings.square().mean()
        if self.kind == "gradient":
            return (embeddings * 0).abs().sqrt().sum()
        return embeddings.mean() * float(self.kind)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("nan", "the loss is nan"), ("inf", "the loss is -?inf"), ("gradient", "the norm of the")],
)
@pytest.mark.parametrize("clip", [5.0, 0.0])
def test_divergence_names_the_epoch_and_keeps_the_checkpoint(data, tmp_path, kind, text, clip):
    # The sixth step is the last of the second epoch: its checkpoint must not be spoiled.
    losses = [LossTerm("new", 1.0, _Bad(6, kind))]
    trainer = _trainer(data, {"max_grad_norm": clip}, losses=losses, output_dir=tmp_path)
    with pytest.raises(
        DivergenceError,
        match=rf"{text}.* in epoch 2, step 6; epoch 1 is kept in \S*checkpoint\.pt\. "
        r"Try a lower learning_rate",
    ) as caught:
        trainer.fit()
    assert "\n" not in str(caught.value)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == 1
    assert all(v.isfinite().all() for v in state["modules"].values())
    # The cause gone, the same run goes on.
    assert len(trainer.fit()) == 3


@pytest.mark.parametrize("folder", [False, True])
def test_divergence_promises_no_checkpoint_where_there_is_none(data, folder, tmp_path):
    output = tmp_path if folder else None
    losses = [LossTerm("new", 1.0, _Bad(1, "nan"))]
    with pytest.raises(DivergenceError, match="in epoch 1, step 1; Try a lower learning_rate"):
        _trainer(data, losses=losses, output_dir=output).fit()
    assert list(tmp_path.iterdir()) == []


# --- what does not fit ---


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


def test_trainer_refuses(data):
    with pytest.raises(ValueError, match="losses: expected at least one term"):
        _trainer(data, losses=[])
    with pytest.raises(
        ValueError, match=r"batch_size: expected at most the number of images \(48\), got 49"
    ):
        _trainer(data, {"batch_size": 49})
    too_few = [LossTerm("new", 1.0, CosineClassifierLoss(2, DIM))]
    with pytest.raises(RuntimeError, match=r"expected labels in \[0, 2\), got"):
        _trainer(data, losses=too_few).fit()


def test_whole_set_as_one_batch(data):
    history = _trainer(data, {"batch_size": 48, "epochs": 1}).fit()
    assert history[0]["step"] == 1


def test_unwritable_folder_is_refused_before_training(data, tmp_path):
    (tmp_path / "file").write_text("")
    steps = _StopAt(0)
    with pytest.raises(OSError, match="file"):
        _trainer(
            data, losses=[LossTerm("new", 1.0, steps)], output_dir=tmp_path / "file" / "run"
        ).fit()
    assert steps.seen == 0


def test_read_only_folder_is_refused_before_training(data, tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError("read-only")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    steps = _StopAt(0)
    with pytest.raises(PermissionError, match="read-only"):
        _trainer(data, losses=[LossTerm("new", 1.0, steps)], output_dir=tmp_path).fit()
    assert steps.seen == 0


@pytest.fixture
def run(data, tmp_path):
    _trainer(data, {"epochs": 1, "warmup_epochs": 0.0}, output_dir=tmp_path).fit()
    return tmp_path


SAME = {"epochs": 1, "warmup_epochs": 0.0}


def test_checkpoint_of_another_configuration_names_what_differs(data, run):
    with pytest.raises(
        ValueError,
        match=r"checkpoint\.pt: made with another configuration \(learning_rate, seed differ\)",
    ):
        _trainer(data, {**SAME, "seed": 4, "learning_rate": 0.1}, output_dir=run).fit()


def test_checkpoint_of_other_images_is_refused(data, run):
    others = data.subset(range(len(data) - 1, -1, -1))
    with pytest.raises(ValueError, match=r"another configuration \(images differ\)"):
        _trainer(others, SAME, output_dir=run).fit()


def test_checkpoint_of_another_encoder_or_loss_is_refused(data, run):
    with pytest.raises(ValueError, match=r"checkpoint\.pt: made with another encoder or other los"):
        _trainer(data, SAME, encoder=SmallCnn(DIM, width=4), output_dir=run).fit()


def test_checkpoint_of_other_losses_or_old_features_is_refused(data, run):
    new, compat = _losses(data)
    other_features = L2CompatLoss(_old_features(data, seed=1))
    for losses in (
        [new],
        [new, LossTerm("compat", 0.75, compat.module)],
        [LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM, scale=20.0)), compat],
        [new, LossTerm("compat", 0.5, other_features)],
    ):
        with pytest.raises(ValueError, match=r"another configuration \(losses differ\)"):
            _trainer(data, SAME, losses=losses, output_dir=run).fit()
    # Refused before anything was loaded over them.
    fresh = L2CompatLoss(_old_features(data, seed=1))
    assert torch.equal(other_features.features, fresh.features)


def test_old_features_may_differ_by_rounding(data, run):
    new, _ = _losses(data)
    almost = _old_features(data) * (1 + 1e-5 * torch.randn(len(data), DIM - 2))
    losses = [new, LossTerm("compat", 0.5, L2CompatLoss(almost))]
    assert len(_trainer(data, SAME, losses=losses, output_dir=run).fit()) == 1


def test_killed_before_the_last_checkpoint_leaves_a_whole_history(data, tmp_path, monkeypatch):
    def kill(*_):
        raise MemoryError

    trainer = _trainer(data, {"epochs": 1}, output_dir=tmp_path)
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


def test_pickles_and_damaged_checkpoints_are_refused_in_one_line(data, run):
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
            _trainer(data, SAME, output_dir=run).fit()
        assert "\n" not in str(caught.value), number
        assert path.read_bytes() == content
    assert not witness.exists()
    path.write_bytes(whole)
    assert len(_trainer(data, SAME, output_dir=run).fit()) == 1


def test_progress_bar_stays_away_from_pipes(data, capfd):
    torch.manual_seed(0)
    losses = [LossTerm("new", 1.0, CosineClassifierLoss(CLASSES, DIM))]
    config = TrainConfig(**{**FAST, "epochs": 1})
    Trainer(SmallCnn(DIM, width=4), losses, data, config).fit()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
