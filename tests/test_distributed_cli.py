# SPDX-License-Identifier: Apache-2.0
"""The verbs of ``fcl`` by two processes: one result, printed once."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import numpy as np
import pytest
from torchrun import TESTS

from fclearn.cli import main
from fclearn.features import FeatureStore
from fclearn.features.ids import digest_of_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    script = [sys.executable, "-W", "ignore", str(TESTS / "distributed_cli.py"), str(path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    (path / "stderr.txt").write_text(done.stderr)
    return path


def _codes(folder, name):
    return ast.literal_eval((folder / f"{name}.codes").read_text())


def _printed(folder, name):
    assert (folder / f"{name}.1.txt").read_text() == ""
    return json.loads((folder / f"{name}.0.txt").read_text())


@pytest.mark.parametrize("name", ["train", "train-again", "embed", "graph", "walk", "eval"])
def test_verbs_succeed(folder, name):
    assert _codes(folder, name) == [0, 0], (folder / "stderr.txt").read_text()


def test_train_resumes_and_refuses_other_settings(folder):
    first, again = (_printed(folder, name) for name in ("train", "train-again"))
    assert first == again
    assert first["epochs"] == 2
    assert _codes(folder, "train-other") == [2, 2]
    assert "train.epochs was 2 and is 3" in (folder / "stderr.txt").read_text()
    assert sorted(path.name for path in (folder / "model").iterdir()) == [
        *("args.yaml", "checkpoints", "classes.txt", "classifier.npy", "history.csv"),
        *("model.json", "model.safetensors"),
    ]


def test_a_training_goes_on_as_it_began(folder, capsys):
    settings = (folder / "model" / "args.yaml").as_posix()
    assert main(["train", "--config", settings]) == 2
    assert "resume it under torchrun" in capsys.readouterr().err


def test_stores_and_graph_are_those_of_one_process(folder, tmp_path):
    embed = ["embed", str(folder / "model"), str(folder / "images"), "--out", str(tmp_path / "one")]
    assert main([*embed, "--device", "cpu"]) == 0
    one, two = FeatureStore.open(tmp_path / "one"), FeatureStore.open(folder / "store")
    assert one.ids == two.ids
    # Convolutions of other numbers of threads differ in their last bits.
    np.testing.assert_allclose(one.features, two.features, rtol=0, atol=1e-6)
    graph, walked = tmp_path / "graph.safetensors", tmp_path / "walked"
    assert main(["graph", str(folder / "store"), "--k", "3", "--out", str(graph)]) == 0
    assert main(["walk", str(graph), str(folder / "store"), "--out", str(walked)]) == 0
    left, right = FeatureStore.open(walked), FeatureStore.open(folder / "walked")
    np.testing.assert_allclose(left.features, right.features, rtol=0, atol=1e-6)
    assert _printed(folder, "graph")["edges"] == 24 * 3
    assert _printed(folder, "graph")["ids"] == digest_of_ids(two.ids)


def test_eval_prints_the_numbers_of_one_process(folder, capsys):
    stores = ["--old-query", str(folder / "store"), "--new-query", str(folder / "walked")]
    assert main(["eval", *stores, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == _printed(folder, "eval")
    assert (folder / "report" / "report.html").is_file()
    assert _codes(folder, "gate") == [1, 1]


def test_nothing_is_left_over(folder):
    assert not [path for path in folder.rglob(".*")]
