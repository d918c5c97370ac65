# SPDX-License-Identifier: Apache-2.0
"""Write a report's files; write them again from ``report.json``."""

from __future__ import annotations

import csv
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fclearn.evaluation import CompatibilityReport
from fclearn.report._figures import curve_figure, examples_figure, gain_figure
from fclearn.report._files import damage_said, dump, load, with_facts, write_files
from fclearn.report._page import render
from fclearn.report._pictures import StoredExample, as_data_uri, checked, store
from fclearn.report.examples import RetrievalExample
from fclearn.report.items import Items, replace_per_query

#: Columns of a history that are drawn: title, factor, file.
_CURVES = {
    "loss_new": ("Loss of the new classifier", 1.0, "training_loss_new.png"),
    "loss_compat": ("Compatibility loss", 1.0, "training_loss_compat.png"),
    "accuracy": ("Training accuracy, %", 100.0, "training_accuracy.png"),
}
_EXAMPLES_FILE = "retrieval_examples.json"

#: A history: rows of ``history.csv``, or the path of one.
History = str | os.PathLike[str] | Sequence[Mapping[str, float]]


def write_report(
    output_dir: str | os.PathLike[str],
    *,
    report: CompatibilityReport,
    histories: Mapping[str, History] | None = None,
    retrieval_examples: Sequence[RetrievalExample] = (),
    facts: Mapping[str, object] | None = None,
    items: Items | None = None,
) -> dict[str, object]:
    """Write ``report.html`` (one file that needs nothing else), ``report.json`` and pictures.

    Args:
        output_dir: Folder; made if needed. Files of an earlier report are replaced.
        report: The numbers.
        histories: By model (``"old"``, ``"independent"``, ``"new"``): a ``history.csv`` of a
            `Trainer`, or its rows.
        retrieval_examples: Queries to look at, from `make_examples`.
        facts: What else to say, JSON values. ``title``, ``data``, ``command``, ``config``,
            ``versions`` and ``seed`` have their places; others are listed by name.
        items: What was measured on, from `describe_items`; then the values of every query are
            kept, too, and the report can stand beside others.

    Returns:
        The content of ``report.json``: ``report.to_dict()``, the facts and the histories.

    Raises:
        OSError: The folder cannot be written, or a history cannot be read.
        ValueError: A fact under a name the report uses itself, a history without epochs, an image
            that is not one.
        TypeError: A fact that JSON cannot hold.

    Example:
        >>> import numpy as np
        >>> from fclearn import compatibility_report, write_report
        >>> rows = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
        >>> labels = np.arange(30) % 3
        >>> report = compatibility_report(old_query=rows, old_gallery=rows, new_query=rows,
        ...                               query_labels=labels, gallery_labels=labels)
        >>> content = write_report("runs/example", report=report, facts={"title": "Example"})
        >>> Path("runs/example/report.html").stat().st_size > 10_000
        True
    """
    numbers = report.to_dict()
    numbers["histories"] = {
        name: _columns(name, history) for name, history in (histories or {}).items()
    }
    if items is not None:
        numbers["items"] = items.to_dict()
    data = with_facts(numbers, facts)
    folder, examples = Path(output_dir), store(retrieval_examples)
    replace_per_query(folder, items, report.per_query)
    _write(folder, data, examples)
    return data


def rebuild_report(run_dir: str | os.PathLike[str]) -> dict[str, object]:
    """Write the page and the pictures again from ``report.json`` and the stored examples.

    Args:
        run_dir: Folder of an earlier `write_report`.

    Returns:
        The content of ``report.json``.

    Raises:
        FileNotFoundError: No ``report.json`` there.
        ValueError: Not the files of a report.
    """
    folder = Path(run_dir)
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(f"{folder}: expected the folder of a report, found no report.json")
    data: dict[str, object] = load(folder / "report.json")
    stored: object = []
    if (folder / _EXAMPLES_FILE).is_file():
        stored = load(folder / _EXAMPLES_FILE)
    with damage_said(f"{folder}: report.json or {_EXAMPLES_FILE} is not that of a report"):
        examples = checked(stored)
        _write(folder, data, examples)
    return data


def _write(folder: Path, data: dict[str, Any], examples: list[StoredExample]) -> None:
    gain = gain_figure(data["matrix"], data["intervals"], data["update_gain"], data["primary"])
    files = {"update_gain.png": gain}
    curves = {}
    for column, (title, factor, name) in _CURVES.items():
        figure = curve_figure(data["histories"], column, title, factor)
        if figure is not None:
            files[name], curves[title] = figure, as_data_uri(figure)
    if examples and all(example["image"] for example in examples):
        with warnings.catch_warnings():
            # Class names may be in a script that the font lacks; the page shows them in full.
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
            files["retrieval_examples.png"] = examples_figure(examples)
    page = render(data, examples, as_data_uri(gain), curves)
    files[_EXAMPLES_FILE] = dump(examples)
    files["report.json"] = dump(data)
    files["report.html"] = page.encode()  # last: who finds it finds the others
    write_files(folder, files)


def _columns(name: str, history: History) -> dict[str, list[float | None]]:
    """A history as columns, numbers that are not finite as None."""
    rows: Sequence[Mapping[str, float | str | None]]
    if isinstance(history, str | os.PathLike):
        with Path(history).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = history
    columns: dict[str, list[float | None]] = {}
    for number, row in enumerate(rows):
        for key, value in row.items():
            try:
                parsed = math.nan if value in {None, ""} else float(value or 0)
            except ValueError as error:
                raise ValueError(
                    f"histories: {name!r}, row {number}: expected a number for {key}, got {value!r}"
                ) from error
            columns.setdefault(key, []).append(parsed if math.isfinite(parsed) else None)
    if rows and "epoch" not in columns:
        raise ValueError(f"histories: {name!r} has no column 'epoch', only {', '.join(columns)}")
    return columns
