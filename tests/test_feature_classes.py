# SPDX-License-Identifier: Apache-2.0
"""One rule says what rows of stores are of: by itself, and the same by every verb."""

from __future__ import annotations

import numpy as np
import pytest

from fclearn.features import FeatureStore, Fingerprint
from fclearn.features.classes import COLUMNS, NoClassError, row_classes, row_labels

ROWS, CLASSES, DIM = 192, 24, 8
NAMES = [f"class {row % CLASSES:02}" for row in range(ROWS)]
NUMBERS = [row % CLASSES // 2 for row in range(ROWS)]  # each of two classes: another truth


def store(path, model="m", rows=None, file_format="csv", **columns):
    count = len(next(iter(columns.values()), [0, 1]))
    rows = np.eye(count, 3, dtype=np.float32) if rows is None else rows
    manifest = {"id": [f"i{n}" for n in range(len(rows))], **columns}
    fingerprint = Fingerprint(model, rows.shape[1], norm="none")
    return FeatureStore.write(path, rows, manifest, fingerprint, file_format)


def test_the_first_column_that_all_have(tmp_path):
    columns = {"labels": ["x|y", "z"], "class_name": ["a", "b"], "label": [3, 4]}
    expected = {"labels": [{"x", "y"}, {"z"}], "class_name": ["a", "b"], "label": [3, 4]}
    whole = store(tmp_path / "whole", **columns)
    assert row_labels(whole) == [expected["labels"]]
    for at, name in enumerate(COLUMNS):
        less = store(tmp_path / name, **{key: columns[key] for key in COLUMNS[at:]})
        for found in row_labels(whole, less):
            assert list(found) == expected[name]


@pytest.mark.parametrize(
    ("file_format", "cells"),
    [("csv", ["b|a", "a", ""]), ("parquet", [["a", "b"], ["a"], []]), ("parquet", [7, 8, 7])],
)
def test_labels_in_either_kind_of_manifest(file_format, cells, tmp_path):
    (found,) = row_labels(store(tmp_path / "s", file_format=file_format, labels=cells))
    assert found == ([{"7"}, {"8"}, {"7"}] if cells[0] == 7 else [{"a", "b"}, {"a"}, set()])


def test_one_class_for_each_row(tmp_path):
    single = store(tmp_path / "single", labels=["b", "a", "b"])
    assert row_classes(single)[0].tolist() == ["b", "a", "b"]
    numbers = row_classes(store(tmp_path / "numbers", label=[5, 3]))[0]
    assert numbers.dtype == np.int64
    several = store(tmp_path / "several", labels=["a", "a|b"], label=[0, 1])
    message = "one class for each row, or --x; found 2 in column 'labels' of row 'i1'"
    with pytest.raises(NoClassError, match=message):
        row_classes(several, instead="--x")
    with pytest.raises(NoClassError, match="bare: expected a column 'labels', 'class_name' or"):
        row_labels(numbered := store(tmp_path / "n", label=[0, 1]), store(tmp_path / "bare"))
    named = store(tmp_path / "named", class_name=["a", "b"])
    with pytest.raises(NoClassError, match=r"the same one; found label in .*n, class_name in .*d$"):
        row_labels(numbered, named)


def metrics_of(answer):
    """Numbers of every way of an answer, but not how long they took."""
    if isinstance(answer, float):
        return answer
    ways = answer.values() if isinstance(answer, dict) else answer
    return [way["metrics"] for way in ways]


def verbs(folder):
    """Each verb that asks for classes, and what of its answer depends on them."""
    pair = ["--old", folder / "old", "--new", folder / "new"]
    gallery = ["--old-features", folder / "old", "--new-features", folder / "new"]
    few = ["--num-bootstrap", 10]
    return {
        "eval": (["--query", folder / "old", *few], "map"),
        "probe": ([*pair, "--adapters", "ridge", "--budget", 0, *few], "ways"),
        "plan": ([*gallery, "--out", folder / "plan", "--num-random", 2, *few], "ways"),
        "adapt": ([*pair, "--adapter", "ridge", "--out", folder / "a.safetensors"], "check"),
    }


@pytest.mark.parametrize("verb", ["eval", "probe", "plan", "adapt"])
def test_every_verb_goes_by_the_same_column(verb, fcl, tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, DIM))
    names = {"class_name": NAMES}
    numbers = {"label": NUMBERS}
    single, several = {"labels": NAMES}, {"labels": [f"{n}|x" for n in NAMES]}
    answers = {}
    rows = {
        side: (centres[np.arange(ROWS) % CLASSES] + rng.standard_normal((ROWS, DIM))).astype("f4")
        for side in ("old", "new")
    }
    for case, columns in {
        "names": names,
        "numbers": numbers,
        "names first": {**numbers, **names},
        "single first": {**numbers, "class_name": NAMES[::-1], **single},
        "several": {**numbers, **names, **several},
    }.items():
        folder = tmp_path / case
        for side, found in rows.items():
            store(folder / side, side, found, **columns)
        given, key = verbs(folder)[verb]
        code, result, error = fcl(verb, *given, "--json")
        if case == "several" and verb != "eval":
            assert code == 2
            assert "expected one class for each row, or " in error
            assert error.endswith("; found 2 in column 'labels' of row 'i0'\n")
        else:
            assert code == 0, error
            answers[case] = metrics_of(result[key])
    assert answers["names"] == answers["names first"] == answers["single first"]
    assert answers["names"] != answers["numbers"]


def test_a_plan_by_judgements_needs_no_classes(fcl, tmp_path):
    rng = np.random.default_rng(0)
    for side in ("old", "new"):
        rows = rng.standard_normal((ROWS, DIM)).astype("f4")
        store(tmp_path / side, side, rows, labels=["a|b"] * ROWS)
        store(tmp_path / f"q-{side}", side, rows[:20] + np.float32(0.1))
    (tmp_path / "judged.txt").write_text("".join(f"i{n} 0 i{n} 1\n" for n in range(20)))
    given, _ = verbs(tmp_path)["plan"]
    given += ["--old-query", tmp_path / "q-old", "--new-query", tmp_path / "q-new"]
    given += ["--qrels", tmp_path / "judged.txt"]
    code, _, error = fcl("plan", *given, "--order", "centrality")
    assert code == 0, error
    code, _, error = fcl("plan", *given, "--order", "margin", "--replace")
    assert code == 2
    assert "order 'margin' needs labels, --labels or one class for each row" in error
