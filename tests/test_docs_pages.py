# SPDX-License-Identifier: Apache-2.0
"""Generated pages say what the registry and the committed results say."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

import docs_pages
from fclearn.cli import app
from fclearn.experiments.records import load_records
from fclearn.experiments.summary import summarise
from fclearn.methods import METHODS

ROOT = Path(__file__).parents[1]
ICONS = ROOT / "bench" / "results" / "methods" / "icons"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    docs_pages.write_pages(folder)
    return folder


def test_every_method_has_notes_and_nothing_else_has():
    notes = {path.stem for path in docs_pages.NOTES.glob("*.md")}
    assert notes == set(METHODS)
    for path in docs_pages.NOTES.glob("*.md"):
        headings = re.findall(r"^## (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Formula", "When to use it"]


@pytest.mark.parametrize("name", METHODS)
def test_a_page_per_method(name, pages):
    text = (pages / "methods" / f"{name}.md").read_text(encoding="utf-8")
    spec = METHODS[name]
    assert spec.idea in text.replace("\\|", "|")
    assert spec.source in text
    assert all(need.value in text for need in spec.needs)
    assert all(f"`{key}`: {value}" in text for key, value in spec.defaults.items())
    found = [m for m in summarise(load_records(ICONS)).methods if m.name == name]
    if not found:
        assert "Not yet" in text
        return
    value = found[0].estimates["new/old", "map"].value
    assert f"| mAP, new queries in the old gallery (n/o) | {100 * value:.1f} [" in text


def test_index_lists_all_methods(pages):
    text = (pages / "methods" / "index.md").read_text(encoding="utf-8")
    assert all(f"[{name}]({name}.md)" in text for name in METHODS)


@pytest.mark.parametrize("name", ["cpu.json", "cpu_xeon.json"])
def test_performance_has_every_measurement(name, pages):
    text = (pages / "performance.md").read_text(encoding="utf-8")
    results = json.loads((docs_pages.RESULTS / name).read_text(encoding="utf-8"))
    for row in results["benchmarks"]:
        line = f"| {row['group']} | {row['peer']} | {1e3 * row['seconds']:.3g} |"
        assert line in text
        if "ratio" in row:
            assert any(
                one.startswith(line) and f"| {row['ratio']:.2f} |" in one
                for one in text.splitlines()
            )


def test_memory_over_many_steps(pages):
    text = (pages / "performance.md").read_text(encoding="utf-8")
    results = json.loads((docs_pages.RESULTS / "endurance.json").read_text(encoding="utf-8"))
    assert results
    for name, row in results.items():
        assert f"| {name} | {row['steps']:,} | {row['growth_mb']:.2f} |" in text


def test_pages_that_did_not_change_are_not_written(pages):
    path = pages / "performance.md"
    before = path.stat().st_mtime_ns
    docs_pages.write_pages(pages)
    assert path.stat().st_mtime_ns == before


def _commands():
    """Every ``fcl`` line of the pages' shell blocks, with its page."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            if line.strip().startswith("fcl "):
                yield pytest.param(
                    line.split("#")[0].strip(), id=f"{page.name}: {line.strip()[:60]}"
                )


@pytest.mark.parametrize("line", list(_commands()))
def test_commands_of_the_pages_have_the_options_they_name(line):
    words = shlex.split(line)
    verb = typer.main.get_command(app).commands[words[1]]
    known = {name for option in verb.params for name in (*option.opts, *option.secondary_opts)}
    named = [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
    assert set(named) <= known
    needed = {option.opts[0] for option in verb.params
              if option.required and option.param_type_name == "option"}  # fmt: skip
    assert needed <= set(named)
