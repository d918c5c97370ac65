# SPDX-License-Identifier: Apache-2.0
"""Engines are imported only by who uses them, and a missing one says how to get it."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

ENGINES = (
    "datasets",
    "lightning",
    "pytorch_metric_learning",
    "sentence_transformers",
    "transformers",
)


def test_nothing_imports_integrations_and_these_import_no_engine():
    script = (
        "import sys, fclearn, fclearn.cli, fclearn.methods\n"
        "assert not [m for m in sys.modules if m.startswith('fclearn.integrations')]\n"
        "import fclearn.integrations.sentence_transformers, fclearn.integrations.lightning\n"
        f"assert not set({ENGINES}) & set(sys.modules), sorted(sys.modules)\n"
    )
    path = [entry for entry in sys.path if entry]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}\n{script}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


class Missing:
    """A finder that comes first and does not find the library."""

    def find_spec(self, name, *_):
        if name == "pytorch_metric_learning":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_missing_library_is_named_with_its_command(monkeypatch):
    name = "pytorch_metric_learning"
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "fclearn.integrations.metric_learning", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="pip install pytorch-metric-learning") as caught:
        importlib.import_module("fclearn.integrations.metric_learning")
    assert caught.value.name == name
    assert "\n" not in str(caught.value)
