# SPDX-License-Identifier: Apache-2.0
"""Training under torchrun: the result of one process, over kills and other numbers of processes."""

from __future__ import annotations

import json
import shutil

import distributed_training as job
import numpy as np
import pytest
import torch
from torchrun import TESTS, torchrun

from fclearn.distributed import World, single_process

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = TESTS / "distributed_training.py"


def _run(processes, folder, *options, restarts=0, check=True):
    job_of = ",".join([str(folder), *options])
    done = torchrun(processes, SCRIPT, job_of, restarts=restarts, check=check)
    return _result(folder) if check else done


def _result(folder):
    return json.loads((folder / "result.json").read_text())


def _alone(**options):
    trainer = job.make(None, options)
    history = trainer.fit()
    return {"history": history, "weights": job.weights(trainer).tolist()}


def _assert_close(one, two, tolerance=2e-5):
    left, right = np.array(one["weights"]), np.array(two["weights"])
    assert np.abs(left - right).max() <= tolerance * np.abs(right).max()
    for row, other in zip(one["history"], two["history"], strict=True):
        for column in ("epoch", "step", "lr", "accuracy", "loss", "loss_new", "loss_compat"):
            assert row[column] == pytest.approx(other[column], rel=5 * tolerance), column


def _assert_same(one, two):
    assert one["weights"] == two["weights"]
    for row, other in zip(one["history"], two["history"], strict=True):
        for column in ("epoch", "step", "lr", "accuracy", "loss", "loss_new", "loss_compat"):
            assert row[column] == other[column], column


OTHERS = {
    "lce": {"method": "lce"},  # a classifier that two terms share
    "ni-fcl-views": {"method": "ni-fcl-views"},  # a term that sees the images
    "hot-refresh": {"method": "hot-refresh"},  # negatives of the whole batch
    "ni-fcl-scores": {"method": "ni-fcl-scores"},  # remembers the embeddings of all processes
    "accumulated": {"method": "ni-fcl-mean", "accumulate": "3"},
    "bfloat16": {"method": "ni-fcl-mean", "precision": "bfloat16"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Trainings by two processes, in one launch."""
    path = tmp_path_factory.mktemp("two")
    jobs = [str(path / "undisturbed")]
    for name, options in OTHERS.items():
        pairs = [f"{key}={value}" for key, value in options.items()]
        jobs.append(",".join([str(path / name), *pairs]))
    torchrun(2, SCRIPT, *jobs)
    return path


@pytest.fixture
def undisturbed(folder):
    return _result(folder / "undisturbed")


def test_two_processes_train_what_one_trains(undisturbed):
    _assert_close(undisturbed, _alone())


def test_a_killed_process_changes_nothing(undisturbed, tmp_path):
    restarted = _run(2, tmp_path, "die=2", restarts=1)
    _assert_same(restarted, undisturbed)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch-00003"]


def test_a_checkpoint_reloads_at_other_numbers_of_processes(undisturbed, tmp_path):
    # Five classes: three processes hold 2, 2 and 1, four 2, 2, 1 and none.
    folder = tmp_path / "run"
    died = _run(4, folder, "die=3", check=False)
    assert died.returncode != 0
    assert (folder / "checkpoints" / "epoch-00002").is_dir()
    shutil.copytree(folder, tmp_path / "copy")
    _assert_close(_run(3, folder), undisturbed)
    with single_process() as group:
        world = World(group, rank=0, size=1, device=torch.device("cpu"))
        trainer = job.make(tmp_path / "copy", {}, world=world)
        history = trainer.fit()
    alone = {"history": history, "weights": job.weights(trainer).tolist()}
    _assert_close(alone, undisturbed)


def test_a_checkpoint_is_refused_where_it_does_not_belong(folder, tmp_path):
    shutil.copytree(folder / "undisturbed", tmp_path / "run")
    with pytest.raises(ValueError, match="resume it under torchrun"):
        job.make(tmp_path / "run", {}).fit()
    job.make(tmp_path / "one", {"epochs": "1"}).fit()
    with single_process() as group:
        world = World(group, rank=0, size=1, device=torch.device("cpu"))
        with pytest.raises(ValueError, match="resume it without torchrun"):
            job.make(tmp_path / "one", {"epochs": "1"}, world=world).fit()
        with pytest.raises(ValueError, match=r"epochs \(3, now 4\) differ"):
            job.make(tmp_path / "run", {"epochs": "4"}, world=world).fit()
        with pytest.raises(ValueError, match="losses"):
            job.make(tmp_path / "run", {"method": "l2"}, world=world).fit()
        part = next((tmp_path / "run" / "checkpoints" / "epoch-00003").glob("*.safetensors"))
        part.write_bytes(part.read_bytes()[:100])
        with pytest.raises(ValueError, match="damaged, or made with another encoder"):
            job.make(tmp_path / "run", {}, world=world).fit()
        (tmp_path / "run" / "checkpoints" / "epoch-00003" / "facts.json").write_text("[]")
        with pytest.raises(ValueError, match="not a whole checkpoint"):
            job.make(tmp_path / "run", {}, world=world).fit()


def test_a_batch_must_divide_by_the_processes():
    with single_process() as group:
        world = World(group, rank=0, size=5, device=torch.device("cpu"))
        with pytest.raises(ValueError, match="batch_size: expected a multiple of the 5 processes"):
            job.make(None, {}, world=world)


@pytest.mark.parametrize("name", OTHERS)
def test_methods_with_other_needs(folder, name):
    tolerance = 2e-2 if name == "bfloat16" else 2e-5
    _assert_close(_result(folder / name), _alone(**OTHERS[name]), tolerance)


def test_accumulation_in_one_process_changes_nothing_but_rounding():
    _assert_close(_alone(accumulate="4"), _alone())
