# SPDX-License-Identifier: Apache-2.0
"""``fcl eval`` of one store, of an index, of judgements and of a chain of models."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fclearn.evaluation import (
    chain_report,
    evaluate_identification,
    evaluate_retrieval,
    evaluate_verification,
    worst_slices,
)
from fclearn.features import FeatureStore, Fingerprint

ROWS = 60


def write(path, rows, model, order=None, **columns):
    """A store of some rows in some order; ids follow the rows."""
    order = np.arange(len(rows)) if order is None else order
    manifest = {"id": [f"i{row}" for row in order]}
    manifest |= {name: [values[row] for row in order] for name, values in columns.items()}
    file_format = "parquet" if "labels" in columns else "csv"
    return FeatureStore.write(
        path,
        rows[order].astype(np.float32),
        manifest,
        Fingerprint(model, rows.shape[1], norm="none"),
        file_format,
    ).path


@pytest.fixture
def stores(tmp_path):
    """Three models of one set of rows, each better than the last, in different orders."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, ROWS)
    centres, made = rng.standard_normal((6, 8)), {}
    for number, noise in enumerate((1.6, 1.1, 0.7), 1):
        rows = centres[labels] + noise * rng.standard_normal((ROWS, 8))
        order = None if number == 1 else rng.permutation(ROWS)
        made[f"v{number}"] = write(tmp_path / f"v{number}", rows, f"v{number}", order, label=labels)
    return made


def test_one_store_is_its_own_gallery(fcl, stores):
    code, result, error = fcl("eval", "--query", stores["v1"], "--json", "--worst", 2)
    store = FeatureStore.open(stores["v1"])
    expected = evaluate_retrieval(
        store, store, query_labels=store.labels, gallery_labels=store.labels, exclude_self=True,
        return_per_query=True,
    )  # fmt: skip
    assert code == 0
    assert {name: result[name] for name in expected} == dict(expected)
    assert result["intervals"]["map"] == pytest.approx(expected.intervals()["map"])
    worst = worst_slices(expected.per_query["map"], store.labels, n=2)
    assert result["worst"]["slices"][0]["name"] == worst[0].name
    assert "worst by label" in error


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"label": [3] * 40}, "3"),
        ({"class_name": ["cat"] * 40}, "'cat'"),
        ({"labels": [["cat"]] * 40}, "'cat'"),
        ({"label": [3] * 39 + [2]}, None),
        ({"label": [3] * 39 + [-1]}, None),
        ({"labels": [["cat"]] * 39 + [["cat", "dog"]]}, None),
    ],
)
@pytest.mark.parametrize("form", ["one", "pair", "chain"])
def test_a_gallery_of_one_class_is_noted(fcl, tmp_path, form, columns, name):
    rows = np.random.default_rng(0).standard_normal((40, 4))
    old, new = (write(tmp_path / side, rows, side, **columns) for side in ("old", "new"))
    given = {
        "one": ["--query", old],
        "pair": ["--old-query", old, "--new-query", new],
        "chain": ["--model", old, "--model", new],
    }
    code, result, error = fcl("eval", *given[form], "--num-bootstrap", 10, "--json")
    assert code == 0, error
    noted = f"note: all rows of the gallery are of one class, {name}: every answer is right"
    assert (noted in error) == (name is not None)
    assert ("of one class" in error) == (name is not None)
    if form == "one" and name is not None:
        assert result["map"] == 1


def test_judgements_know_no_classes(fcl, tmp_path):
    rows = np.random.default_rng(0).standard_normal((40, 4))
    store = write(tmp_path / "store", rows, "m", label=[3] * 40)
    (tmp_path / "judged").write_text("i1 0 i2 1\n")
    code, _, error = fcl("eval", "--query", store, "--qrels", tmp_path / "judged")
    assert code == 0
    assert "of one class" not in error


def test_gates_of_one_store(fcl, stores):
    code, result, _ = fcl(
        "eval", "--query", stores["v1"], "--json", "--gate", "map>0", "--gate", "cmc@1>1"
    )
    assert code == 1
    assert [gate["passed"] for gate in result["gates"]] == [True, False]


def test_two_models_must_be_said(fcl, stores):
    both = ["eval", "--query", stores["v2"], "--gallery", stores["v1"]]
    code, _, error = fcl(*both)
    assert code == 2
    assert "refusing to mix features: model 'v2' and 'v1'" in error
    code, result, error = fcl(*both, "--across", "--exclude-self", "--json")
    assert code == 0
    assert result["num_queries"] == ROWS
    said = f"{ROWS} of {ROWS} queries are in the gallery, by their ids, and may find themselves"
    assert said not in error
    code, _, error = fcl(*both, "--across", "--json")
    assert code == 0
    assert said in error


def test_an_index_in_place_of_the_gallery(fcl, stores, tmp_path):
    faiss = pytest.importorskip("faiss")
    gallery = FeatureStore.open(stores["v1"])
    unit = gallery.features / np.linalg.norm(gallery.features, axis=1, keepdims=True)
    index = faiss.index_factory(8, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(unit)
    index.add(unit)
    faiss.write_index(index, str(tmp_path / "live.faiss"))
    both = ["eval", "--query", stores["v2"], "--gallery", stores["v1"], "--across", "--json"]
    both += ["--metrics", "map@10,cmc@1"]
    _, exact, _ = fcl(*both)
    through = [*both, "--index", tmp_path / "live.faiss", "--index-parameter"]
    code, all_lists, _ = fcl(*through, "nprobe=2")
    assert code == 0
    assert all_lists["map@10"] == pytest.approx(exact["map@10"])
    _, one_list, _ = fcl(*through, "nprobe=1")
    assert one_list["map@10"] < exact["map@10"]
    for arguments, part in (
        ([*through, "probes"], "--index-parameter: expected NAME=NUMBER"),
        ([*through, "nprobe=1", "--metrics", "map"], "map would need all ranks"),
        ([*both, "--index-parameter", "nprobe=1"], "--index-parameter: expected --index"),
    ):
        code, _, error = fcl(*arguments)
        assert code == 2
        assert part in error
    small = faiss.IndexFlatIP(8)
    small.add(unit[:9])
    faiss.write_index(small, str(tmp_path / "small.faiss"))
    code, _, error = fcl(*both, "--index", tmp_path / "small.faiss")
    assert code == 2
    assert "small.faiss: expected the 60 x 8 rows of" in error


def test_an_upgrade_through_the_index_that_serves(fcl, stores, tmp_path):
    faiss = pytest.importorskip("faiss")
    old = FeatureStore.open(stores["v1"])
    unit = old.features / np.linalg.norm(old.features, axis=1, keepdims=True)
    for name, key in (("exact", "Flat"), ("coarse", "PQ2x2")):
        index = faiss.index_factory(8, key, faiss.METRIC_INNER_PRODUCT)
        index.train(unit)
        index.add(unit)
        faiss.write_index(index, str(tmp_path / name))
    pair = ["eval", "--old-query", stores["v1"], "--new-query", stores["v2"], "--json"]
    pair += ["--num-bootstrap", 20]
    _, whole, _ = fcl(*pair, "--metrics", "map@100,cmc@5")
    code, served, error = fcl(
        *pair, "--index", tmp_path / "exact", "--gate", "new/old.map@100>=0", "--report", tmp_path
    )
    assert code == 0
    assert (whole["primary"], served["primary"]) == ("map", "map@100")
    for entry in ("old/old", "new/old", "new/new"):
        for name in ("map@100", "cmc@1", "cmc@5"):
            assert served["matrix"][entry][name] == pytest.approx(whole["matrix"][entry][name])
    assert "reach mAP@100" in served["verdict"]["text"]
    assert "mAP@100 of new/old" in (tmp_path / "report.html").read_text()
    _, coarse, _ = fcl(*pair, "--index", tmp_path / "coarse", "--worst", 2)
    assert coarse["matrix"]["old/old"]["map@100"] < whole["matrix"]["old/old"]["map@100"]
    assert coarse["matrix"]["new/new"] == served["matrix"]["new/new"]
    code, _, error = fcl(*pair, "--index", tmp_path / "exact", "--metrics", "map")
    assert code == 2
    assert "old/old (query/gallery): metrics: map would need all ranks" in error


def test_judgements(fcl, stores, tmp_path):
    (tmp_path / "qrels").write_text("i0 0 i4 2\ni0 0 i9 1\ni3 0 i5 1\ni3 0 gone 1\n")
    code, result, error = fcl(
        "eval", "--query", stores["v1"], "--qrels", tmp_path / "qrels", "--json", "--metrics",
        "ndcg@10,map",
    )  # fmt: skip
    assert code == 0
    assert (result["num_queries"], result["num_skipped"], result["num_missing"]) == (2, 58, 1)
    assert "58 queries have nothing right in the gallery; they count nowhere" in error
    assert "1 relevant rows are not in the gallery; they count as not found" in error


def test_judgements_of_pairs_and_chains(fcl, stores, tmp_path):
    """The same file decides about one model, an upgrade and a chain, with one set of rules."""
    lines = [f"i{row} 0 i{(row + step) % ROWS} {3 - step}" for row in range(40) for step in (1, 2)]
    (tmp_path / "qrels").write_text("\n".join([*lines, "i3 0 gone 1"]))
    judged = ["--qrels", tmp_path / "qrels", "--json", "--num-bootstrap", 50]
    alone = ["--across", "--exclude-self", "--metrics", "ndcg@10,map,cmc@1"]
    pair = ["eval", "--old-query", stores["v1"], "--new-query", stores["v2"], *judged]
    code, result, error = fcl(*pair, "--metrics", "ndcg@10", "--report", tmp_path / "pair")
    assert code == 0
    assert "1 relevant rows are not in the gallery; they count as not found" in error
    assert (result["num_queries"], result["num_skipped"], result["num_missing"]) == (40, 20, 1)
    _, expected, _ = fcl(
        "eval", "--query", stores["v2"], "--gallery", stores["v1"], *alone, *judged
    )
    for name in ("ndcg@10", "map", "cmc@1"):
        assert result["matrix"]["new/old"][name] == pytest.approx(expected[name])
    page = (tmp_path / "pair" / "report.html").read_text()
    assert "1 relevant rows not in the gallery count as lost" in page
    models = ["eval", "--model", stores["v1"], "--model", stores["v2"], *judged]
    code, chain, _ = fcl(*models, "--metrics", "ndcg@10", "--report", tmp_path / "chain")
    assert code == 0
    assert chain["matrix"][1][0] == pytest.approx(expected["ndcg@10"])
    assert chain["num_missing"] == 1
    # Reports of other judgements do not stand side by side.
    (tmp_path / "qrels").write_text("\n".join(lines[:-2]))
    assert fcl(*pair, "--report", tmp_path / "other")[0] == 0
    code, _, error = fcl("report", tmp_path / "pair", tmp_path / "other", "--out", tmp_path / "x")
    assert code == 2
    assert "they differ in queries" in error


def test_decisions_by_a_threshold(fcl, stores, tmp_path):
    gallery = FeatureStore.open(stores["v1"])
    labels = np.where(np.arange(ROWS) < 9, 99, gallery.labels)
    query = write(tmp_path / "q", np.asarray(gallery.features), "v1", label=labels)
    code, result, error = fcl(
        "eval", "--query", query, "--gallery", stores["v1"], "--exclude-self", "--verify",
        "0.1,1e-4", "--identify", "0.2", "--json", "--gate", "tar@0.1>0", "--gate", "tpir@0.2>1",
        "--num-bootstrap", 50, "--seed", 3,
    )  # fmt: skip
    assert code == 1
    assert [gate["passed"] for gate in result["gates"]] == [True, False]
    given = {
        "query_labels": labels, "gallery_labels": gallery.labels, "exclude_self": True,
        "query_ids": gallery.ids, "gallery_ids": gallery.ids, "num_bootstrap": 50, "seed": 3,
    }  # fmt: skip
    pairs = evaluate_verification(gallery, gallery, false_accept_rates=[0.1, 1e-4], **given)
    assert result["verification"] == json.loads(json.dumps(pairs.to_dict()))
    found = evaluate_identification(gallery, gallery, false_positive_rates=[0.2], **given)
    assert result["identification"] == json.loads(json.dumps(found.to_dict()))
    assert result["identification"]["num_unmated"] == 9
    low, high = (100 * bound for bound in pairs.points[1].interval)
    assert f"[{low:.2f}, {high:.2f}] at FAR 0.0001" in error
    assert "too few impostors to tell such a rate" in error


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_junk_is_neither_right_nor_wrong(fcl, stores, tmp_path, encoding):
    store = FeatureStore.open(stores["v1"])
    right = np.flatnonzero(store.labels == store.labels[0])[1]  # but for the junk of line 1
    lines = f"i0 i{right}\ni0 i9\n\ni3 i5\ni3 gone\n"
    (tmp_path / "junk").write_text(lines, encoding=encoding)
    code, result, _ = fcl(
        "eval", "--query", stores["v1"], "--junk", tmp_path / "junk", "--json", "--metrics", "map"
    )
    assert code == 0
    junk = [[]] * ROWS
    junk[0], junk[3] = [right, 9], [5]
    expected = evaluate_retrieval(
        store, store, query_labels=store.labels, gallery_labels=store.labels, exclude_self=True,
        junk=junk, metrics=("map",),
    )  # fmt: skip
    assert result["map"] == expected["map"]


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--verify", "0,1"], "--verify: expected rates in (0, 1) by commas, got '0'"),
        (["--identify", "often"], "--identify: expected rates in (0, 1) by commas, got 'often'"),
        (["--identify", "0.1"], "expected queries with and without their label in the gallery"),
        (["--junk", "{}/three"], "three, line 1: expected 'query-id gallery-id', got 3 columns"),
        (["--junk", "{}/none"], "none: expected ids of"),
        (["--junk", "{}/v1/features.npy"], "features.npy: expected a text file in UTF-8"),
        (["--junk", "{}/absent"], "absent: No such file or directory"),
        (["--verify", "0.1", "--use-groups"], "--use-groups needs a column 'group'"),
    ],
)
def test_decisions_and_junk_refused(fcl, stores, tmp_path, more, part):
    (tmp_path / "three").write_text("i0 i1 i2")
    (tmp_path / "none").write_text("x i1")
    given = [one.format(tmp_path) for one in more]
    code, result, error = fcl("eval", "--query", stores["v1"], *given)
    assert (code, result) == (2, None)
    assert part in error


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_several_labels_in_a_manifest(fcl, tmp_path, kind):
    rows = np.random.default_rng(1).standard_normal((6, 4)) + 2
    labels = [["a"], ["a", "b"], ["b"], ["c"], ["c", "a"], []]
    cells = {"labels": labels} if kind == "parquet" else {"labels": ["|".join(x) for x in labels]}
    manifest = {"id": [str(i) for i in range(6)], **cells}
    fingerprint = Fingerprint("m", 4, norm="none")
    FeatureStore.write(tmp_path / "s", rows.astype("f4"), manifest, fingerprint, kind)
    code, result, _ = fcl("eval", "--query", tmp_path / "s", "--json")
    assert code == 0
    expected = evaluate_retrieval(
        rows.astype("f4"), rows.astype("f4"), query_labels=labels, gallery_labels=labels,
        query_ids=range(6), gallery_ids=range(6), exclude_self=True,
    )  # fmt: skip
    assert result["map"] == expected["map"]
    assert result["num_skipped"] == 1


def test_a_chain(fcl, stores):
    models = [part for name in ("v1", "v2", "v3") for part in ("--model", stores[name])]
    code, result, error = fcl(
        "eval", *models, "--json", "--metrics", "cmc@5", "--num-bootstrap", 50,
        "--gate", "average_accuracy>0", "--gate", "3/3>1/1",
    )  # fmt: skip
    assert code == 0
    opened = [FeatureStore.open(stores[name]) for name in ("v1", "v2", "v3")]
    place = [{name: row for row, name in enumerate(store.ids)} for store in opened]
    sides = [
        store.features[[rows[name] for name in opened[0].ids]]
        for store, rows in zip(opened, place, strict=True)
    ]
    labels = opened[0].labels
    expected = chain_report(
        sides, sides, query_labels=labels, gallery_labels=labels, exclude_self=True,
        metric_name="cmc@5", num_bootstrap=50,
    )  # fmt: skip
    assert result["matrix"] == expected.to_dict()["matrix"]
    assert result["average_compatibility"] == expected.average_compatibility
    assert "AC, share of compatible pairs" in error
    code, named, _ = fcl(
        "eval", *models, *[p.replace("--model", "--model-gallery") if isinstance(p, str) else p
                           for p in models],
        "--exclude-self", "--json", "--metrics", "cmc@5", "--num-bootstrap", 50,
    )  # fmt: skip
    assert named["matrix"] == result["matrix"]


def test_worst_classes_of_an_upgrade(fcl, stores):
    pair = ["eval", "--old-query", stores["v1"], "--new-query", stores["v2"], "--json"]
    code, result, error = fcl(*pair, "--worst", 3, "--num-bootstrap", 20)
    assert code == 0
    changes = [one["change"] for one in result["worst"]["slices"]]
    assert changes == sorted(changes)
    assert len(changes) == 3
    assert "worst by label, of new/old less old/old" in error


@pytest.mark.parametrize("stores_of", [["--query"], ["--old-query", "--new-query"]])
def test_a_slice_that_cannot_be_is_refused_before_anything_is_evaluated(fcl, stores, stores_of):
    command = ["eval", *(part for name in stores_of for part in (name, stores["v1"]))]
    code, _, error = fcl(*command, "--worst", 3, "--slice-by", "month")
    assert code == 2
    said = "expected a column 'month' in the manifest, found id, label"
    assert error == f"fcl: error: {stores['v1']}: {said}\n"
    code, _, error = fcl(*command, "--slice-by", "label")
    assert code == 2
    assert error == "fcl: error: --slice-by: expected --worst, whose slices it makes\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--query", "v1", "--old-query", "v1"], "expected stores of one kind"),
        (["--gallery", "v1"], "--query: expected one, as --gallery"),
        (["--model", "v1"], "--model: expected at least two models, got 1"),
        (["--model", "v1", "--model", "v2", "--model-gallery", "v1"], "each of the 2 models"),
        (["--model", "v1", "--model", "v2", "--worst", "3"], "--worst: expected two stores or one"),
        (["--query", "v1", "--report", "r"], "--report: expected two models or a chain"),
        (["--model", "v1", "--model", "v2", "--gate", "AC>1"], "unknown name 'AC'"),
        (["--model", "v1", "--model", "v2", "--gate", "average_compatibility>=90"],
         "average_compatibility is always in [0, 1], got 90; gates are on fractions: 5 % is 0.05"),
        (["--model", "v1", "--model", "v2", "--gate", "backward_compatibility>=-2"],
         "backward_compatibility is always in [-1, 1], got -2"),
        (["--model", "v1", "--model", "v2", "--model-gallery", "v1", "--model-gallery", "v1"],
         "refusing to mix features: model 'v2' and 'v1'"),
        (["--query", "none"], "expected the folder of a feature store, found nothing"),
        ([], "Missing option '--old-query'"),
    ],
)  # fmt: skip
def test_refusals(fcl, stores, arguments, part):
    code, result, error = fcl("eval", *(stores.get(argument, argument) for argument in arguments))
    assert (code, result) == (2, None)
    assert part in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("state", ["cut", "no fingerprint", "no manifest", "rows"])
def test_half_written_stores(fcl, stores, state):
    folder = stores["v1"]
    if state == "cut":
        file = folder / "features.npy"
        file.write_bytes(file.read_bytes()[:-100])
    elif state == "rows":
        manifest = folder / "manifest.csv"
        manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-3]))
    else:
        (
            folder / {"no fingerprint": "fingerprint.json", "no manifest": "manifest.csv"}[state]
        ).unlink()
    code, _, error = fcl("eval", "--query", stores["v2"], "--gallery", folder, "--across")
    assert code == 2
    assert str(folder) in error
    assert len(error.strip().splitlines()) == 1
    with pytest.raises(ValueError, match="expected"):
        evaluate_retrieval(np.ones((1, 8)), folder, query_labels=[0], gallery_labels=[0] * ROWS)
