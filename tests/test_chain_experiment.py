# SPDX-License-Identifier: Apache-2.0
"""Several upgrades in a row: who gets whose features, what is measured, resuming, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fclearn.cli import main
from fclearn.datasets import ImageDataset
from fclearn.evaluation import evaluate_retrieval
from fclearn.experiments import chain
from fclearn.experiments.chain import ChainConfig, run_chain
from fclearn.features import FeatureStore, as_tensor
from fclearn.training import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ChainConfig(
    classes=(3, 5, 8),
    encoders=("tiny-cnn", "tiny-cnn", "tiny-cnn"),
    dims=(6, 8, 8),
    train=TrainConfig(epochs=1, batch_size=8),
)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 6)
    pixels = rng.integers(0, 200, (12, 16, 16))[labels] + rng.integers(0, 56, (72, 16, 16))
    names = [f"class {label}" for label in range(12)]
    return ImageDataset(
        pixels.astype(np.uint8), labels, [f"i{row}" for row in range(72)], class_names=names
    )


@pytest.fixture(scope="module")
def played(images, tmp_path_factory):
    work = tmp_path_factory.mktemp("chain")
    said = []
    report = run_chain(CONFIG, images, "l2", work, progress=False, say=said.append)
    return work, report, said


def features(work, name, model="l2"):
    folder = work / "old" if name == "old" else work / model / name
    return FeatureStore.open(folder / "features" / ("old-test" if name == "old" else "l2-test"))


def test_each_model_gets_the_features_of_the_one_before_it(played):
    work, _, said = played
    assert said == ["l2, seed 0: old", "l2, seed 0: v1", "l2, seed 0: v2"]
    for before, name in (("old", "v1"), ("v1", "v2")):
        given = FeatureStore.open(work / "l2" / name / "features" / "old-train")
        theirs = features(work, before)
        rows = [theirs.ids.index(item) for item in given.ids]
        np.testing.assert_allclose(given.features, theirs.features[rows], atol=1e-6)
    counts = [len(set(FeatureStore.open(work / "l2" / n / "features" / "old-train").labels))
              for n in ("v1", "v2")]  # fmt: skip
    assert counts == [5, 8]


def test_every_entry_is_that_of_the_stores(played):
    work, report, _ = played
    stores = {name: features(work, name) for name in report.names}
    test = np.flatnonzero(stores["old"].labels >= 8)
    labels = stores["old"].labels[test]
    for i, query in enumerate(report.names):
        for j, gallery in enumerate(report.names[: i + 1]):
            found = evaluate_retrieval(
                as_tensor(stores[query], test), as_tensor(stores[gallery], test),
                query_labels=labels, gallery_labels=labels, exclude_self=True,
                query_ids=test, gallery_ids=test, metrics=("map",),
            )  # fmt: skip
            assert report.matrix[i, j] == pytest.approx(found["map"])
    assert report.num_queries == 4 * 6


def test_again_trains_nothing(played, images, monkeypatch):
    work, report, _ = played
    monkeypatch.setattr("fclearn.experiments.stages.Trainer", None)
    again = run_chain(CONFIG, images, "l2", work, progress=False, say=lambda _: None)
    np.testing.assert_array_equal(again.matrix, report.matrix)


def test_command(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fclearn.datasets.load_icons", lambda: images)
    monkeypatch.setattr(chain, "QUICK_CHAIN", CONFIG)
    command = ["bench-chain", "--out", str(tmp_path), "--methods", "l2, independent", "--quick"]
    options = ["--classes", "3,8", "--encoders", "tiny-cnn,tiny-cnn", "--dims", "6,8"]
    assert main([*command, *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [report["method"] for report in result["chains"]] == ["l2", "independent"]
    assert result["chains"][0]["models"] == ["old", "v1"]
    assert (tmp_path / "l2-seed0" / "report.html").is_file()
    monkeypatch.setattr(chain, "run_chain", None)
    assert main([*command, *options]) == 0
    printed = capsys.readouterr().err
    for report in result["chains"]:
        for row in report["matrix"]:
            assert all(f"{100 * value:.1f}" in printed for value in row if value is not None)
    assert main([*command]) == 2
    assert "made with another configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": (3,)}, "classes: expected those of two models or more"),
        ({"classes": (3, 3, 8)}, "classes: expected numbers that grow"),
        ({"dims": (6, 8)}, "dims: expected 3, one per model"),
        ({"dims": (8, 6, 8)}, "dims: expected numbers that do not shrink"),
        ({"encoders": ("tiny-cnn",)}, "encoders: expected 3, one per model"),
    ],
)
def test_refused_chains(options, message):
    arguments = {"classes": (3, 5, 8), "encoders": ("tiny-cnn",) * 3, "dims": (6, 8, 8)}
    with pytest.raises(ValueError, match=message):
        ChainConfig(**{**arguments, **options})


def test_refused_methods_and_images(images, tmp_path):
    with pytest.raises(ValueError, match="at most, 'ni-fcl-scores' needs the old service's sco"):
        run_chain(CONFIG, images, "ni-fcl-scores", tmp_path)
    with pytest.raises(ValueError, match="needs old features at most, 'bct' needs the old class"):
        run_chain(CONFIG, images, "bct", tmp_path)
    few = images.select_classes(range(8))
    with pytest.raises(ValueError, match="classes: expected fewer than the 8 of the images"):
        run_chain(CONFIG, few, "l2", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "x"], "--seeds: expected integers by commas, got 'x'"),
        (["--seeds", "1,1"], "--seeds: expected at least one, each once, got [1, 1]"),
        (["--methods", ""], "--methods: expected at least one"),
        (["--methods", "bctt"], "unknown name 'bctt'"),
        (["--dims", "8"], "dims: expected 4, one per model"),
    ],
)
def test_command_refuses(tmp_path, capsys, options, message):
    assert main(["bench-chain", "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
