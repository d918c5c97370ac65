# SPDX-License-Identifier: Apache-2.0
"""Model folders from Python: written, read, refused, and the same as the command's."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fclearn import build_encoder, encoders, load_model
from fclearn.encoders import SmallCnn
from fclearn.features import FeatureStore
from fclearn.model_folder import read_card, save_classifier, save_model

QUICK_START = Path(__file__).parents[1] / "docs" / "quickstart.md"


@pytest.fixture
def trained():
    """An encoder whose running statistics are no longer those it began with."""
    encoder = build_encoder("tiny-cnn", dim=6, channels=3)
    encoder(torch.rand(4, 3, 16, 16))
    return encoder


def save(folder, encoder, **changes):
    facts = {"name": "tiny-cnn", "dim": 6, "channels": 3, "size": 16, "method": "l2", **changes}
    return save_model(folder, encoder, **facts)


def test_what_was_saved_is_loaded(trained, tmp_path):
    written = save(tmp_path, trained, short_side=20)
    encoder, card = load_model(tmp_path)
    assert card == written == read_card(tmp_path)
    assert (card.dim, card.channels, card.size, card.grey, card.short_side) == (6, 3, 16, False, 20)
    assert card.fingerprint.preprocessing == "rgb 16 px of a short side of 20 in [0, 1]"
    images = torch.rand(2, 3, 16, 16)
    assert not encoder.training  # its rows do not depend on what else is in the batch
    assert torch.equal(encoder(images), trained.eval()(images))


def test_other_weights_have_another_fingerprint(trained, tmp_path):
    before = save(tmp_path, trained).fingerprint
    with torch.no_grad():
        next(trained.parameters()).add_(1)
    assert save(tmp_path, trained).fingerprint != before


def test_what_is_no_model_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"model\.json: expected a model written by fcl train"):
        load_model(tmp_path)
    save(tmp_path, trained)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors: expected a model written by"):
        load_model(tmp_path)
    save(tmp_path, trained)
    card = json.loads((tmp_path / "model.json").read_text("utf-8"))
    for changes, message in (
        ({"dim": 7}, "no layer of 7 outputs, the dim in"),
        ({"encoder": "small-cnn"}, "not weights of small-cnn"),
    ):
        (tmp_path / "model.json").write_text(json.dumps({**card, **changes}), "utf-8")
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "small-cnn"}, r"'small-cnn', dim=6, channels=3\), .* got '\S+' of \["),
        (
            {"dim": 7},
            r"got 'head\.bias' of \[6\] where that has \[7\]; keep an encoder of your own",
        ),
        ({"channels": 1}, r"of \[12, 3, 3, 3\] where that has \[12, 1, 3, 3\]"),
        ({"name": "my-net"}, "encoder: expected one of .*'tiny-cnn'.*, got 'my-net'"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(trained, tmp_path, changes, message):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as caught:
        save(tmp_path / "model", trained, **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
    assert torch.equal(torch.get_rng_state(), state)


def test_an_encoder_of_ones_own_is_not_saved(tmp_path):
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6))
    with pytest.raises(ValueError, match=r"got '1\.bias' of \[6\] where that has nothing"):
        save(tmp_path / "model", own)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["resnet18", "resnet50-large-images", "feature-head"])
def test_every_kind_of_encoder_is_saved_and_loaded(name, tmp_path):
    save(tmp_path, build_encoder(name, dim=6, channels=3), name=name)
    assert load_model(tmp_path)[1].encoder == name


@pytest.mark.parametrize("asked", [torch.Tensor.item, torch.Tensor.numpy, np.asarray])
def test_a_constructor_may_ask_a_tensor_for_its_values(tmp_path, monkeypatch, asked):
    # As timm's vit, convnext and swin do: drop_path = [x.item() for x in torch.linspace(...)].
    def build(dim, channels):
        return SmallCnn(dim, channels, width=int(asked(torch.linspace(4.0, 8.0, 2)[1])))

    monkeypatch.setitem(encoders._BUILDERS, "asking", build)
    encoder = build_encoder("asking", dim=6, channels=3)
    state = torch.get_rng_state()
    save(tmp_path, encoder, name="asking")
    assert torch.equal(torch.get_rng_state(), state)
    loaded, _ = load_model(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(images), encoder.eval()(images))
    with pytest.raises(ValueError, match=r"of \[8, 3, 3, 3\] where that has \[8, 1, 3, 3\]"):
        save(tmp_path / "other", encoder, name="asking", channels=1)


def test_a_class_name_that_is_no_line_leaves_no_classifier(tmp_path):
    for name in ("t\nwo", "two\r", " ", "\ufefftwo"):
        save_classifier(tmp_path, torch.eye(2), ["one", name])
        assert not list(tmp_path.iterdir())
    save_classifier(tmp_path, torch.eye(2), ["one", "t\u2028wo"])
    assert np.array_equal(np.load(tmp_path / "classifier.npy"), np.eye(2, dtype=np.float32))
    assert (tmp_path / "classes.txt").read_text("utf-8") == "one\nt\u2028wo\n"


def test_the_quick_start_makes_the_store_of_the_command(work, photos, tmp_path, monkeypatch):
    shutil.copytree(work / "new", tmp_path / "runs" / "new")
    shutil.copytree(photos, tmp_path / "photos" / "test")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", QUICK_START.read_text("utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "quickstart", "exec"), names)
    made, by_command = FeatureStore.open("stores/new-test"), FeatureStore.open(work / "new-store")
    assert made.fingerprint == by_command.fingerprint
    assert made.manifest.keys() == by_command.manifest.keys()
    assert made.ids == by_command.ids
    assert np.array_equal(made.features, by_command.features)
