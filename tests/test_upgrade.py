# SPDX-License-Identifier: Apache-2.0
"""``fcl upgrade``: the papers' protocol from a folder of images to the table, on a tiny folder."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cli_samples import refused
from PIL import Image

from fclearn.cli import main
from fclearn.cli import upgrade_run as stages
from fclearn.cli.train_run import is_trained
from fclearn.cli.upgrade_config import UpgradeRunConfig
from fclearn.cli.upgrade_run import Step, run_steps, write_steps
from fclearn.config import TrainRunConfig, load_config
from fclearn.features import FeatureStore

CONFIGS = Path(__file__).parents[1] / "configs"
CLASSES, TRAIN, TEST = 6, 6, 4
SMALL = [
    *("data.size=32", "data.short_side=36", "device=cpu", "old.encoder.dim=8"),
    *("new.encoder.dim=12", "old.train.batch_size=8", "new.train.batch_size=8"),
    *("old.train.epochs=1", "new.train.epochs=1"),
    # In so few steps, the papers' rate would blow everything up.
    *("old.train.learning_rate=0.01", "new.train.learning_rate=0.01"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Batches this small gain nothing from threads, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Of ImageNet's shape: train and val, a folder per class, JPEGs of many sizes."""
    root = tmp_path_factory.mktemp("imagenet")
    random = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("val", TEST)):
        for label in range(CLASSES):
            folder = root / part / f"n{label:08}"
            folder.mkdir(parents=True)
            for number in range(count):
                width, height = random.integers(40, 70, 2)
                pixels = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
                pixels[..., label % 3] += np.uint8(60 + 60 * (label // 3))
                Image.fromarray(pixels).save(folder / f"{part}_{number}.JPEG")
    return root


@pytest.fixture(scope="module")
def played(images, tmp_path_factory):
    """ImageNet's configuration, at full depth, on the tiny folder."""
    output = tmp_path_factory.mktemp("runs") / "imagenet"
    command = ["upgrade", "--config", str(CONFIGS / "imagenet.yaml"), f"data.path={images}"]
    command += [*SMALL, "methods=[ni-fcl-mean, bct]", f"output={output}"]
    assert main(command) == 0
    return command, output


def test_everything_is_left_behind(played):
    _, output = played
    for model in ("old", "independent", "ni-fcl-mean", "bct"):
        assert (output / "models" / model / "model.safetensors").is_file()
        assert len(FeatureStore.open(output / "features" / f"{model}-val")) == CLASSES * TEST
    # All training images, in the old space, though the old model knows half of the classes.
    old = FeatureStore.open(output / "features" / "old-train")
    assert (len(old), old.dim) == (CLASSES * TRAIN, 8)
    names = (output / "models" / "old" / "classes.txt").read_text().splitlines()
    assert len(names) == CLASSES // 2
    assert set(names) < {f"n{label:08}" for label in range(CLASSES)}
    rows = np.load(output / "models" / "old" / "classifier.npy")
    assert rows.shape == (CLASSES // 2, 8)
    card = json.loads((output / "models" / "old" / "model.json").read_text())
    assert (card["size"], card["short_side"], card["encoder"]) == (32, 36, "resnet18-large-images")
    assert "32 px of a short side of 36" in card["fingerprint"]["preprocessing"]


def test_reports_are_those_of_the_protocol(played):
    _, output = played
    for method in ("ni-fcl-mean", "bct"):
        report = json.loads((output / "reports" / method / "report.json").read_text())
        assert report["num_queries"] == CLASSES * TEST
        rows = {"old/old", "new/old", "new/new", "independent/independent"}
        assert rows <= report["matrix"].keys()
        assert {"cmc@1", "cmc@5", "map"} <= report["matrix"]["new/old"].keys()


def test_again_is_at_once_done_and_published_figures_stand_beside(played, capfd):
    command, output = played
    before = (output / "models" / "bct" / "checkpoint.pt").read_bytes()
    assert main([*command, "--json"]) == 0
    printed = capfd.readouterr()
    result = json.loads(printed.out)
    assert set(result["reports"]) == {"ni-fcl-mean", "bct"}
    assert printed.err.count("(done before)") == 11
    assert "nothing was run" in printed.err
    assert (output / "models" / "bct" / "checkpoint.pt").read_bytes() == before
    for figure in ("39.5", "66.3", "42.2", "76.6"):
        assert figure in printed.err


def test_again_runs_what_is_missing(played, monkeypatch):
    command, output = played
    config = load_config(UpgradeRunConfig, CONFIGS / "imagenet.yaml", command[3:])
    ran = []

    def run_again():
        ran.clear()
        assert run_steps(write_steps(config), 1, lambda words: ran.append(words) or 0) == 0
        return [words[0] for words in ran]

    report = output / "reports" / "ni-fcl-mean" / "report.json"
    with monkeypatch.context() as patch:
        patch.setattr(stages, "is_trained", lambda run: "bct" not in run.output)
        os.utime(report, (0, 0))  # older than its stores
        assert run_again() == ["eval", "train"]
        assert ran[0][-1] == str(report.parent)
    os.utime(report)
    assert run_again() == []
    # Where images come or go, each command that reads them looks for itself.
    classes = Path(config.data.path) / "val" / "n00000003"
    (classes / "more.JPEG").touch()
    assert run_again() == ["embed"] * 4
    assert all(words[2].endswith("val") for words in ran)
    (classes / "more.JPEG").unlink()
    os.utime(classes, (0, 0))
    assert run_again() == []


def test_a_model_is_trained_once_its_card_is_of_its_last_epoch(played):
    _, output = played
    run = load_config(TrainRunConfig, output / "configs" / "bct.yaml")
    card, history = (output / "models" / "bct" / name for name in ("model.json", "history.csv"))
    assert is_trained(run)
    after = card.stat().st_mtime_ns + 1
    before = history.stat()
    os.utime(history, ns=(after, after))
    assert not is_trained(run)
    os.utime(history, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"train.epochs was 1 and is 2"):
        is_trained(replace(run, train=replace(run.train, epochs=2)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["new.train.epochs=2"], "independent: holds a run with other settings (train.epochs was"),
        (["data.test=train"], "expected nothing or a report on "),
    ],
)
def test_an_upgrade_takes_the_place_of_no_other(played, fcl, overrides, message):
    command, output = played
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for more in ([], ["--dry-run"]):
        assert refused(fcl(*command, *overrides, *more), message, "give another output")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("text", ["mine", "encoder: {dim: 8}"])
def test_configurations_take_the_place_of_no_other_file(images, fcl, tmp_path, text):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "old.yaml").write_text(text)
    command = ["upgrade", f"data.path={images}", f"output={tmp_path}", "--dry-run"]
    assert refused(fcl(*command), "old.yaml: expected nothing or the configuration of a training")
    assert [path.name for path in tmp_path.rglob("*.yaml")] == ["old.yaml"]
    assert (tmp_path / "configs" / "old.yaml").read_text() == text


def test_methods_get_what_they_need(images, tmp_path):
    overrides = [f"data.path={images}", "methods=[ni-fcl, bct, bt2, independent]"]
    config = load_config(UpgradeRunConfig, None, [*overrides, f"output={tmp_path}"])
    steps = [step.arguments for step in write_steps(config)]
    verbs = [arguments[0] for arguments in steps]
    assert verbs[:3] == ["train", "embed", "embed"]
    assert verbs.count("train") == 5  # old, independent, and three methods
    assert verbs.count("eval") == 4
    given = {
        name: yaml.safe_load((tmp_path / "configs" / f"{name}.yaml").read_text())
        for name in ("old", "independent", "ni-fcl", "bct", "bt2")
    }
    assert given["old"]["data"]["class_share"] == 0.5
    assert given["independent"]["old_features"] is None
    assert given["ni-fcl"]["old_features"] == str(tmp_path / "features" / "old-train")
    assert given["ni-fcl"]["old_classifier"] is None
    assert given["bct"]["old_classifier"] == str(tmp_path / "models" / "old" / "classifier.npy")
    independent = str(tmp_path / "features" / "independent-train")
    assert given["bt2"]["independent_features"] == independent
    assert sum(independent in arguments for arguments in steps) == 1


@pytest.mark.parametrize("name", ["imagenet", "places365"])
def test_shipped_configurations_are_openbcts(name):
    config = load_config(UpgradeRunConfig, CONFIGS / f"{name}.yaml")
    assert (config.old.class_share, config.new.class_share) == (0.5, 1.0)
    assert config.old.encoder.name == "resnet18-large-images"
    assert config.new.encoder.name == "resnet50-large-images"
    for model in (config.old, config.new):
        train = model.train
        assert (train.optimizer, train.learning_rate, train.weight_decay) == ("sgd", 0.1, 1e-4)
        assert (train.epochs, train.batch_size, train.precision) == (90, 256, "bfloat16")
    assert (config.data.size, config.data.short_side) == (224, 256)
    # Each published figure has a row and a column of the table to stand in.
    for key in config.published:
        row, metric, *method = key.split()
        assert metric in {"cmc@1", "cmc@5"}
        assert (row in {"new/old", "new/new"}) == bool(method)
        assert set(method) <= set(config.methods)


def test_dry_run_runs_nothing(images, tmp_path, capsys):
    command = ["upgrade", f"data.path={images}", f"output={tmp_path}", "--dry-run"]
    assert main(command) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8
    assert all(line.startswith("fcl ") for line in lines)
    assert not (tmp_path / "models").exists()


def test_several_processes_go_by_torchrun(monkeypatch):
    started = []
    monkeypatch.setattr(stages, "_by_torchrun", lambda *given: started.append(given) or 0)
    steps = [Step(("train", "a")), Step(("embed", "b"), lambda: True), Step(("eval", "c"))]
    assert run_steps(steps, 4, lambda _: pytest.fail("in this process")) == 0
    assert started == [(["train", "a"], 4), (["eval", "c"], 4)]


def test_a_command_that_fails_is_the_last(capsys):
    ran = []

    def fails(arguments):
        ran.append(arguments)
        return 2

    assert run_steps([Step(("train",)), Step(("embed",))], 1, fails) == 2
    assert ran == [["train"]]
    assert "[1/2] fcl train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["methods=[bctt]"], "method: unknown name 'bctt'; did you mean 'bct'"),
        (["methods=[bct, bct]"], "methods: expected each once, got bct, bct"),
        (["methods=[]"], "methods: expected at least one"),
        (["methods=[ni-fcl-scores]"], "methods: 'ni-fcl-scores' is for an old service without"),
        (["data.test=test"], "data.path: expected a folder"),
        (["data.path="], "data.path: expected"),
        (["old.class_share=0"], "class_share: expected a number in (0, 1], got 0"),
        (["data.short_side=20"], "short_side: expected 224 (size) to 4096 pixels, got 20"),
        (["old.encoder.name=resnet5"], "encoder: expected one of"),
    ],
)
def test_refused(images, tmp_path, capsys, overrides, message):
    command = ["upgrade", f"data.path={images}", f"output={tmp_path}", "device=cpu", *overrides]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_refused_under_torchrun(images, monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    assert main(["upgrade", f"data.path={images}"]) == 2
    assert "give --processes instead" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes(images, tmp_path):
    """A command by torchrun, with the classifier spread over two processes, and back in one."""
    overrides = [*SMALL, f"data.path={images}", f"output={tmp_path}", "old.encoder.name=tiny-cnn"]
    config = load_config(UpgradeRunConfig, CONFIGS / "places365.yaml", overrides)
    training = write_steps(config)[:1]
    assert run_steps(training, 2, lambda _: pytest.fail("in this process")) == 0
    model = tmp_path / "models" / "old"
    assert (model / "checkpoints").is_dir()
    assert np.load(model / "classifier.npy").shape == (CLASSES // 2, 8)
    with (model / "history.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1
