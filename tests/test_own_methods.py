# SPDX-License-Identifier: Apache-2.0
"""A method of one's own: registered from a module, found by the command."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from cli_samples import refused, train
from experiment_samples import CONFIG
from training_samples import DIM, make_trainer

from fclearn.cli import main
from fclearn.diagnosis import ENVIRONMENT
from fclearn.experiments import settings, sources
from fclearn.experiments.table import TABLE
from fclearn.methods import METHODS, Assets, build_method, get_method, register

PAGE = Path(__file__).parents[1] / "docs" / "own_method.md"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    """What a test registers and imports is not there for others."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    with patch.dict(METHODS), patch.dict(sys.modules):
        yield


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The module of the page in the working directory, named by the variable."""
    (source,) = re.findall(r"```python\n(\"\"\"My InfoNCE.*?)```", PAGE.read_text("utf-8"), re.S)
    (tmp_path / "my_nce.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCL_METHODS", " my_nce,")


@pytest.mark.usefixtures("module")
def test_the_command_explains_it_and_trains_by_it(fcl, work, photos, tmp_path):
    _, found, _ = fcl("methods", "my-nce", "--json")
    assert found["idea"].startswith("My InfoNCE")
    assert found["settings"]["scale"] == 20
    assert found["needs"] == ["labels", "feature_cache"]
    _, everything, _ = fcl("methods", "--json")
    assert [one["name"] for one in everything["methods"]] == [*METHODS]
    more = ["--method", "my-nce", "train.epochs=1"]
    assert refused(fcl(*train(photos, tmp_path / "run", *more)), "old_features", "'my-nce' needs")
    more += [f"old_features={work}/old-store", "method.settings.scale=10"]
    code, result, _ = fcl(*train(photos, tmp_path / "run", *more), "--json")
    assert code == 0
    assert result["epochs"] == 1
    assert "loss_compat" in (tmp_path / "run" / "history.csv").read_text(encoding="utf-8")
    assert "scale: 10" in (tmp_path / "run" / "args.yaml").read_text(encoding="utf-8")


@pytest.mark.usefixtures("module")
def test_its_loss_says_what_it_looks_up(bars, monkeypatch):
    monkeypatch.syspath_prepend(Path.cwd())
    importlib.import_module("my_nce")
    features = torch.randn(len(bars) - 1, 4)
    labels = torch.from_numpy(bars.labels)[:-1]
    new, compat = build_method("my-nce", Assets(labels, old_features=features), DIM)
    with pytest.raises(
        ValueError,
        match=r"losses\[1\]: expected 48 rows, .* in the features of BatchNceLoss, got 47",
    ):
        make_trainer(bars, losses=[replace(one, labels=None) for one in (new, compat)])


@pytest.mark.usefixtures("module")
def test_the_script_and_an_upgrade_find_it(tmp_path):
    """A script has its own folder on its path, not the working directory."""
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
    script = tmp_path / "bin" / "fcl"
    script.parent.mkdir()
    script.write_text("import sys\nfrom fclearn.cli import main\nsys.exit(main())\n")
    done = subprocess.run(
        [sys.executable, str(script), "upgrade", f"data.path={tmp_path}", "methods=[my-nce]",
         "--dry-run"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "my-nce" in done.stderr


@pytest.mark.usefixtures("module")
def test_it_is_compared_with_the_others(fcl, pattern_images, tmp_path, monkeypatch):
    monkeypatch.setitem(settings.DEFAULTS, "icons", CONFIG)
    monkeypatch.setattr(sources, "load_icons", lambda: pattern_images)
    bench = ("bench-methods", "--out", str(tmp_path / "compared"))
    code, result, _ = fcl(*bench, "--methods", "independent,my-nce", "--json")
    assert code == 0
    assert [run["config"]["method"] for run in result["runs"]] == ["independent", "my-nce"]
    assert result["runs"][1]["config"]["settings"]["scale"] == 20
    # A table is made of what the runs wrote: whoever has no module of the method makes it, too.
    monkeypatch.setenv("FCL_METHODS", "not_there")
    assert fcl(*bench, "--table")[0] == 0
    assert "my-nce" in (tmp_path / "compared" / TABLE).read_text(encoding="utf-8")


@pytest.mark.usefixtures("module")
def test_a_chain_of_models_is_trained_by_it(fcl, pattern_images, tmp_path, monkeypatch):
    monkeypatch.setattr("fclearn.datasets.load_icons", lambda: pattern_images)
    few = ("--quick", "--classes", "3,8", "--encoders", "tiny-cnn,tiny-cnn", "--dims", "6,8")
    code, result, _ = fcl(
        "bench-chain", "--methods", "my-nce", "--out", str(tmp_path / "chain"), *few, "--json"
    )
    assert code == 0
    assert [report["method"] for report in result["chains"]] == ["my-nce"]


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (None, "ModuleNotFoundError: No module named 'my_broken'"),
        ("def (", "SyntaxError: "),
        ("from fclearn import nothing_like_it", "ImportError: cannot import name"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        (
            "from fclearn.methods import get_method, register\nregister(get_method('l2'))",
            "ValueError: name: expected one that no method has yet, got 'l2'",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["train", "methods", "upgrade", "bench-methods", "bench-chain"])
def test_a_module_that_fails_is_one_line(fcl, tmp_path, monkeypatch, source, part, verb):
    if source is not None:
        (tmp_path / "my_broken.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCL_METHODS", "my_broken")
    assert refused(fcl(verb), "FCL_METHODS: module 'my_broken' cannot be imported: ", part)


def test_other_verbs_do_not_mind(fcl, monkeypatch):
    monkeypatch.setenv("FCL_METHODS", "not_there")
    code, result, _ = fcl("doctor", "--json")
    assert code == 0
    assert result["environment"]["FCL_METHODS"] == "not_there"
    assert "own_method.md" in ENVIRONMENT["FCL_METHODS"]


def test_a_registered_method_is_built_and_refused_like_any_other():
    bare = replace(get_method("l2"), name="my-l2", defaults={"weight": 2.0}, build=lambda *_: [])
    register(bare)
    assert get_method("my-l2") is bare
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="method 'my-l2' needs the old model's features"):
        build_method("my-l2", Assets(labels), 4)
    assets = Assets(labels, old_features=torch.eye(2))
    with pytest.raises(ValueError, match="no setting 'wait'; did you mean 'weight'"):
        build_method("my-l2", assets, 4, wait=1.0)
    assert build_method("my-l2", assets, 4) == []


def test_settings_without_those_of_the_new_classifier_are_listed(capsys):
    register(replace(get_method("l2"), name="my-l2", defaults={"weight": 2.0}))
    assert main(["methods"]) == 0
    assert main(["methods", "my-l2"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("  weight=2.0")


JOINERS = ("-", "_", ".")


@pytest.mark.parametrize(
    "name",
    ["", "My-NCE", "a b", "a/b", "..", "old", *(f"{one}a" for one in JOINERS), "a-_b", "a+b"],
)
def test_names_that_cannot_be_folders_are_refused(name):
    with pytest.raises(
        ValueError,
        match=r"name: expected words of a-z and 0-9, joined by '-', '_' or '\.', .* got ",
    ):
        register(replace(get_method("l2"), name=name))


def test_names_are_joined_as_the_page_says():
    assert "joined by `-`, `_` or `.`" in PAGE.read_text("utf-8")
    for one in JOINERS:
        register(replace(get_method("l2"), name=f"my{one}l2{one}3"))
        assert f"my{one}l2{one}3" in METHODS


def test_what_is_no_method_is_refused():
    with pytest.raises(TypeError, match="spec: expected a MethodSpec, got str"):
        register("my-nce")
    spec = replace(get_method("l2"), name="my-l2", defaults={"layers": [1, 2]})
    with pytest.raises(TypeError, match=r"defaults: expected layers to be .* got \[1, 2\]"):
        register(spec)
    with pytest.raises(ValueError, match="name: expected one that no method has yet, got 'bct'"):
        register(get_method("bct"))
    assert "my-l2" not in METHODS
