# SPDX-License-Identifier: Apache-2.0
"""Everything the documentation shows runs: docstring examples and the README's Python blocks."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import fcl_ext
import fclearn
from fclearn.methods import METHODS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# Done once per graph, on the host; or, on CUDA, by torch's own kernels (fcl_ext/_registrations).
CPU_ONLY = {"class_walk", "graph_prepare", "knn_search", "pack_prototypes", "walk_windows"}

# Modules that cannot be imported without another library.
ENGINES = {"fclearn.integrations.metric_learning": "pytorch_metric_learning"}


def _modules():
    names = []
    for package in (fcl_ext, fclearn):
        names.append(package.__name__)
        names += [
            info.name
            for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
            # Compiled modules and op libraries hold no examples.
            if not info.name.split(".")[-1].startswith(("_C", "lib"))
        ]
    return names


@pytest.mark.parametrize("name", _modules())
def test_doctests(name, tmp_path, monkeypatch):
    if name in ENGINES:
        pytest.importorskip(ENGINES[name])
    monkeypatch.chdir(tmp_path)  # examples may write files
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_public_name_has_a_docstring():
    for package in (fcl_ext, fclearn):
        for name in package.__all__:
            thing = getattr(package, name)
            if callable(thing):
                assert thing.__doc__, f"{package.__name__}.{name} has no docstring"


@pytest.mark.parametrize(
    "name", ["README.md", "docs/evaluation.md", "docs/migration.md", "docs/stores.md"]
)
def test_python_blocks_run(name, tmp_path, monkeypatch):
    """The blocks share one namespace, as a reader who types them in order would."""
    monkeypatch.chdir(tmp_path)
    _run_blocks(name)


def test_python_blocks_of_an_own_method_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with patch.dict(METHODS):  # what the page registers is not there for other tests
        _run_blocks("docs/own_method.md")


@pytest.mark.filterwarnings("ignore")  # of the engines, about themselves
def test_python_blocks_of_integrations_run(tmp_path, monkeypatch):
    for engine in ("sentence_transformers", "datasets", "lightning", "pytorch_metric_learning"):
        pytest.importorskip(engine)
    monkeypatch.chdir(tmp_path)
    _run_blocks("docs/integrations.md")


def _run_blocks(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{name} block {number}", "exec"), namespace)


def test_every_metric_is_documented():
    from fclearn.evaluation import METRIC_NAMES

    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name in METRIC_NAMES:
        assert f"`{name}`" in text


def test_readme_names_the_operators_that_carry_gradients():
    """Those registered with a context to differentiate by; other formulas only raise."""
    sources = (ROOT / "fcl_ext" / "_registrations").glob("*.py")
    pattern = r'register_autograd\(\s*"(\w+)",\s*\w+,\s*setup_context'
    carry = {op for path in sources for op in re.findall(pattern, path.read_text("utf-8"))}
    (said,) = re.findall(r"gradients carry ([^.]*)\.", README.read_text(encoding="utf-8"))
    assert set(re.findall(r"`(\w+)`", said)) == carry


@pytest.mark.parametrize("op", ["compat_loss", "compat_loss_gradients", "pack_prototypes"])
def test_readme_names_the_operators_that_warn_in_backward(op):
    x = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3])
    loss = [x, torch.eye(5, 3), labels, None, 1.0, 0.0, False, 0.0, False, -100, "mean"]
    more = {
        "compat_loss": [*loss, True, False],
        "compat_loss_gradients": loss,
        "pack_prototypes": [x, True],
    }
    first = getattr(torch.ops.fcl, op)(*more[op])[0]
    with pytest.warns(UserWarning, match=f"fcl::{op}: an autograd kernel was not registered"):
        first.sum().backward()
    assert x.grad is None
    assert f"`{op}`" in README.read_text(encoding="utf-8")


def test_readme_links_exist():
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (ROOT / target).exists(), f"README.md links to {target}, which does not exist"


def test_every_op_has_its_files():
    """One stem per operator in every folder (the house rule this layout rests on)."""
    schema = (ROOT / "csrc" / "schema.cpp").read_text(encoding="utf-8")
    ops = set(re.findall(r'^\s+"(\w+)\(', schema, re.MULTILINE))
    stems = {
        re.sub(r"_(backward|gradients|tol|resume|union|backward_rows|segments)$", "", op)
        for op in ops
    }
    assert "softmax_readout" in stems
    for stem in stems:
        assert (ROOT / "csrc" / "ops" / f"{stem}.h").exists()
        assert list((ROOT / "csrc" / "ops" / "cpu").glob(f"{stem}_cpu.cpp"))
        if stem not in CPU_ONLY:
            assert list((ROOT / "csrc" / "ops" / "cuda").glob(f"{stem}*"))
        assert (ROOT / "fcl_ext" / "_registrations" / f"{stem}.py").exists()
        assert (ROOT / "tests" / f"test_{stem}.py").exists()
