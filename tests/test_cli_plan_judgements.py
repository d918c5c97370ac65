# SPDX-License-Identifier: Apache-2.0
"""``fcl plan`` by judgements of real queries, beside evaluations of the same galleries."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from test_cli_plan import DIM, refused

from fclearn.backfill import backfill_order
from fclearn.cli import main
from fclearn.clusters import kmeans_labels
from fclearn.evaluation import Qrels, evaluate_retrieval
from fclearn.features import FeatureStore, Fingerprint

ROWS, QUERIES, RIGHT = 140, 24, 3
METRICS = ("map", "cmc@1", "ndcg@10")
ITEMS = [f"d{row}" for row in range(ROWS)]
ASKED = [f"q{row}" for row in range(QUERIES)]


def features():
    """Items, the first of which are right for a query, and queries: by an old and a new model."""
    rng = np.random.default_rng(3)
    means = rng.normal(size=(QUERIES, DIM))
    meant = np.concatenate(
        [np.repeat(means, RIGHT, axis=0), rng.normal(size=(ROWS - QUERIES * RIGHT, DIM))]
    )
    new, query = (rows + 0.4 * rng.normal(size=rows.shape) for rows in (meant, means))
    old, old_query = (rows + 0.9 * rng.normal(size=rows.shape) for rows in (new, query))
    return {"old": old, "new": new, "q-old": old_query, "q-new": query}


def grades():
    """Of every query three right items of three grades, and one that is judged wrong."""
    return {
        name: {f"d{RIGHT * at + nth}": nth + 1 for nth in range(RIGHT)} | {f"d{ROWS - 1 - at}": 0}
        for at, name in enumerate(ASKED)
    }


def write_qrels(path, judged):
    lines = [f"{query} 0 {item} {grade}" for query, one in judged.items()
             for item, grade in one.items()]  # fmt: skip
    path.write_text("\n".join(lines))


@pytest.fixture
def stores(tmp_path):
    """No store has labels; the new ones have their rows in another order."""
    for name, rows in features().items():
        ids = ASKED if name.startswith("q-") else ITEMS
        model = name.removeprefix("q-")
        order = np.arange(len(ids)) if model == "old" else np.arange(len(ids))[::-1]
        FeatureStore.write(
            tmp_path / name,
            rows[order].astype(np.float32),
            {"id": [ids[row] for row in order]},
            Fingerprint(model, DIM, norm="none"),
        )
    write_qrels(tmp_path / "qrels.txt", grades())
    return tmp_path


@pytest.fixture
def plan(stores, capsys):
    """Run ``fcl plan --qrels`` on the stores; options given later win."""

    def run(*options, queries=True):
        capsys.readouterr()
        given = ["--old-features", stores / "old", "--new-features", stores / "new"]
        if queries:
            given += ["--old-query", stores / "q-old", "--new-query", stores / "q-new"]
            given += ["--qrels", stores / "qrels.txt", "--order", "centrality"]
        given += ["--num-bootstrap", "50", "--num-random", "2"]
        given += ["--out", stores / "plan", "--replace"]
        code = main([str(part) for part in ("plan", *given, *options)])
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


class Outcome:
    """What a command returned and printed."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def found(self):
        """The JSON it printed."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def evaluated(query, gallery, judged, ids=ITEMS):
    rows = [ITEMS.index(one) for one in ids]
    # What is not measured on counts nowhere, where evaluations have it not found.
    here = {q: {d: g for d, g in one.items() if d in ids} for q, one in judged.items()}
    return evaluate_retrieval(
        query.astype(np.float32), gallery[rows].astype(np.float32), qrels=Qrels(here),
        query_ids=ASKED, gallery_ids=ids, metrics=METRICS,
    )  # fmt: skip


def test_curve_and_ways_are_those_of_the_judgements(plan, stores):
    result = plan("--budget", "0.3", "--json", "--gate", "new/new.ndcg@10>old/old.ndcg@10",
                  "--gate", "ndcg@10>0")  # fmt: skip
    found, sides, judged = result.found, features(), grades()
    order = backfill_order("centrality", sides["old"].astype(np.float32)).rows
    mixed = sides["old"].copy()
    moved = order[: round(0.3 * ROWS)]
    mixed[moved] = sides["new"][moved]
    ways, curve = found["ways"], found["curve"]
    wanted = evaluated(sides["q-new"], mixed, judged)
    assert ways["one index"]["metrics"] == pytest.approx(wanted.means, abs=1e-12)
    # The curve passes through what is measured beside it, whichever way it is of.
    served = {("mixed", False): "one index", ("mixed", True): "one index, calibrated",
              ("merged", True): "two indexes, calibrated"}  # fmt: skip
    start = "new/old" if curve["serving"] == "mixed" else "old/old"
    along = served[curve["serving"], curve["is_calibrated"]]
    for metric in METRICS:
        values = curve["orders"]["centrality"][metric]["values"]
        for share, way in ((0.0, start), (0.3, along), (1.0, "new/new")):
            value = values[curve["fractions"].index(round(share * ROWS) / ROWS)]
            assert value == pytest.approx(ways[way]["metrics"][metric], abs=1e-12)
    for way, query, gallery in (("old/old", "q-old", "old"), ("new/new", "q-new", "new")):
        wanted = evaluated(sides[query], sides[gallery], judged)
        assert found["ways"][way]["metrics"] == pytest.approx(wanted.means, abs=1e-12)
    assert set(found["curve"]["random_band"]) == set(METRICS)
    assert (found["curve"]["num_queries"], found["curve"]["num_skipped"]) == (QUERIES, 0)
    assert found["num_missing"] == 0
    table = result.err[: result.err.index("The gallery as it is")].splitlines()
    assert max(map(len, table)) <= 80
    assert "NDCG@10" in result.err
    page = (stores / "plan" / "report.html").read_text()
    assert "NDCG@10, gain" in page
    assert "relevant rows are not among" not in page
    assert main(["report", str(stores / "plan")]) == 0
    assert (stores / "plan" / "report.html").read_text() == page


def test_judged_rows_and_judged_queries_come_first(plan, stores):
    judged = {name: one for name, one in grades().items() if name in ASKED[:10]}
    judged["q3"] = {**judged["q3"], "gone": 2}
    judged["q4"] = {"gone": 1}
    write_qrels(stores / "qrels.txt", judged)
    result = plan("--gallery-limit", "60", "--json")
    found = result.found
    # 9 queries judge 36 items, all among the 60; query 4 has only one that is not there.
    assert found["curve"]["num_gallery"] == 60
    assert (found["curve"]["num_queries"], found["curve"]["num_skipped"]) == (9, 15)
    assert found["num_missing"] == 2
    said = "2 relevant rows are not among the rows measured on; they count nowhere"
    assert said in result.err
    assert said in (stores / "plan" / "report.html").read_text()
    few = plan("--query-limit", "9", "--json").found
    assert (few["curve"]["num_queries"], few["curve"]["num_skipped"]) == (9, 0)
    assert few["num_missing"] == 1
    sides = features()
    one = plan("--query-limit", "10", "--gallery-limit", "36", "--json").found
    ids = [name for name in ITEMS if any(name in items for items in judged.values())]
    wanted = evaluated(sides["q-new"], sides["new"], judged, ids)
    assert wanted.num_queries == 9
    assert one["ways"]["new/new"]["metrics"] == pytest.approx(wanted.means, abs=1e-12)


def test_rows_of_the_querys_id_are_left_out_only_if_that_is_said(plan, stores):
    for model in ("old", "new"):
        items = FeatureStore.open(stores / model)
        ids = ITEMS[: RIGHT * QUERIES : RIGHT]
        rows = [items.ids.index(name) for name in ids]
        FeatureStore.write(
            stores / f"q-{model}", np.asarray(items.features[rows]), {"id": ids}, items.fingerprint
        )
    write_qrels(
        stores / "qrels.txt",
        {name: {name: 2, ITEMS[RIGHT * at + 1]: 1} for at, name in enumerate(ids)},
    )
    assert plan("--json").found["ways"]["new/new"]["metrics"]["cmc@1"] == 1
    assert plan("--json", "--exclude-self").found["ways"]["new/new"]["metrics"]["cmc@1"] < 1


def test_labels_only_serve_orders(plan, stores):
    lines = [f"{name},{row % 5}" for row, name in enumerate(ITEMS)]
    (stores / "labels.csv").write_text("\n".join(["id,label", *lines]))
    given = ["--labels", stores / "labels.csv", "--compare", "margin", "--json"]
    found = plan(*given).found
    assert set(found["curve"]["orders"]) == {"centrality", "margin", "random"}
    assert found["ways"] == plan("--json").found["ways"]


def test_clusters_take_the_place_of_labels_in_orders(plan, stores):
    pytest.importorskip("faiss")
    result = plan("--order", "uncertainty", "--clusters", "12", "--seed", "4", "--json")
    rows = features()["old"].astype(np.float32)
    labels = kmeans_labels(rows, 12, seed=4)
    order = backfill_order("uncertainty", rows, labels=labels, seed=4)
    with (stores / "plan" / "plan.csv").open(newline="") as file:
        written = [row["id"] for row in csv.DictReader(file)]
    assert written == [ITEMS[row] for row in order.rows]
    assert set(result.found["curve"]["orders"]) == {"uncertainty", "random"}
    assert refused(plan("--order", "margin", "--clusters", "1"), "clusters: expected 2 to 140")
    both = plan("--clusters", "5", "--labels", stores / "labels.csv")
    assert refused(both, "--clusters: expected no --labels beside --qrels")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--order", "margin"], ["order 'margin' needs labels, --labels or one class",
                                 "or --clusters in their place",
                                 "random, predicted-error, centrality, traffic"]),
        (["--compare", "uncertainty"], ["order 'uncertainty' needs labels"]),
        (["--use-groups"], ["--use-groups needs a column 'group'"]),
        (["--gate", "ndcg@5>0"], ["unknown name 'ndcg@5'"]),
        (["--qrels", "{}/bad.txt"], ["bad.txt, line 1: expected 'query-id iteration"]),
        (["--qrels", "{}/strange.txt"], ["expected ids of the qrels, as 'x', got 'q0'"]),
        (["--qrels", "{}/lost.txt"], ["none of 1 relevant documents is here"]),
    ],
)  # fmt: skip
def test_refused(plan, stores, options, parts):
    (stores / "bad.txt").write_text("q0 d0 1")
    (stores / "strange.txt").write_text("x 0 d0 1")
    (stores / "lost.txt").write_text("q0 0 gone 1")
    assert refused(plan(*[one.format(stores) for one in options]), *parts)
    assert not (stores / "plan").exists()


def test_options_that_do_not_go_together(plan, stores):
    alone = plan("--qrels", stores / "qrels.txt", queries=False)
    assert refused(alone, "--qrels: expected --old-query and --new-query, which it judges for")
    assert refused(plan("--exclude-self", queries=False), "--exclude-self: expected --qrels")
    assert refused(plan("--gate", "ndcg@10>0", queries=False), "ndcg@10 needs --qrels")
