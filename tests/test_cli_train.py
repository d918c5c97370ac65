# SPDX-License-Identifier: Apache-2.0
"""``fcl train``, end to end on a few real drawings, and everything it refuses."""

from __future__ import annotations

import json
import re
import signal
import time

import numpy as np
import pytest
from cli_samples import history, process, refused, train, write_store

from fclearn import encoders
from fclearn._interaction import ProgressLines
from fclearn.encoders import SmallCnn
from fclearn.features import FeatureStore
from fclearn.training import DivergenceError, Trainer


def test_training_leaves_a_model_folder(work):
    for name in ("old", "new"):
        files = {path.name for path in (work / name).iterdir()}
        assert files == {
            "args.yaml",
            "checkpoint.pt",
            "classes.txt",
            "classifier.npy",
            "history.csv",
            "model.json",
            "model.safetensors",
            *(["old_fingerprint.json"] if name == "new" else []),
        }
    card = json.loads((work / "new" / "model.json").read_text(encoding="utf-8"))
    assert (card["encoder"], card["dim"], card["channels"]) == ("small-cnn", 8, 1)
    assert (card["size"], card["grey"]) == (16, True)
    assert card["fingerprint"] == FeatureStore.open(work / "new-store").fingerprint.to_dict()


def test_train_again_is_at_once_done(work, fcl):
    code, result, _ = fcl("train", "--config", work / "new" / "args.yaml", "--json")
    assert code == 0
    assert result["epochs"] == 2
    assert result["last_epoch"]["epoch"] == 2
    assert result["model"] == FeatureStore.open(work / "new-store").fingerprint.to_dict()


def test_a_log_is_told_how_far_a_training_is(photos, fcl, tmp_path, monkeypatch):
    run = train(photos, tmp_path / "run", "method.name=independent", "train.epochs=3")
    code, result, error = fcl(*run, "--json")
    assert (code, result["epochs"]) == (0, 3)
    (line,) = re.findall(r"^epoch .*$", error, re.MULTILINE)
    assert re.fullmatch(r"epoch 1/3, step (\d+)/\1, loss \d+\.\d{3}, 0:\d\d:\d\d left", line)
    # A terminal has a bar instead.
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    code, _, error = fcl(*run, f"output={tmp_path / 'bar'}", "--json")
    assert code == 0
    assert not re.findall(r"^epoch 1/3, step", error, re.MULTILINE)


def test_lines_come_after_an_epoch_and_then_twice_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    said = []
    # A run that goes on after the first of four epochs of ten steps, two seconds each.
    lines = ProgressLines(said.append, epochs=4, steps=10, done=10)
    for step in range(11, 41):
        now[0] += 2
        lines.step(step, 0.5)
    assert said == [
        "epoch 2/4, step 10/10, loss 0.500, 0:00:40 left",
        "epoch 4/4, step 5/10, loss 0.500, 0:00:10 left",
    ]
    said.clear()
    lines = ProgressLines(said.append, epochs=1, steps=100, done=0)
    for step in range(1, 101):
        now[0] += 20
        lines.step(step, 0.5)
    assert said[0] == "epoch 1/1, step 2/100, loss 0.500, 0:32:40 left"
    assert len(said) == 49


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["train.epoch=1"], ["unknown key 'train.epoch'; did you mean 'train.epochs'?"]),
        (["train.epochs"], ["expected key=value, as in train.epochs=5, got 'train.epochs'"]),
        (["train.epochs=few"], ["train.epochs: expected an integer, got 'few' (text)"]),
        (["method.name=ni-fc"], ["method: unknown name 'ni-fc'; did you mean 'ni-fcl'?"]),
        ([], ["old_features: method 'ni-fcl' needs the old model's features", "give a store"]),
        (
            ["method.name=bt2", "old_features=OLD"],
            ["independent_features: method 'bt2' needs the independent", "give a store"],
        ),
        (["method.name=bct", "old_features=OLD"], ["method 'bct' needs the old classifier"]),
        (
            ["old_features=OLD", "method.settings.scal=3"],
            ["method 'ni-fcl' has no setting 'scal'; did you mean 'scale'?"],
        ),
        (["old_features=OLD", "encoder.dim=4"], ["dim: expected at least the 8 dims"]),
        (["method.name=independent", "encoder.name=small"], ["encoder: expected one of"]),
        (["method.name=independent", "device=tpu9"], ["device: expected auto, cpu, cuda"]),
        (["method.name=independent", "device=cuda:99"], ["device: torch sees ", "'cuda:99'"]),
        (["method.name=independent", "train.batch_size=999"], ["batch_size: expected at most"]),
        (["method.name=independent", "data.classes=[nothing]"], ["data.classes: no class 'noth"]),
        (["method.name=independent", "data.path=/nowhere"], ["/nowhere is not a folder"]),
    ],
)
def test_refused_trainings(work, photos, fcl, tmp_path, overrides, parts):
    overrides = [text.replace("OLD", str(work / "old-store")) for text in overrides]
    assert refused(fcl(*train(photos, tmp_path / "run", *overrides)), *parts)


def test_what_could_not_be_saved_is_not_trained(photos, fcl, tmp_path, monkeypatch):
    widths = iter(range(4, 100))  # never the same weights twice
    monkeypatch.setitem(
        encoders._BUILDERS, "tiny-cnn", lambda dim, channels: SmallCnn(dim, channels, next(widths))
    )
    overrides = ["method.name=independent", "encoder.name=tiny-cnn"]
    result = fcl(*train(photos, tmp_path / "run", *overrides))
    assert refused(result, "encoder: expected the weights of build_encoder('tiny-cnn', dim=8")
    assert not (tmp_path / "run").exists()


def test_other_settings_do_not_resume_a_run(work, photos, fcl):
    result = fcl(*train(photos, work / "new", f"old_features={work}/old-store", "train.epochs=9"))
    assert refused(result, "holds a run with other settings", "train.epochs was 2 and is 9")


def test_old_features_are_matched_by_id(work, photos, fcl, tmp_path):
    old = FeatureStore.open(work / "old-store")
    order = np.arange(len(old))[::-1].copy()
    rows, labels, ids = old.subset(order)
    names = [old.manifest["class_name"][row] for row in order]
    turned = write_store(tmp_path / "turned", rows, labels, ids=ids, class_name=names)
    run = tmp_path / "run"
    assert fcl(*train(photos, run, f"old_features={turned}", "train.epochs=2"))[0] == 0
    assert history(run) == history(work / "new")

    missing = write_store(tmp_path / "missing", rows[1:], labels[1:], ids=ids[1:])
    result = fcl(*train(photos, tmp_path / "x", f"old_features={missing}"))
    assert refused(result, f"no features for 1 of the {len(old)} ids of the images: '{ids[0]}'")

    labels[0] += 1
    mislabelled = write_store(tmp_path / "mislabelled", rows, labels, ids=ids)
    result = fcl(*train(photos, tmp_path / "x", f"old_features={mislabelled}"))
    assert refused(result, f"1 of {len(old)} labels differ", f"'{ids[0]}' is {labels[0]} there")

    names[0] = "else"
    renamed = write_store(tmp_path / "renamed", rows, labels, ids=ids, class_name=names)
    result = fcl(*train(photos, tmp_path / "x", f"old_features={renamed}"))
    assert refused(result, f"'{ids[0]}' is 'else' there and ")


def test_refused_config_files(fcl, tmp_path):
    path = tmp_path / "c.yaml"
    assert refused(fcl("train", "--config", path), f"{path}: No such file or directory")
    path.write_text("train: {epoch: 3}\n", encoding="utf-8")
    assert refused(fcl("train", "--config", path), "did you mean 'train.epochs'?")
    path.write_text("train: {epochs\n", encoding="utf-8")
    assert refused(fcl("train", "--config", path), f"{path}: not valid yaml")


def test_a_diverged_training_is_one_line(photos, fcl, tmp_path, monkeypatch):
    def diverge(_self):
        raise DivergenceError("the loss is nan in epoch 1")

    monkeypatch.setattr(Trainer, "fit", diverge)
    code, _, error = fcl(*train(photos, tmp_path / "run", "method.name=independent"))
    assert code == 2
    started, message = error.splitlines()
    assert started.startswith("training independent")
    assert message == "fcl: error: the loss is nan in epoch 1"


def test_interrupted_training_resumes_to_the_same_end(photos, fcl, tmp_path):
    more = ["method.name=independent", "train.epochs=60"]
    command = train(photos, tmp_path / "run", *more)
    running = process(command)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "history.csv").is_file():
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    last = error.splitlines()[-1]
    assert last.startswith("fcl: interrupted: the checkpoint of the last whole epoch is kept in ")
    assert last.endswith("checkpoint.pt; the same command resumes")
    assert "Traceback" not in error
    assert 1 <= len(history(tmp_path / "run")) < 60
    assert not (tmp_path / "run" / "model.json").exists()

    assert fcl(*command)[0] == 0
    assert fcl(*train(photos, tmp_path / "undisturbed", *more))[0] == 0
    assert history(tmp_path / "run") == history(tmp_path / "undisturbed")
    cards = [(tmp_path / name / "model.json").read_text() for name in ("run", "undisturbed")]
    assert cards[0] == cards[1]
