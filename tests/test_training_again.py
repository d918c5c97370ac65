# SPDX-License-Identifier: Apache-2.0
"""Training repeats itself, and goes on after an interruption to the same end."""

from __future__ import annotations

import csv
import signal
import threading

import pytest
import torch
from torch import nn
from training_samples import StopAt, assert_same_end, make_losses, make_trainer

from fclearn.losses import LossTerm

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def undisturbed(bars):
    trainer = make_trainer(bars)
    trainer.fit()
    return trainer


def test_deterministic_by_seed(bars, undisturbed):
    trainer = make_trainer(bars)
    torch.manual_seed(99)  # whatever else draws random numbers in between
    trainer.fit()
    assert_same_end(trainer, undisturbed)
    other = make_trainer(bars, {"seed": 1})
    other.fit()
    assert other.history[-1]["loss"] != undisturbed.history[-1]["loss"]


def test_global_random_state_is_left_alone(bars):
    trainer = make_trainer(bars, {"epochs": 1})
    state = torch.get_rng_state()
    trainer.fit()
    assert torch.equal(torch.get_rng_state(), state)


def _with(trainer_losses, module):
    return [*trainer_losses, LossTerm("compat", 1.0, module)]


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


def test_terms_are_told_of_each_epoch_and_their_state_survives_a_kill(bars, tmp_path):
    whole = make_trainer(bars, losses=_with(make_losses(bars), _Counts()))
    whole.fit()
    assert whole.losses[-1].module.calls == [(1, 3), (2, 3), (3, 3)]

    stop = LossTerm("compat", 0.0, StopAt(5, MemoryError("out of memory")))
    killed = [*_with(make_losses(bars), _Counts()), stop]
    with pytest.raises(MemoryError):
        make_trainer(bars, losses=killed, output_dir=tmp_path).fit()
    resumed = [*_with(make_losses(bars), _Counts()), LossTerm("compat", 0.0, StopAt(0))]
    second = make_trainer(bars, losses=resumed, output_dir=tmp_path, weights=3)
    second.fit()
    assert second.losses[2].module.calls == [(2, 3), (3, 3)]
    assert second.history[-1]["loss_new"] == whole.history[-1]["loss_new"]
    assert torch.equal(second.losses[2].module.last, whole.losses[2].module.last)


@pytest.mark.parametrize("step", [1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("fresh", [True, False])
def test_interrupted_training_resumes_to_the_same_end(bars, undisturbed, tmp_path, step, fresh):
    handler = signal.getsignal(signal.SIGINT)
    losses = _with(make_losses(bars), StopAt(step))
    first = make_trainer(bars, losses=losses, output_dir=tmp_path)
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
        losses = _with(make_losses(bars), StopAt(0))
        # Other initial weights: the checkpoint's count.
        weights = 7 if done else 0
        second = make_trainer(bars, losses=losses, output_dir=tmp_path, weights=weights)
    elif not done:
        with pytest.raises(RuntimeError, match=r"stopped within epoch 1, .* make a new Trainer"):
            first.fit()
        return
    else:
        second = first
    second.fit()
    assert len(second.history) == 3
    assert_same_end(second, _reference(bars))
    assert second.history[-1]["loss_new"] == undisturbed.history[-1]["loss_new"]


def _reference(bars):
    trainer = make_trainer(bars, losses=_with(make_losses(bars), StopAt(0)))
    trainer.fit()
    return trainer


def test_killed_training_resumes_to_the_same_end(bars, undisturbed, tmp_path):
    """An error anywhere, as a kill would be: what was written is whole."""
    losses = _with(make_losses(bars), StopAt(5, MemoryError("out of memory")))
    with pytest.raises(MemoryError):
        make_trainer(bars, losses=losses, output_dir=tmp_path).fit()
    (tmp_path / ".checkpoint.pt.leftover.tmp").write_bytes(b"half")
    second = make_trainer(
        bars, losses=_with(make_losses(bars), StopAt(0)), output_dir=tmp_path, weights=3
    )
    second.fit()
    assert second.history[-1]["loss_new"] == undisturbed.history[-1]["loss_new"]
    assert_same_end(second, _reference(bars))


def test_writing_to_a_folder_changes_nothing_and_a_finished_run_is_just_read(
    bars, undisturbed, tmp_path
):
    trainer = make_trainer(bars, output_dir=tmp_path)
    trainer.fit()
    assert_same_end(trainer, undisturbed)
    before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    again = make_trainer(bars, output_dir=tmp_path, weights=5)
    assert again.fit() == trainer.history
    assert_same_end(again, undisturbed)
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == before


def test_second_interrupt_stops_at_once(bars):
    class Twice(nn.Module):
        def forward(self, _embeddings, _labels, _rows):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("still running")

    with pytest.raises(KeyboardInterrupt):
        make_trainer(bars, losses=[LossTerm("new", 1.0, Twice())]).fit()


def test_training_in_a_thread(bars, undisturbed):
    trainer = make_trainer(bars)
    worker = threading.Thread(target=trainer.fit)
    worker.start()
    worker.join()
    assert_same_end(trainer, undisturbed)
