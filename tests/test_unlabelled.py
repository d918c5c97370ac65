# SPDX-License-Identifier: Apache-2.0
"""Rows without a class are right for nothing and no class of their own, in every verb."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from cli_samples import refused

from fclearn.adapters import load_adapter
from fclearn.backfill import backfill_order
from fclearn.backfill.files import read_labels
from fclearn.cli.alignment import check_labels
from fclearn.features import FeatureStore, Fingerprint
from fclearn.features.classes import (
    NoClassError,
    class_numbers,
    has_class,
    row_classes,
    row_labels,
)
from fclearn.graph import KnnGraph

ROWS, CLASSES, DIM = 160, 16, 8
FEW = ["--num-bootstrap", 10, "--json"]
NAN = float("nan")


def vectors(seed=0):
    """Old and new features of the same items: near, but not the same."""
    rng = np.random.default_rng(seed)
    old = rng.standard_normal((CLASSES, DIM))[np.arange(ROWS) % CLASSES]
    old += rng.standard_normal((ROWS, DIM))
    return {"old": old, "new": old + 0.3 * rng.standard_normal((ROWS, DIM))}


#: Every fourth row of the first half has no class.
UNKNOWN = (np.arange(ROWS) % 4 == 0) & (np.arange(ROWS) < ROWS // 2)
KNOWN = np.flatnonzero(~UNKNOWN)
NAMES = [f"c{row % CLASSES:02}" for row in range(ROWS)]


def columns(kind, rows=range(ROWS)):
    """Classes in one of the columns that can say them, or not."""
    if kind == "label":
        return {"label": [-1 - row if UNKNOWN[row] else row % CLASSES for row in rows]}
    name, none = {
        "empty": ("class_name", ""),
        "None": ("class_name", None),
        "NaN": ("class_name", NAN),
        "labels": ("labels", ""),
    }[kind]
    return {name: [none if UNKNOWN[row] else NAMES[row] for row in rows]}


def write(path, side, kind, rows=None, file_format="csv"):
    rows = np.arange(ROWS) if rows is None else rows
    manifest = {"id": [f"i{row}" for row in rows], **columns(kind, rows)}
    features = vectors()[side][rows].astype(np.float32)
    return FeatureStore.write(
        path, features, manifest, Fingerprint(side, DIM, norm="none"), file_format
    ).path


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
@pytest.mark.parametrize("kind", ["empty", "None", "NaN", "labels", "label"])
def test_what_says_that_a_row_has_no_class(kind, file_format, tmp_path):
    store = FeatureStore.open(write(tmp_path / "s", "old", kind, file_format=file_format))
    (classes,) = row_classes(store)
    assert has_class(classes).tolist() == (~UNKNOWN).tolist()
    assert (
        class_numbers(classes).tolist() == np.where(UNKNOWN, -1, np.arange(ROWS) % CLASSES).tolist()
    )
    (labels,) = row_labels(store)
    expected = [f"c{row % CLASSES:02}" if kind != "label" else f"{row % CLASSES}" for row in KNOWN]
    assert [next(iter(labels[row])) for row in KNOWN] == expected
    assert not any(labels[row] for row in np.flatnonzero(UNKNOWN))


def test_a_store_without_any_class_is_refused(tmp_path):
    rows = np.eye(2, dtype=np.float32)
    for name, cells in (("class_name", ["", None]), ("label", [-1, -7]), ("labels", ["", ""])):
        manifest = {"id": ["a", "b"], name: cells}
        store = FeatureStore.write(tmp_path / name, rows, manifest, Fingerprint("m", 2))
        for ask in (row_classes, row_labels):
            with pytest.raises(NoClassError, match=f"with a class, found none in column '{name}'"):
                ask(store)


@pytest.mark.parametrize("kind", ["empty", "None", "labels", "label"])
def test_eval_counts_them_as_queries_with_nothing_right(kind, fcl, tmp_path):
    """They stay in the gallery, where they are wrong for everyone."""
    whole = write(tmp_path / "whole", "old", kind)
    asked = write(tmp_path / "asked", "old", kind, KNOWN)
    code, result, error = fcl("eval", "--query", whole, *FEW)
    assert code == 0, error
    assert f"{UNKNOWN.sum()} queries have nothing right in the gallery; they count" in error
    assert result["num_skipped"] == UNKNOWN.sum()
    code, expected, error = fcl(
        "eval", "--query", asked, "--gallery", whole, "--exclude-self", *FEW
    )
    assert code == 0, error
    assert result["map"] == pytest.approx(expected["map"], abs=1e-12)
    assert result["num_queries"] == expected["num_queries"] == len(KNOWN)


def test_pairs_have_reports_without_them(fcl, tmp_path):
    sides = [write(tmp_path / side, side, "empty") for side in ("old", "new")]
    folder = tmp_path / "report"
    code, result, error = fcl(
        "eval", "--old-query", sides[0], "--new-query", sides[1], "--report", folder, *FEW
    )
    assert code == 0, error
    assert result["num_skipped"] == UNKNOWN.sum()
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("kind", ["empty", "label"])
def test_decisions_leave_them_out(kind, fcl, tmp_path):
    decide = ["--verify", 0.01, "--identify", 0.1, *FEW]
    query, gallery = np.arange(0, 60), np.arange(60, 128)
    gallery = gallery[gallery % CLASSES > 3]  # or there are no strangers
    found = []
    for case, chosen in (("all", np.arange(ROWS)), ("known", KNOWN)):
        stores = [
            write(tmp_path / f"{case}-{name}", "old", kind, rows[np.isin(rows, chosen)])
            for name, rows in (("query", query), ("gallery", gallery))
        ]
        code, result, error = fcl("eval", "--query", stores[0], "--gallery", stores[1], *decide)
        assert code == 0, error
        assert ("rows have no class; they are left out" in error) == (case == "all")
        found.append([result["verification"], result["identification"]])
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["empty", "label", "labels"])
def test_probe_leaves_them_out(kind, fcl, tmp_path):
    found = []
    for case, rows in (("all", None), ("known", KNOWN)):
        pair = [
            f"--{side}={write(tmp_path / f'{case}-{side}', side, kind, rows)}"
            for side in ("old", "new")
        ]
        more = ["--adapters", "ridge", "--budget", 0, *FEW]
        for asked in ([], [f"--old-query={pair[0][6:]}", f"--new-query={pair[1][6:]}"]):
            code, result, error = fcl("probe", *pair, *asked, *more)
            assert code == 0, error
            said = f"{UNKNOWN.sum()} of {ROWS} rows have no class; they are left out"
            assert (said in error) == (case == "all")
            ways = [way["metrics"] for way in result["ways"]]
            found.append((case, bool(asked), result["num_fit"], result["num_queries"], ways))
    assert [one[1:] for one in found[:2]] == [one[1:] for one in found[2:]]


@pytest.mark.parametrize("kind", ["empty", "label"])
def test_adapt_fits_and_measures_without_them_where_classes_count(kind, fcl, tmp_path):
    new = vectors()["new"].astype(np.float32)
    heads, maps, checks = {}, {}, {}
    for case, rows in (("all", None), ("known", KNOWN)):
        pair = []
        for side in ("old", "new"):
            pair += [f"--{side}", write(tmp_path / f"{case}-{side}", side, kind, rows)]
        head, ridge = (tmp_path / f"{case}-{name}.safetensors" for name in ("head", "ridge"))
        code, result, error = fcl(
            "adapt", *pair, "--adapter", "compat-head", "--out", head, "--json"
        )
        assert code == 0, error
        assert result["rows"] == len(KNOWN)
        assert ("have no class; they are left out" in error) == (case == "all")
        checks[case] = [result["check"]["mapped"]["metrics"]]
        code, result, error = fcl("adapt", *pair, "--adapter", "ridge", "--out", ridge, "--json")
        assert code == 0, error
        assert result["rows"] == (ROWS if case == "all" else len(KNOWN))
        assert ("fitted on, but not measured on" in error) == (case == "all")
        checks[case].append(result["check"]["mapped"]["metrics"])
        heads[case], maps[case] = (
            load_adapter(file).transform(new).numpy() for file in (head, ridge)
        )
    assert checks["all"] == checks["known"]
    np.testing.assert_array_equal(heads["all"], heads["known"])
    # A map learns from every pair; only what measures it first needs classes.
    assert np.abs(maps["all"] - maps["known"]).max() > 1e-3


#: Labels that a csv says in place of a manifest, by what stands for none.
CELLS = {
    "negative": ("-1", "{}"),
    "empty": ("", "class {}"),
    "empty among numbers": ("", "{}"),
    "longer than 64 bits": ("-7", "9" * 30 + "{}"),
}


def write_labels(path, none, some):
    """Labels of all rows, UNKNOWN ones without a class."""
    lines = [
        f"i{row},{none if UNKNOWN[row] else some.format(row % CLASSES)}" for row in range(ROWS)
    ]
    path.write_text("\n".join(["id,label", *lines]))
    return path


@pytest.mark.parametrize("case", CELLS)
def test_labels_of_a_file_for_a_plan_may_be_none(case, fcl, tmp_path):
    stores = []
    for side in ("old", "new"):
        stores += [f"--{side}-features", write(tmp_path / side, side, "label")]
    found = []
    for given in ([], ["--labels", write_labels(tmp_path / "labels.csv", *CELLS[case])]):
        more = ["--order", "class-mean", "--num-random", 2]
        more += ["--out", tmp_path / "plan", "--replace"]
        code, result, error = fcl("plan", *stores, *given, *more, *FEW)
        assert code == 0, error
        assert f"{UNKNOWN.sum()} of the {ROWS} rows with new features have no class" in error
        found.append([result["curve"], (tmp_path / "plan" / "plan.csv").read_text()])
    assert found[0] == found[1]


def test_a_number_below_zero_is_a_class_among_names(tmp_path):
    path = write_labels(tmp_path / "labels.csv", "-1", "class {}")
    labels = read_labels(path, [f"i{row}" for row in range(ROWS)])
    assert (labels == "-1").tolist() == UNKNOWN.tolist()
    # The labels of few ids mean what they mean in the whole file.
    assert read_labels(path, ["i0", "i4"]).tolist() == ["-1", "-1"]


@pytest.mark.parametrize("none", ["-1", ""])
def test_labels_of_a_file_without_any_class_are_refused(none, tmp_path):
    path = write_labels(tmp_path / "labels.csv", none, "{}")
    with pytest.raises(ValueError, match="labels with a class, found none for the 2 ids"):
        read_labels(path, ["i0", "i4"])


def test_a_plan_of_new_features_without_any_class_says_what_would_help(fcl, tmp_path):
    gallery = write(tmp_path / "old", "old", "label")
    rows = np.flatnonzero(UNKNOWN)
    manifest = {"id": [f"i{row}" for row in rows]}
    sampled = FeatureStore.write(
        tmp_path / "new",
        vectors()["new"][rows].astype(np.float32),
        manifest,
        Fingerprint("new", DIM, norm="none"),
    ).path
    labels = write_labels(tmp_path / "labels.csv", "", "{}")
    command = ["plan", "--old-features", gallery, "--new-features", sampled]
    command += ["--out", tmp_path / "plan"]
    for where, given in ((gallery, []), (labels, ["--labels", labels])):
        assert refused(
            fcl(*command, *given),
            f"{where}: expected a class for some of the {len(rows)} rows of {sampled}, found none",
            "say classes by --labels, or what is right by --qrels",
        )


@pytest.mark.parametrize("kind", ["empty", "label"])
def test_plan_orders_all_rows_and_measures_on_the_others(kind, fcl, tmp_path):
    found = []
    for case, sample in (("all", None), ("known", KNOWN)):
        gallery = write(tmp_path / f"{case}-old", "old", kind)
        sampled = write(tmp_path / f"{case}-new", "new", kind, sample)
        stores = ["--old-features", gallery, "--new-features", sampled]
        more = ["--order", "uncertainty", "--num-random", 2, "--out", tmp_path / case]
        code, result, error = fcl("plan", *stores, *more, *FEW)
        assert code == 0, error
        said = f"{UNKNOWN.sum()} of the {ROWS} rows with new features have no class"
        assert (said in error) == (case == "all")
        with (tmp_path / case / "plan.csv").open(newline="", encoding="utf-8") as file:
            assert len(list(csv.reader(file))) == ROWS + 1
        assert result["curve"]["num_gallery"] == len(KNOWN)
        found.append([result["curve"], result["ways"]])
    assert found[0] == found[1]


def test_real_queries_of_a_plan_without_a_class_are_not_asked(fcl, tmp_path):
    gallery = write(tmp_path / "old", "old", "empty")
    sampled = write(tmp_path / "new", "new", "empty")
    asked = [write(tmp_path / f"q-{side}", side, "empty") for side in ("old", "new")]
    more = ["--order", "random", "--num-random", 2, "--out", tmp_path / "plan", *FEW]
    code, result, error = fcl(
        "plan", "--old-features", gallery, "--new-features", sampled,
        "--old-query", asked[0], "--new-query", asked[1], *more,
    )  # fmt: skip
    assert code == 0, error
    curve = result["curve"]
    assert curve["num_queries"] + curve["num_skipped"] == len(KNOWN)
    assert f"{asked[0]}: {UNKNOWN.sum()} of {ROWS} rows have no class" in error


@pytest.mark.parametrize("labels", [np.array([3, 3, 7, 7, -1, -1]), [*"aabb", "", ""]])
@pytest.mark.parametrize("name", ["uncertainty", "margin", "class-mean"])
def test_orders_know_means_of_classes_alone(name, labels):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 4)).astype(np.float32)
    found = backfill_order(name, rows, labels=labels).priority
    np.testing.assert_allclose(
        found[:4], backfill_order(name, rows[:4], labels=labels[:4]).priority
    )
    unit = rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True)
    means = np.stack([unit[:2].sum(0), unit[2:4].sum(0)])
    cosines = np.sort(unit[4:] @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T, axis=1)
    expected = cosines[:, 0] - cosines[:, 1] if name == "margin" else 1 - cosines[:, 1]
    np.testing.assert_allclose(found[4:], expected)


def test_an_order_needs_a_class():
    with pytest.raises(ValueError, match="labels: expected rows with a class, got none"):
        backfill_order("class-mean", np.eye(3, dtype=np.float32), labels=[-1, -1, -1])


@pytest.mark.parametrize("kind", ["empty", "None", "label", "labels"])
def test_graphs_within_classes_join_them_to_nothing(kind, fcl, tmp_path):
    graph = tmp_path / "graph.safetensors"
    command = ["graph", write(tmp_path / "s", "old", kind), "--k", 2, "--out", graph, "--json"]
    code, result, error = fcl(*command, "--within-class")
    assert code == 0, error
    assert result["isolated"] == UNKNOWN.sum()
    loaded = KnnGraph.load(graph)
    rows = np.repeat(np.arange(ROWS), np.diff(loaded.crow_indices.numpy()))
    found = loaded.col_indices.numpy()
    assert (rows % CLASSES == found % CLASSES).all()
    # A walk stays where there is nowhere to go: they are joined to themselves.
    assert (UNKNOWN[rows] == UNKNOWN[found]).all()
    assert (rows == found)[UNKNOWN[rows]].all()


@pytest.mark.parametrize("kind", ["None", "label"])
def test_training_compares_only_classes_that_are_there(kind, tmp_path):
    store = FeatureStore.open(write(tmp_path / "s", "old", kind))
    names = [f"c{label:02}" for label in range(CLASSES)]
    labels = np.arange(ROWS) % CLASSES
    check_labels(store, np.arange(ROWS), labels, names, "the images")
    labels[1] = 5  # row 1 has a class
    with pytest.raises(ValueError, match="1 of 160 labels differ"):
        check_labels(store, np.arange(ROWS), labels, names, "the images")


def test_a_verb_that_needs_classes_refuses_a_store_without(fcl, tmp_path):
    for side in ("old", "new"):
        rows = vectors()[side].astype(np.float32)
        manifest = {"id": [str(row) for row in range(ROWS)], "class_name": [""] * ROWS}
        FeatureStore.write(tmp_path / side, rows, manifest, Fingerprint(side, DIM, norm="none"))
    pair = ["--old", tmp_path / "old", "--new", tmp_path / "new"]
    part = "expected rows with a class, or"
    assert refused(fcl("probe", *pair), part, "found none in column 'class_name'")
    adapt = ["adapt", *pair, "--adapter", "ridge", "--out", tmp_path / "a.safetensors"]
    assert refused(fcl(*adapt), part)
    assert fcl(*adapt, "--no-check")[0] == 0
