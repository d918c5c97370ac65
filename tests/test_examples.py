# SPDX-License-Identifier: Apache-2.0
"""The examples run, and show what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from torchrun import torchrun

FOLDER = Path(__file__).parents[1] / "examples"


def run(name):
    return runpy.run_path(str(FOLDER / name))["main"]()


def test_own_training_loop():
    found = run("own_training_loop.py")
    assert found["new/old"] > found["old/old"] + 0.02
    assert found["new/new"] > found["new/old"]


def test_text_api_upgrade():
    found = run("text_api_upgrade.py")
    assert found["through a head"] > 1.5 * found["new queries as they are"]
    assert found["through Procrustes"] > 1.5 * found["new queries as they are"]


def test_faiss_gallery():
    pytest.importorskip("faiss")
    found = run("faiss_gallery.py")
    before, after = found.values()
    assert after > before


def test_torchrun_training():
    """Two processes show what the page promises, and what one process shows."""
    found = []
    for processes in (1, 2):
        output = torchrun(processes, FOLDER / "torchrun_training.py").stdout
        found.append(
            {name: float(x) for name, x in re.findall(r"^(.+?):.* ([\d.]+)$", output, re.M)}
        )
    for one in found:
        assert one["new/old"] > one["old/old"] + 2
    assert found[0]["loss of the last epoch"] == pytest.approx(
        found[1]["loss of the last epoch"], rel=1e-3
    )


def test_every_example_has_a_test():
    text = Path(__file__).read_text(encoding="utf-8")
    for path in FOLDER.glob("*.py"):
        assert f'"{path.name}"' in text
