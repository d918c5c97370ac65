# SPDX-License-Identifier: Apache-2.0
"""Tables for people: nothing of a number is cut, in a file or in a narrow terminal."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from fclearn.cli import main
from fclearn.cli.console import draw
from fclearn.evaluation import compatibility_report, render_table
from fclearn.methods import METHODS

CELLS = ["indep./indep.", "57.9 [55.5, 60.4]", "−423.5 [−850.0, −236.0]"]
LONG = "a/name/without/any/space/that/could/part/it" * 3


class Terminal(io.StringIO):
    def isatty(self):
        return True


def table():
    made = Table(title="Metrics in %", caption="500 queries")
    made.add_column("query/gallery", no_wrap=True)
    for name in ("mAP", "CMC@1"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_row(*CELLS)
    made.add_row(LONG, *CELLS[1:])
    return made


def drawn(monkeypatch, stream, columns, **more):
    monkeypatch.setattr("sys.stdout" if more.get("stdout") else "sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", str(columns))
    draw(table(), **more)
    return stream.getvalue()


@pytest.mark.parametrize("stdout", [False, True])
@pytest.mark.parametrize("columns", [20, 80])
def test_a_file_gets_whole_rows(monkeypatch, columns, stdout):
    monkeypatch.setenv("FORCE_COLOR", "1")  # colours, but still no terminal
    lines = drawn(monkeypatch, io.StringIO(), columns, stdout=stdout).splitlines()
    assert any(all(cell in line for cell in CELLS) for line in lines)
    assert any(LONG in line for line in lines)


@pytest.mark.parametrize("columns", [24, 40, 60, 80])
def test_a_terminal_folds_what_is_too_wide(monkeypatch, columns):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    text = drawn(monkeypatch, Terminal(), columns)
    assert "…" not in text
    lines = [line for line in text.splitlines() if line.startswith("│")]
    assert max(map(len, lines)) <= columns
    # A column read downwards is its cells, one after the other.
    parts = zip(*(line.strip("│").split("│") for line in lines), strict=True)
    found = ["".join("".join(column).split()) for column in parts]
    whole = [CELLS, [LONG, *CELLS[1:]]]
    assert found == ["".join("".join(cells).split()) for cells in zip(*whole, strict=True)]


def test_the_table_of_a_report_folds_wherever_it_is_printed():
    rows = np.eye(2, dtype=np.float32)
    report = compatibility_report(
        old_query=rows, old_gallery=rows, new_query=rows, query_labels=[0, 1],
        gallery_labels=[0, 1], num_bootstrap=10,
    )  # fmt: skip
    stream = io.StringIO()
    Console(file=stream, width=50).print(render_table(report))
    assert "…" not in stream.getvalue()
    assert "100.0]" in stream.getvalue()


def test_methods_are_listed_whole(capsys):
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    for spec in METHODS.values():
        assert all(f" {key}=" in text for key in spec.defaults)
