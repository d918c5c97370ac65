# SPDX-License-Identifier: Apache-2.0
"""``fcl bench-methods`` as it is typed."""

from __future__ import annotations

import gzip
import json
import struct

import numpy as np
import pytest
from experiment_samples import CONFIG

from fclearn.cli import main
from fclearn.experiments import settings, sources
from fclearn.experiments.settings import DEFAULTS
from fclearn.experiments.table import TABLE


def test_command(pattern_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(DEFAULTS, "icons", CONFIG)
    monkeypatch.setattr(sources, "load_icons", lambda: pattern_images)
    command = ["bench-methods", "--out", str(tmp_path), "--methods", "independent, l2"]
    options = ["--label-noise", "0.2", "--classes", "open", "--images-per-class", "6"]
    assert main([*command, *options, "--seeds", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [run["config"]["method"] for run in result["runs"]] == ["independent", "l2"]
    config = result["runs"][0]["config"]
    assert (config["label_noise"], config["classes"], config["images_per_class"]) == (
        0.2,
        "open",
        6,
    )
    assert config["train"]["seed"] == 3
    (tmp_path / TABLE).unlink()
    assert main(["bench-methods", "--out", str(tmp_path), "--table"]) == 0
    assert "Label noise in the new training set: 20 %." in (tmp_path / TABLE).read_text(
        encoding="utf-8"
    )
    assert main([*command, "--seeds", "3"]) == 2
    assert "classes, images_per_class, label_noise differ" in capsys.readouterr().err


def test_fashion_mnist_runs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 10).astype(np.uint8)
    images = (20 * labels[:, None, None] + rng.integers(0, 50, (400, 28, 28))).astype(np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    out = tmp_path / "out"
    command = ["bench-methods", "--dataset", "fashion-mnist", "--path", str(tmp_path), "--quick"]
    assert main([*command, "--methods", "l2", "--out", str(out), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["data"]["new"] == {"classes": 6, "images": 240}
    assert run["report"]["num_queries"] == 80


def test_command_tells_of_failed_runs_and_writes_the_table(
    pattern_images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(settings.DEFAULTS, "icons", CONFIG)
    monkeypatch.setattr(sources, "load_icons", lambda: pattern_images)
    # With so few images no old feature is credible to NCCL.
    command = ["bench-methods", "--out", str(tmp_path), "--methods", "nccl,l2"]
    assert main(command) == 2
    assert (
        "1 runs failed, the others are done: seed 0: nccl: max_entropy" in capsys.readouterr().err
    )
    assert "| `l2` |" in (tmp_path / TABLE).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "icon"], "--dataset: unknown name 'icon'; did you mean 'icons'?"),
        (["--seeds", "one"], "--seeds: expected integers by commas, got 'one'"),
        (["--methods", "bctt"], "unknown name 'bctt'"),
        (["--classes", "closed"], "classes: expected one of"),
        (["--path", "x"], "path: icons are drawn from a package and take none: 'x'"),
        (["--dataset", "fashion-mnist", "--path", "x"], "Fashion-MNIST: x/"),
    ],
)
def test_command_refuses(tmp_path, capsys, options, message):
    assert main(["bench-methods", "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
