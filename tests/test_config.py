# SPDX-License-Identifier: Apache-2.0
"""Configurations: yaml, overrides, and what is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fclearn.cli.upgrade_config import UpgradeRunConfig
from fclearn.config import (
    DataConfig,
    EncoderConfig,
    MethodConfig,
    TrainRunConfig,
    dump_config,
    load_config,
)
from fclearn.training import TrainConfig


def load(text="", *overrides, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(TrainRunConfig, path, overrides)


def test_defaults_then_file_then_overrides(tmp_path):
    text = "train:\n  epochs: 3\n  seed: 7\nencoder:\noutput: runs/x\n"
    config = load(text, "train.epochs=5", "method.settings.scale=12", tmp_path=tmp_path)
    assert config.train == TrainConfig(epochs=5, seed=7)
    assert config.encoder == EncoderConfig()  # a section without lines
    assert config.method == MethodConfig("ni-fcl", {"scale": 12})
    assert config.output == "runs/x"
    with pytest.raises(FrozenInstanceError):
        config.output = "elsewhere"


def test_an_override_changes_one_place_of_an_alias(tmp_path):
    (tmp_path / "c.yaml").write_text("old: {train: &train {epochs: 9}}\nnew: {train: *train}\n")
    config = load_config(UpgradeRunConfig, tmp_path / "c.yaml", ["new.train.epochs=2"])
    assert (config.old.train.epochs, config.new.train.epochs) == (9, 2)


def test_nothing_gives_the_defaults():
    assert load_config(TrainRunConfig) == TrainRunConfig()


def test_values_of_overrides_are_yaml():
    config = load_config(
        TrainRunConfig,
        overrides=[
            "train.learning_rate=1e-3",
            "train.weight_decay=1",
            "data.grey=true",
            "data.classes=[heart, home]",
            "old_features=null",
            "method.settings={walk: global, k: 5, damping: 0.8}",
            "method.settings.k=6",
            "output=a=b",
        ],
    )
    assert config.train.learning_rate == 0.001
    assert config.train.weight_decay == 1.0
    assert isinstance(config.train.weight_decay, float)
    assert config.data.grey is True
    assert config.data.classes == ("heart", "home")
    assert config.method.settings == {"walk": "global", "k": 6, "damping": 0.8}
    assert config.output == "a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=5", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("epochs=5", "unknown key 'epochs'; did you mean 'train.epochs'?"),
        ("encoder.dims=5", "unknown key 'encoder.dims'; did you mean 'encoder.dim'?"),
        ("encoder.zzz=5", "unknown key 'encoder.zzz'; expected one of 'encoder.name', 'encod"),
        ("dat.kind=icons", "unknown key 'dat'; did you mean 'data'?"),
        ("train.epochs=many", "train.epochs: expected an integer, got 'many' (text)"),
        ("train.epochs=2.5", "train.epochs: expected an integer, got 2.5 (a number)"),
        ("train.epochs=true", "train.epochs: expected an integer, got true"),
        ("train.epochs=0", "train.epochs: expected at least 1, got 0"),
        ("train.epochs.more=1", "train.epochs: expected an integer, got {'more': 1}"),
        ("train.learning_rate=.nan", "train.learning_rate: expected a number, got nan"),
        ("train.learning_rate=fast", "train.learning_rate: expected a number, got 'fast' (text)"),
        ("train.augment=1", "train.augment: expected true or false, got 1 (an integer)"),
        ("train=5", "train: expected a mapping of keys, got 5 (an integer)"),
        ("train.optimizer=adam", "train.optimizer: expected 'adamw' or 'sgd', got 'adam'"),
        ("output=404", "output: expected text, got 404 (an integer)"),
        ("output=null", "output: expected text, got null"),
        ("old_features=3", "old_features: expected text or null, got 3 (an integer)"),
        ("data.kind=photos", "data.kind: expected one of 'icons', 'folder', 'manifest', 'fash"),
        ("data.kind=folder", "data.path: expected the path of the folder, got None"),
        ("data.path=x", "data.path: icons are drawn from a package and take none: 'x'"),
        ("data.size=4", "data.size: expected at least 8 pixels, got 4"),
        ("data.classes=heart", "data.classes: expected a list, each item text or null, got 'he"),
        ("data.classes=[1]", "data.classes: expected a list, each item text or null, got [1]"),
        ("data.classes=[]", "data.classes: expected at least one name, or null for all"),
        ("data.augmentation=photos", "data.augmentation: photos are files, and icons has none"),
        ("data.short_side=64", "data.short_side: expected null, icons has images of one size"),
        ("data.class_share=0", "data.class_share: expected a number in (0, 1], got 0"),
        ("encoder.dim=0", "encoder.dim: expected at least 1, got 0"),
        ("method.settings={scale: [1]}", "method.settings: expected a mapping, each value an int"),
        ("method.settings={1: 2}", "method.settings: expected a mapping, each value an integer"),
        ("train.epochs", "override: expected key=value, as in train.epochs=5, got 'train.epochs'"),
        ("=5", "override: expected key=value"),
        ("train..epochs=5", "override: expected key=value"),
        ("output=[1", "override 'output=[1': not valid yaml: "),
        ("output=!!python/name:os.system", "not valid yaml: could not determine a constructor"),
    ],
)
def test_refusals_name_the_key(override, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        load_config(TrainRunConfig, overrides=[override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "expected a mapping of keys, got [1]"),
        ("train: {epochs: 1", "not valid yaml"),
        ("train:\n  epochs: 1\n  epochs: 2\n", "key 'epochs' is given twice"),
        ("? [a]\n: 1\n", "not valid yaml"),
        ("1: 2\n", "unknown key '1'"),
        ("train:\n  epoch: 1\n", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
    ],
)
def test_refused_files(text, message, tmp_path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message is checked)
        load(text, tmp_path=tmp_path)
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_config(TrainRunConfig, tmp_path / "none.yaml")


@given(
    epochs=st.integers(1, 10**6),
    rate=st.floats(1e-12, 1e12),
    augment=st.booleans(),
    classes=st.none() | st.lists(st.text(), min_size=1).map(tuple),
    overrides=st.dictionaries(
        st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    ),
    output=st.text(),
)
def test_what_is_dumped_is_read_back(
    tmp_path_factory, epochs, rate, augment, classes, overrides, output
):
    config = TrainRunConfig(
        data=DataConfig(classes=classes),
        method=MethodConfig("l2", overrides),
        train=TrainConfig(epochs=epochs, learning_rate=rate, augment=augment),
        output=output,
    )
    path = tmp_path_factory.mktemp("dump") / "args.yaml"
    path.write_text(dump_config(config), encoding="utf-8", newline="")
    assert load_config(TrainRunConfig, path) == config


@pytest.mark.parametrize(
    "text", ["1e3", "1E-3", ".5e1", "0x1f", "yes", "null", "2024-01-01", "a: b"]
)
def test_text_that_looks_like_something_else_stays_text(text, tmp_path):
    config = TrainRunConfig(output=text)
    path = tmp_path / "args.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(TrainRunConfig, path).output == text


def test_only_instances_are_dumped():
    with pytest.raises(TypeError, match="expected a dataclass instance, got type"):
        dump_config(TrainRunConfig)
