# SPDX-License-Identifier: Apache-2.0
"""What trainings make of bad or odd input: they go on where that is sound, else say why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fclearn import KnnGraph
from fclearn.cache_check import check_cache
from fclearn.cli import main
from fclearn.cli.images import load_images
from fclearn.config import DataConfig
from fclearn.datasets import VectorDataset
from fclearn.features import FeatureStore
from fclearn.methods import METHODS, Assets, build_method

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, PER_CLASS = 4, 6
SMALL = ["data.size=16", "data.grey=true", "train.batch_size=8", "encoder.dim=8", "device=cpu"]
LABELS = {
    "a class of one image": [0, *([1, 2, 3] * 12)],
    "classes of one image each": list(range(24)),
    "one class": [0] * 12,
    "a class without images": [0, 1, 3] * 10,
    "more classes than images": [0, 1, 500],
}
EMPTY = {"a class without images", "more classes than images"}
# They look at each image's own old feature, or at nothing old.
WITHOUT_CLASS_ROWS = {"independent", "l2", "aml", "hot-refresh", "ni-fcl-scores"}


def assets(labels):
    generator = torch.Generator().manual_seed(0)

    def rows(count):
        return torch.randn(count, 6, generator=generator)

    return Assets(
        torch.tensor(labels),
        old_features=rows(len(labels)),
        old_classifier=rows(1),
        old_classes=torch.tensor([0]),
        independent_features=rows(len(labels)),
        old_model=nn.Sequential(nn.Flatten(), nn.Linear(4, 6)),
        old_scores=KnnGraph.build(rows(len(labels)), 2),
    )


def loss_of(name, labels):
    terms = build_method(name, assets(labels), 8)
    embeddings = torch.randn(len(labels), 8, requires_grad=True)
    for term in terms:
        getattr(term.module, "on_epoch", lambda *_: None)(1, 2)
    rows = torch.arange(len(labels))
    images = torch.rand(len(labels), 1, 2, 2)
    loss = sum(term.value(embeddings, torch.tensor(labels), rows, images) for term in terms)
    loss.backward()
    return loss, embeddings.grad


@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("name", METHODS)
def test_small_classes_train_and_empty_ones_are_named(name, case):
    if case in EMPTY and name not in WITHOUT_CLASS_ROWS:
        with pytest.raises(ValueError, match=r"labels: class 2 has no rows .* number the classes"):
            build_method(name, assets(LABELS[case]), 8)
        return
    loss, gradient = loss_of(name, LABELS[case])
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any() or case == "one class"  # which a classifier of it has learned already


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Images, an old model and another one, and the stores of both."""
    root = tmp_path_factory.mktemp("bad")
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / "photos" / f"class-{label}").mkdir(parents=True)
        for number in range(PER_CLASS if label else 1):
            pixels = random.integers(0, 120, (16, 16), dtype=np.uint8)
            pixels[4 * label : 4 * label + 3] = 255
            Image.fromarray(pixels).save(root / "photos" / f"class-{label}" / f"{number}.png")
    for seed, name in enumerate(("old", "other")):
        independent = ["--method", "independent", "train.epochs=1", f"train.seed={seed}"]
        assert main([*command(root, name), *independent]) == 0
        store = ["embed", str(root / name), str(root / "photos"), "--out", str(root / f"{name}-s")]
        assert main([*store, "--device", "cpu"]) == 0
    return root


def command(root, output):
    data = ["data.kind=folder", f"data.path={root / 'photos'}", *SMALL]
    return ["train", *data, f"output={root / output}", "train.epochs=1"]


@pytest.fixture
def refused(work, capsys):
    """Train with some settings; the one line that says why not."""

    def run(*overrides, output="refused"):
        capsys.readouterr()
        assert main([*command(work, output), *overrides]) == 2
        error = capsys.readouterr().err
        return next(line for line in error.splitlines() if line.startswith("fcl: error: "))

    return run


def rewritten(store, path, **changes):
    """A store with other rows, ids, columns or fingerprint."""
    manifest = {"id": store.ids, "label": store.labels, "class_name": store.manifest["class_name"]}
    kept = changes.pop("kept", np.arange(len(store)))
    columns = {name: [column[row] for row in kept] for name, column in manifest.items()}
    fingerprint = changes.pop("fingerprint", store.fingerprint)
    return FeatureStore.write(path, store.features[kept], {**columns, **changes}, fingerprint)


def test_a_share_of_the_classes_is_always_the_same(work):
    shares = {}
    for share in (1.0, 0.75, 0.5, 0.01):
        data = DataConfig("folder", str(work / "photos"), size=16, class_share=share)
        shares[share] = [*load_images(data).class_names]
        assert shares[share] == [*load_images(data).class_names]
    assert [len(names) for names in shares.values()] == [4, 3, 2, 1]
    assert set(shares[0.5]) < set(shares[0.75]) < set(shares[1.0])


def test_a_class_of_one_image_trains(work):
    assert main([*command(work, "new"), f"old_features={work / 'old-s'}"]) == 0


def test_a_class_without_old_features_is_named(work, refused, tmp_path):
    old = FeatureStore.open(work / "old-s")
    kept = np.flatnonzero(old.labels != 2)
    few = rewritten(old, tmp_path / "few", kept=kept)
    line = refused(f"old_features={few.path}")
    for part in (str(few.path), "no features for any image of 1 of the 4 classes: 'class-2'"):
        assert part in line
    one = rewritten(old, tmp_path / "one", kept=np.arange(len(old) - 1))
    line = refused(f"old_features={one.path}")
    assert "no features for 1 of the 19 ids of the images: 'class-3/5.png'" in line


def test_features_of_other_images_are_named(work, refused, tmp_path):
    """Rows that slipped by one: ids and labels part ways."""
    old = FeatureStore.open(work / "old-s")
    slipped = rewritten(old, tmp_path / "slipped", id=[*old.ids[1:], old.ids[0]])
    line = refused(f"old_features={slipped.path}")
    for part in ("labels differ from those of the images", "'class-1/0.png' is 'class-0' there"):
        assert part in line


@pytest.mark.parametrize(("number", "what"), [(np.nan, "a NaN or infinity"), (0, "norm zero")])
def test_bad_old_features_are_named_as_their_store_knows_them(
    number, what, work, refused, tmp_path
):
    old = FeatureStore.open(work / "old-s")
    # The images have another order.
    store = rewritten(old, tmp_path / "bad", kept=np.arange(len(old))[::-1])
    np.load(store.path / "features.npy", mmap_mode="r+")[3] = number
    line = refused(f"old_features={store.path}")
    assert what in line
    assert "row 3" in line
    assert repr(store.ids[3]) in line


def test_features_of_another_old_model_do_not_go_on(work, refused, tmp_path):
    store = tmp_path / "store"
    old, other = (FeatureStore.open(work / f"{name}-s") for name in ("old", "other"))
    rewritten(old, store)
    assert main([*command(work, "goes-on"), f"old_features={store}"]) == 0
    rewritten(other, store)
    line = refused(f"old_features={store}", output="goes-on")
    for part in (
        "begun with other old features",
        "refusing to mix features",
        old.fingerprint.model,
        other.fingerprint.model,
    ):
        assert part in line
    (work / "goes-on" / "old_fingerprint.json").write_text("[" * 50_000)
    assert "old_fingerprint.json" in refused(f"old_features={store}", output="goes-on")


def test_a_model_and_a_cache_that_disagree(work, refused, tmp_path):
    old = FeatureStore.open(work / "old-s")
    agree = [f"old_features={work / 'old-s'}", f"old_model={work / 'old'}"]
    assert main([*command(work, "agree"), *agree]) == 0

    line = refused(f"old_features={work / 'other-s'}", f"old_model={work / 'old'}")
    assert "old_model" in line
    assert "refusing to mix features" in line

    # The right fingerprint on the wrong rows: only the model itself can tell.
    rows = FeatureStore.open(work / "other-s").features
    manifest = {"id": old.ids, "label": old.labels}
    forged = FeatureStore.write(tmp_path / "forged", rows, manifest, old.fingerprint)
    line = refused(f"old_features={forged.path}", f"old_model={work / 'old'}")
    for part in ("old_features: ", "of 19 sampled rows are not what the model makes", "cosine"):
        assert part in line

    line = refused(f"old_model={work / 'old'}")
    assert "old_features" in line
    line = refused(f"old_features={work / 'old-s'}", f"old_model={tmp_path / 'nowhere'}")
    assert "expected a model written by fcl train" in line


def test_an_old_model_is_asked_about_images_it_can_see(work, refused):
    given = [f"old_features={work / 'old-s'}", "--method", "ni-fcl-views"]
    assert main([*command(work, "views"), *given, f"old_model={work / 'old'}"]) == 0
    line = refused(*given)
    assert "old_model: method 'ni-fcl-views' needs the old model itself" in line
    line = refused(*given, f"old_model={work / 'old'}", "data.size=24")
    assert "it sees images of shape (1, 16, 16), the new model is trained on (1, 24, 24)" in line


class TestCheckCache:
    """The same check, on what a user has in hand."""

    ROWS = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32)
    DATA = VectorDataset(
        ROWS, np.arange(200) % 3, [f"row {n}" for n in range(200)], class_names=list("abc")
    )

    def test_half_precision_and_scale_are_no_difference(self):
        stored = torch.from_numpy(3 * self.ROWS).half()
        check_cache(torch.nn.Flatten(), self.DATA, stored)

    def test_a_few_wrong_rows_are_found_and_the_worst_is_named(self):
        stored = torch.from_numpy(self.ROWS.copy())
        stored[17] *= -1
        message = r"1 of 200 sampled rows .*'row 17' has cosine -1\.000 with it, expected at least"
        with pytest.raises(ValueError, match=message):
            check_cache(torch.nn.Flatten(), self.DATA, stored, num_sampled=500)

    def test_only_a_sample_is_embedded(self):
        seen = []

        class Counts(torch.nn.Flatten):
            def forward(self, rows):
                seen.append(len(rows))
                return super().forward(rows)

        check_cache(Counts(), self.DATA, torch.from_numpy(self.ROWS), num_sampled=40)
        assert sum(seen) == 40

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"features: expected shape \[200, D\]"):
            check_cache(torch.nn.Flatten(), self.DATA, torch.ones(199, 5))
        with pytest.raises(ValueError, match=r"encoder: expected output of shape \[32, 6\]"):
            check_cache(torch.nn.Flatten(), self.DATA, torch.ones(200, 6))


def test_divergence_names_step_checkpoint_and_remedy(work, capsys):
    """A rate that no network survives, after epochs that were fine."""
    first = [*command(work, "diverges"), "--method", "independent", "train.epochs=2"]
    rates = ["train.optimizer=sgd", "train.max_grad_norm=0", "train.learning_rate=1e30"]
    assert main([*first, *rates, "train.warmup_epochs=0"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fcl: error: the ")
    assert "step " in error
    assert "Try a lower learning_rate" in error
