# SPDX-License-Identifier: Apache-2.0
"""The registry of methods: each builds, trains, and says what it lacks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fclearn import KnnGraph, PseudoClassifier
from fclearn.datasets import ImageDataset
from fclearn.encoders import SmallCnn
from fclearn.losses import CosineClassifierLoss, LossTerm, PseudoClassifierLoss
from fclearn.methods import METHODS, Assets, Need, build_method, get_method
from fclearn.methods.ni_fcl import spread
from fclearn.training import TrainConfig, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES, CLASSES, OLD_DIM, DIM = 40, 5, 6, 8
# Settings that end at 1.
SHARES = {"damping", "keep"}
# They follow the old model's mistakes, or ask for a boundary only: 0.52 to 0.68 by seed, of 0.2 by
# chance.
LOOSE = {"lwf", "adv-bct"}
ASSET_OF = {
    Need.FEATURE_CACHE: "old_features",
    Need.OLD_MODEL: "old_model",
    Need.OLD_CLASSIFIER: "old_classifier",
    Need.INDEPENDENT_FEATURES: "independent_features",
    Need.OLD_SCORES: "old_scores",
}
# They know nothing of the old space: embeddings need not come near it.
ELSEWHERE = {name for name in METHODS if Need.FEATURE_CACHE not in METHODS[name].needs}


class OldModel(torch.nn.Module):
    """Knows the images of these tests by their first pixel, whatever else became of them."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("features", features)

    def forward(self, images):
        return self.features[(images[:, 0, 0, 0] * 255).round().long() % IMAGES]


def _everything(**changes):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % CLASSES
    centres = torch.randn(CLASSES, OLD_DIM, generator=generator)
    features = centres[labels] + 0.8 * torch.randn(IMAGES, OLD_DIM, generator=generator)
    owned = {
        "labels": labels,
        "old_features": features,
        "old_model": OldModel(features),
        "old_classifier": 3 * torch.randn(2, OLD_DIM, generator=generator),
        "old_classes": torch.tensor([3, 1]),
        "independent_features": torch.randn(IMAGES, OLD_DIM, generator=generator),
        "old_scores": KnnGraph.build(features, 9),
    }
    return Assets(**{**owned, **changes})


def _images():
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 12, 12), dtype=np.uint8)
    names = [str(row) for row in range(IMAGES)]
    return ImageDataset(images, np.arange(IMAGES) % CLASSES, names, class_names=list("abcde"))


def _compat(terms):
    (term,) = [term for term in terms if term.name == "compat"]
    assert isinstance(term.module, PseudoClassifierLoss)
    return term.module


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_moves_the_encoder(name):
    torch.manual_seed(0)
    terms = build_method(name, _everything(), DIM)
    encoder = SmallCnn(DIM, width=4)
    before = {key: value.clone() for key, value in encoder.named_parameters()}
    config = TrainConfig(epochs=1, batch_size=IMAGES, weight_decay=0.0)
    (row,) = Trainer(encoder, terms, _images(), config, progress=False).fit()
    assert row["step"] == 1
    assert math.isfinite(row["loss"])
    assert row["loss_new"] > 0
    assert (row["loss_compat"] > 0) == (name != "independent")
    moved = [
        key for key, value in encoder.named_parameters() if not torch.equal(value, before[key])
    ]
    assert "head.weight" in moved
    assert len(moved) > len(before) / 2


@pytest.mark.parametrize("name", METHODS)
def test_every_method_pulls_embeddings_to_the_old_features(name):
    """A few steps on free embeddings and what a term trains: compatibility alone suffices."""
    assets = _everything()
    torch.manual_seed(1)
    # In LCE it is the new classifier that carries the old centres to the embeddings.
    needed = {"new", "compat"} if name == "lce" else {"compat"}
    terms = [term for term in build_method(name, assets, DIM) if term.name in needed]
    embeddings = torch.randn(IMAGES, DIM, requires_grad=True)
    trained = torch.nn.ModuleList(term.module for term in terms)
    optimizer = torch.optim.Adam([embeddings, *trained.parameters()], lr=0.05)
    images = (torch.arange(IMAGES) / 255)[:, None, None, None].expand(-1, 1, 2, 2)

    def own_class_wins():
        part = F.normalize(embeddings.detach()[:, :OLD_DIM], dim=1)
        means = PseudoClassifier.from_means(assets.features, assets.labels).prototypes
        known = ~torch.isin(assets.labels, assets.old_classes) if name == "bct" else slice(None)
        return ((part @ means.T).argmax(1) == assets.labels)[known].double().mean()

    before = own_class_wins()
    for _ in range(200):
        rows = torch.arange(IMAGES)
        loss = sum(t.value(embeddings, assets.labels, rows, images) for t in terms)
        if not terms:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.4
    assert (own_class_wins() > (0.45 if name in LOOSE else 0.8)) == (name not in ELSEWHERE)


class _Killed(torch.nn.Module):
    """A term that ends the training in one step."""

    def __init__(self, step):
        super().__init__()
        self._step, self.seen = step, 0

    def forward(self, embeddings, _labels, _rows):
        self.seen += 1
        if self.seen == self._step:
            raise MemoryError
        return embeddings.sum() * 0


# Those whose losses remember, draw at random, share parameters or change with the epoch.
STATEFUL = {
    "aml": {},
    "lce": {},
    "uni-bct": {"refresh_epochs": 1, "k": 3},
    "adv-bct": {"width": 8},
    "bt2": {},
    "mix-bct": {},
    "ni-fcl-scores": {"damping": 0.5},
}


@pytest.mark.parametrize("name", STATEFUL)
def test_killed_trainings_resume_to_the_same_end(name, tmp_path):
    def trainer(kill_at, folder):
        torch.manual_seed(0)
        encoder = SmallCnn(DIM, width=4)
        terms = build_method(name, _everything(), DIM, **STATEFUL[name])
        terms.append(LossTerm("compat", 0.0, _Killed(kill_at)))
        config = TrainConfig(epochs=4, batch_size=IMAGES // 2)
        return Trainer(encoder, terms, _images(), config, output_dir=folder, progress=False)

    whole, killed, resumed = (
        trainer(0, tmp_path / "whole"),
        trainer(6, tmp_path / "killed"),
        trainer(0, tmp_path / "killed"),
    )
    whole.fit()
    with pytest.raises(MemoryError):
        killed.fit()
    resumed.fit()
    assert resumed.losses[-1].module.seen == 4
    expected = whole._modules.state_dict()
    for key, value in resumed._modules.state_dict().items():
        assert torch.equal(value, expected[key]), key
    killed.losses[-1].module._step = 0
    killed.fit()
    for key, value in killed._modules.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("labels", r"int64 of shape \(N,\), got a numpy array, int64 of \[40\]"),
        ("old_features", r"floating of shape \(N, D\), got a numpy array, float32 of \[40, "),
        ("old_classes", r"int64 of shape \(K,\), got a numpy array, int64 of \[2\]"),
    ],
)
def test_arrays_in_the_place_of_tensors_are_named(name, expected):
    array = getattr(_everything(), name).numpy()
    with pytest.raises(TypeError, match=f"{name}: expected a tensor, {expected}.*torch.from_numpy"):
        _everything(**{name: array})
    with pytest.raises(TypeError, match=f"{name}: expected a tensor, .*, got list$"):
        _everything(**{name: array.tolist()})


@pytest.mark.parametrize("name", METHODS)
def test_specification(name):
    spec = get_method(name)
    assert spec.name == name
    assert spec.title
    assert spec.source
    assert len(spec.idea) > 40
    assert Need.LABELS in spec.needs
    terms = build_method(name, _everything(), DIM)
    assert [term.name for term in terms].count("new") == 1
    assert isinstance(terms[0].module, CosineClassifierLoss)
    assert terms[0].module.prototypes.shape == (CLASSES, DIM)
    assert terms[0].module.scale == 16.0


@pytest.mark.parametrize("name", METHODS)
def test_what_is_missing_is_named(name):
    for need in METHODS[name].needs:
        if need is Need.LABELS:
            continue
        assets = _everything(**{ASSET_OF[need]: None})
        with pytest.raises(
            ValueError, match=rf"method '{name}' needs the .*\({ASSET_OF[need]}\), which is mis"
        ):
            build_method(name, assets, DIM)


def test_labels_alone_train_the_independent_model_at_any_dim():
    terms = build_method("independent", Assets(torch.tensor([0, 1, 2])), 2)
    assert terms[0].module.prototypes.shape == (3, 2)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ELSEWHERE])
def test_narrower_embeddings_are_refused(name):
    with pytest.raises(
        ValueError, match="dim: expected at least the 6 dims of the old features, got 5"
    ):
        build_method(name, _everything(), OLD_DIM - 1)
    assert build_method(name, _everything(), OLD_DIM)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="method: unknown name 'nifcl'; did you mean 'ni-fcl'"):
        get_method("nifcl")
    with pytest.raises(ValueError, match="unknown name '!'; expected one of 'independent', 'ni-fc"):
        build_method("!", _everything(), DIM)
    with pytest.raises(
        ValueError, match="method 'ni-fcl' has no setting 'head_wieght'; did you mean 'head_weight'"
    ):
        build_method("ni-fcl", _everything(), DIM, head_wieght=1.0)


@pytest.mark.parametrize("value", ["1", True, None])
def test_settings_of_another_type_are_refused(value):
    with pytest.raises(TypeError, match="weight: method 'l2' expects a number as its def"):
        build_method("l2", _everything(), DIM, weight=value)


def test_whole_numbers_are_numbers():
    assert build_method("l2", _everything(), DIM, weight=2)[1].weight == 2.0
    with pytest.raises(TypeError, match=r"k: .* expects an integer as its default 10, got 2\.5"):
        build_method("ni-fcl-walk", _everything(), DIM, k=2.5)
    with pytest.raises(TypeError, match=r"walk: .* expects text as its default 'within-class'"):
        build_method("ni-fcl-walk", _everything(), DIM, walk=1)


@pytest.mark.parametrize("name", METHODS)
def test_settings_arrive(name):
    defaults = METHODS[name].defaults
    numbers = {k: v * 1.5 for k, v in defaults.items() if isinstance(v, float) and k not in SHARES}
    numbers["label_smoothing"] = 0.1
    assets = _everything()
    terms = build_method(name, assets, DIM, **numbers)
    assert terms[0].module.scale == 24.0
    assert terms[0].module.label_smoothing == 0.1
    if name.startswith("ni-fcl") and "own_weight" in numbers:
        numbers["own_weight"] /= spread(assets.features)
    weights = sorted(v for k, v in numbers.items() if k.endswith("weight") and v)
    assert sorted(term.weight for term in terms if term.name == "compat") == weights
    for term in terms:
        if term.name == "compat" and hasattr(term.module, "scale"):
            assert term.module.scale == numbers["scale"]


def test_old_length_does_not_matter():
    """Old features of any length and dtype give the same pseudo classifier."""
    assets = _everything()
    longer = _everything(old_features=(assets.old_features * 10).double())
    for name in ("ni-fcl-mean", "ni-fcl-walk"):
        one, two = (_compat(build_method(name, a, DIM)).prototypes for a in (assets, longer))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


# --- single methods ---


def test_means():
    assets = _everything()
    means = PseudoClassifier.from_means(assets.features, assets.labels).prototypes
    torch.testing.assert_close(_compat(build_method("ni-fcl-mean", assets, DIM)).prototypes, means)


def test_ni_fcl_can_ask_for_what_old_features_say_of_each_other():
    assets = _everything()
    features = torch.nn.functional.normalize(assets.features, dim=1)
    assert len(build_method("ni-fcl", assets, DIM)) == 4
    *_, term = build_method("ni-fcl", assets, DIM, neighbour_weight=0.5)
    assert term.weight == 0.5
    embeddings = torch.randn(len(features), DIM, generator=torch.Generator().manual_seed(0))
    part = torch.nn.functional.normalize(embeddings[:, : features.shape[1]], dim=1)
    old = torch.log_softmax(20.0 * features @ features.T, 1)
    expected = (old.exp() * (old - torch.log_softmax(10.0 * part @ features.T, 1))).sum(1).mean()
    value = term.module(embeddings, assets.labels, torch.arange(len(features)))
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_bct_takes_the_rows_of_known_classes_and_means_of_new_ones():
    assets = _everything()
    prototypes = _compat(build_method("bct", assets, DIM)).prototypes
    means = PseudoClassifier.from_means(assets.features, assets.labels).prototypes
    torch.testing.assert_close(prototypes[[0, 2, 4]], means[[0, 2, 4]])
    torch.testing.assert_close(prototypes[[3, 1]], F.normalize(assets.old_classifier, dim=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"old_features": torch.zeros(IMAGES - 1, OLD_DIM)},
            r"old_features: expected one row per label \(40\), got 39",
        ),
        ({"old_classes": None}, "old_classes: expected one class per row of old_classifier"),
        ({"old_classes": torch.tensor([1])}, "old_classes: expected one class per row"),
        (
            {"old_classes": torch.tensor([1, CLASSES])},
            r"old_classes: expected distinct labels in \[0, 5\), got \[1, 5\]",
        ),
        ({"old_classes": torch.tensor([-1, 2])}, r"old_classes: expected .* got \[-1, 2\]"),
        ({"old_classes": torch.tensor([2, 2])}, r"old_classes: expected distinct labels"),
        (
            {"old_classifier": torch.ones(2, OLD_DIM + 1)},
            "old_classifier: expected 6 dims as the old features, got 7",
        ),
        (
            {"old_classifier": torch.full((2, OLD_DIM), torch.inf)},
            "old_classifier: row 0 has a NaN or an infinity",
        ),
        (
            {"independent_features": torch.ones(IMAGES + 1, OLD_DIM)},
            r"independent_features: expected one row per label \(40\), got 41",
        ),
        ({"old_classifier": torch.zeros(2, OLD_DIM)}, "old_classifier: row 0 is zero and has no"),
        ({"old_classifier": torch.ones(2)}, r"old_classifier: expected floating of shape \(N, D"),
        (
            {"labels": torch.zeros(IMAGES)},
            r"labels: expected int64 of shape \(N,\), got torch\.float32 of \[40\]",
        ),
        ({"labels": torch.full((IMAGES,), -1)}, "labels: expected values >= 0, got -1"),
        (
            {"old_features": torch.zeros(IMAGES)},
            r"old_features: expected floating of shape \(N, D\), got torch\.float32 of \[40\]",
        ),
        (
            {
                "old_features": torch.zeros(IMAGES, OLD_DIM).index_fill(
                    0, torch.tensor(3), torch.nan
                )
            },
            "old_features: row 3 has a NaN or an infinity",
        ),
        (
            {"old_features": torch.ones(IMAGES, OLD_DIM).index_fill(0, torch.tensor([2, 4]), 0.0)},
            r"old_features: row 2 is zero and has no direction \(2 such rows\)",
        ),
        (
            {"old_scores": KnnGraph.build(torch.rand(IMAGES - 1, 3), 2)},
            r"old_scores: expected one list per label \(40\), got 39",
        ),
        (
            {"old_scores": KnnGraph.build(torch.rand(IMAGES, 3), 2).normalize()},
            r"old_scores: expected scores, got a normalised graph \(mode='row'\)",
        ),
        (
            {"labels": torch.zeros(0, dtype=torch.int64), "old_features": None},
            "labels: expected at least one",
        ),
    ],
)
def test_assets_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _everything(**changes)


@pytest.mark.parametrize("walk", ["within-class", "global"])
def test_walks_refine_the_means(walk):
    assets = _everything()
    options = {"k": 4, "temperature": 0.2, "damping": 0.7}
    got = _compat(build_method("ni-fcl-walk", assets, DIM, walk=walk, **options))
    labels = assets.labels if walk == "within-class" else None
    graph = KnnGraph.build(assets.features, 4, labels=labels).normalize(0.2)
    means = PseudoClassifier.from_means(assets.features, assets.labels)
    assert got.soft_targets is None
    torch.testing.assert_close(got.prototypes, means.refine(graph, 0.7).prototypes)
    assert (got.prototypes - means.prototypes).norm() > 1e-2


def test_soft_target_walk():
    assets = _everything()
    got = _compat(build_method("ni-fcl-walk", assets, DIM, walk="soft-targets", damping=0.5))
    graph = KnnGraph.build(assets.features, 10).normalize(0.1)
    means = PseudoClassifier.from_means(assets.features, assets.labels)
    torch.testing.assert_close(got.prototypes, means.prototypes)
    torch.testing.assert_close(got.soft_targets, means.soft_targets(graph, 0.5))


def test_walk_refuses_settings():
    with pytest.raises(ValueError, match=r"walk: expected one of \['within-class', .* got 'some'"):
        build_method("ni-fcl-walk", _everything(), DIM, walk="some")
    with pytest.raises(ValueError, match=r"damping: expected a number in \(0, 1\), got 1.0"):
        build_method("ni-fcl-walk", _everything(), DIM, damping=1.0)
    with pytest.raises(ValueError, match="k: expected at least 1"):
        build_method("ni-fcl-walk", _everything(), DIM, k=0)
    with pytest.raises(ValueError, match="temperature: expected a positive number"):
        build_method("ni-fcl-walk", _everything(), DIM, temperature=0.0)


def test_walk_of_fewer_images_than_neighbours():
    assets = _everything()
    few = Assets(assets.labels[:6], assets.old_features[:6])
    for walk in ("within-class", "global", "soft-targets"):
        assert build_method("ni-fcl-walk", few, DIM, walk=walk, k=50)
