# SPDX-License-Identifier: Apache-2.0
"""The probe by judgements of real queries, beside its definition on small data."""

from __future__ import annotations

import json
import sys
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_report import Page

from fclearn.adapters import Procrustes
from fclearn.backfill.sample import sample_rows
from fclearn.cli import main
from fclearn.evaluation import Qrels
from fclearn.evaluation.ceiling import judged_oracle_gain
from fclearn.features import FeatureStore, Fingerprint
from fclearn.probe import NEW_TO_OLD, Judgements, ProbeQueries, probe
from fclearn.probe.fitting import FitPairs, calibrate
from fclearn.probe.held import Draw
from fclearn.probe.items import Items
from fclearn.probe.judged import split_by_judgement

QUERIES, RIGHT, ITEMS, DIM = 40, 3, 500, 16
DRAW = Draw(fit_share=0.6, query_limit=5000, seed=0)
ITEM_IDS = [f"d{row}" for row in range(ITEMS)]
QUERY_IDS = [f"q{row}" for row in range(QUERIES)]


def models(old_noise, new_noise, *, seed=0):
    """Queries, and items of which the first are right for them; two models, a rotation apart."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(QUERIES, DIM, generator=generator)
    meant = torch.randn(ITEMS, DIM, generator=generator)
    meant[: QUERIES * RIGHT] = centres.repeat_interleave(RIGHT, 0)
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
    noise = torch.randn(4, ITEMS, DIM, generator=generator)
    return (
        meant + old_noise * noise[0],
        (meant + new_noise * noise[1]) @ turn,
        centres + old_noise * noise[2, :QUERIES],
        (centres + new_noise * noise[3, :QUERIES]) @ turn,
    )


def grades():
    """Three right items for each query, of two grades, and two wrong ones."""
    return {
        name: {f"d{RIGHT * at + nth}": 1 + nth % 2 for nth in range(RIGHT)}
        | {f"d{(RIGHT * at + 90 + nth) % (QUERIES * RIGHT)}": -nth for nth in range(2)}
        for at, name in enumerate(QUERY_IDS)
    }


def average_precision(ranking, right):
    hits = np.flatnonzero(np.isin(ranking, list(right))) + 1
    return float(sum((nth + 1) / rank for nth, rank in enumerate(hits)) / len(right))


def ndcg(ranking, grades, k=10):
    """By trec_eval's definition: gains are grades."""
    gains = [grades.get(row, 0) for row in ranking[:k]]
    ideal = sorted(grades.values(), reverse=True)[:k]
    at_one, at_best = (
        sum(gain / np.log2(nth + 2) for nth, gain in enumerate(part)) for part in (gains, ideal)
    )
    return at_one / at_best


def by_score(scores):
    return np.argsort(-scores, kind="stable")


def cosines(query, gallery):
    query, gallery = (F.normalize(rows.double(), dim=1).numpy() for rows in (query, gallery))
    return query @ gallery.T


def split_of(old, new, queries, qrels, **options):
    items = Items.build(old, new, options.pop("groups", None))
    judgements = Judgements(qrels, QUERY_IDS, ITEM_IDS)
    return items, split_by_judgement(items, judgements, queries, Draw(**{**vars(DRAW), **options}))


def test_every_number_is_that_of_its_definition():
    old, new, old_query, new_query = models(1.0, 0.4)
    qrels, budget, shortlist = Qrels(grades()), 0.3, 20
    queries = ProbeQueries(old_query, new_query)
    result = probe(
        old=old, new=new, queries=queries, judgements=Judgements(qrels, QUERY_IDS, ITEM_IDS),
        adapters=["procrustes"], budget=budget, shortlist=shortlist, num_bootstrap=50,
        metrics=["cmc@1", "ndcg@10"],
    )  # fmt: skip
    items, split = split_of(old, new, queries, qrels)
    gallery, fit = np.flatnonzero(~split.is_fit), split.is_fit
    right = [{at for at, row in enumerate(gallery) if qrels.grades[q].get(ITEM_IDS[row], 0) > 0}
             for q in QUERY_IDS]  # fmt: skip
    assert [len(one) for one in right] == [RIGHT] * QUERIES
    assert (result.num_queries, result.num_skipped) == (QUERIES, 0)
    assert (result.num_gallery, result.num_fit) == (len(gallery), 300)

    adapter = Procrustes().fit(source=new[fit], target=old[fit])
    scores = {
        "old/old": cosines(old_query, old[gallery]),
        "new/new": cosines(new_query, new[gallery]),
        "procrustes": cosines(adapter.transform(new_query), old[gallery]),
    }
    rankings = {name: [by_score(row) for row in table] for name, table in scores.items()}
    migrated = sample_rows(len(gallery), round(budget * len(gallery)), 0)
    is_new = np.isin(np.arange(len(gallery)), migrated)
    held_queries = {"old": old_query, "new": new_query}
    calibration = calibrate(FitPairs.of(items, split, None, 0), held_queries)
    for name in ("rank-merge", "rank-merge-calibrated", "two-stage-rerank"):
        rankings[name] = []
    for before, after in zip(scores["old/old"], scores["new/new"], strict=True):
        fused = np.zeros(len(gallery))
        for kept, table in ((~is_new, before), (is_new, after)):
            places = [row for row in by_score(table) if kept[row]]
            fused[places] = 1 / (60 + np.arange(1, len(places) + 1))
        rankings["rank-merge"].append(by_score(fused))
        worth = np.where(is_new, after, calibration.transform(before))
        rankings["rank-merge-calibrated"].append(by_score(worth))
        top, rest = np.split(by_score(before), [shortlist])
        top = top[np.argsort(-worth[top], kind="stable")]
        rankings["two-stage-rerank"].append(np.concatenate([top, rest]))

    ways = {way.name: way for way in result.ways if way.direction in {"", NEW_TO_OLD} or
            way.queries_by == "both"}  # fmt: skip
    for name, ranked in rankings.items():
        pairs = list(zip(ranked, right, strict=True))
        values = [average_precision(ranking, rows) for ranking, rows in pairs]
        assert ways[name].metrics["map"] == pytest.approx(np.mean(values), abs=1e-6), name
        first = np.mean([ranking[0] in rows for ranking, rows in pairs])
        assert ways[name].metrics["cmc@1"] == pytest.approx(first), name
        graded = [
            ndcg(ranking, {at: qrels.grades[q][ITEM_IDS[gallery[at]]] for at in rows})
            for q, (ranking, rows) in zip(QUERY_IDS, pairs, strict=True)
        ]
        assert ways[name].metrics["ndcg@10"] == pytest.approx(np.mean(graded), abs=1e-6), name
        low, high = ways[name].intervals["ndcg@10"]
        assert low <= np.mean(graded) <= high
    assert result.verdict == "map"
    assert result.judgements is not None
    assert set(vars(result.judgements).values()) == {0}


def test_the_ceiling_of_graded_rows_is_one_of_the_halves_by_definition():
    """Of three right rows one is stood at and two are sought; their grades come with them."""
    old, _, old_query, _ = models(1.0, 0.4)
    positives = [[3 * at + 2, 3 * at, 3 * at + 1] for at in range(10)]
    grades_of = [{3 * at + 2: 5.0, 3 * at: 1.0, 3 * at + 1: 2.0} for at in range(10)]
    gain, measured = judged_oracle_gain(
        old, positives, np.arange(ITEMS), query=old_query[:10], query_ids=np.full(10, -1),
        grades=[[table[row] for row in rows] for rows, table in
                zip(positives, grades_of, strict=True)], metrics=("ndcg@2",),
    )  # fmt: skip
    assert measured == 10
    for at, table in enumerate(grades_of):
        outcomes = []
        for stood in positives[at]:
            left = np.setdiff1d(np.arange(ITEMS), [stood])
            sought = {row: grade for row, grade in table.items() if row != stood}
            both = cosines(torch.stack([old[stood], old_query[at]]), old[left])
            mean, own = (ndcg(left[by_score(scores)], sought, k=2) for scores in both)
            outcomes.append(mean - own)
        assert any(abs(gain["ndcg@2"][at] - one) < 1e-6 for one in outcomes)


def test_the_ceiling_is_one_of_the_halves_by_definition():
    old, _, old_query, _ = models(1.0, 0.4)
    positives = [[3 * at, 3 * at + 1] for at in range(10)] + [[30], []]
    ids, nobody = np.arange(ITEMS), np.full(12, -1)
    gain, measured = judged_oracle_gain(
        old, positives, ids, query=old_query[:12], query_ids=nobody, metrics=("map",)
    )
    assert measured == 10
    assert gain["map"][10:].tolist() == [0, 0]
    moved = []
    for at in range(10):
        outcomes = []
        for stood, sought in (positives[at], positives[at][::-1]):
            left = np.setdiff1d(ids, [stood])
            both = cosines(torch.stack([old[stood], old_query[at]]), old[left])
            mean, own = (average_precision(left[by_score(scores)], {sought}) for scores in both)
            outcomes.append(mean - own)
        found = [abs(gain["map"][at] - one) < 1e-6 for one in outcomes]
        assert any(found)
        moved.append(outcomes[0] != outcomes[1])
    assert any(moved)
    # A row of the query's own id is not there to stand at, nor to be found.
    gain, measured = judged_oracle_gain(
        old, [[0, 1]], ids, query=old_query[:1], query_ids=np.array([1]), metrics=("map",)
    )
    assert (measured, gain["map"].tolist()) == (0, [0])


@pytest.mark.parametrize(("fit_share", "seed"), list(product([0.3, 0.6, 0.9], [0, 1])))
def test_nothing_that_is_judged_is_fitted_on(fit_share, seed):
    old, new, *asked = models(1.0, 0.4)
    qrels = Qrels(grades())
    _, split = split_of(old, new, ProbeQueries(*asked), qrels, fit_share=fit_share, seed=seed)
    assert split.is_fit.sum() == round(fit_share * ITEMS)
    (held,) = [split.held]
    chosen = [int(np.flatnonzero((asked[0] == row).all(1))[0]) for row in held.query["old"]]
    fitted = {ITEM_IDS[row] for row in np.flatnonzero(split.is_fit)}
    for at in chosen:
        assert not fitted & set(qrels.grades[QUERY_IDS[at]])
    assert split.counts is not None
    assert len(chosen) + split.counts.queries_not_asked == QUERIES
    # 120 of 500 items are judged: with 0.9 to fit on, not all queries can be asked.
    assert (split.counts.queries_not_asked > 0) == (fit_share == 0.9)
    others = [name for at, name in enumerate(QUERY_IDS) if at not in chosen]
    if others:
        judged = {item for at in chosen for item in qrels.grades[QUERY_IDS[at]]}
        assert len(judged) <= 50


def test_groups_of_judged_items_are_neither_fitted_on_nor_searched_by_their_own_query():
    old, new, *asked = models(1.0, 0.4)
    groups = np.arange(ITEMS) % 250
    own = np.arange(QUERIES) + 1000
    own[0] = 0
    queries = ProbeQueries(*asked, ids=own)
    _, split = split_of(old, new, queries, Qrels(grades()), groups=groups, fit_share=0.4)
    judged = np.arange(QUERIES * RIGHT)
    assert not np.isin(groups[split.is_fit], groups[judged]).any()
    result = probe(
        old=old, new=new, groups=groups, queries=queries, fit_share=0.4, adapters=[], budget=0,
        judgements=Judgements(Qrels({"q0": {"d0": 1}, "q1": {"d3": 1}}), QUERY_IDS, ITEM_IDS),
        num_bootstrap=20,
    )  # fmt: skip
    # The one right item of query 0 is of its own group; 38 queries are not judged at all.
    assert (result.num_queries, result.num_skipped) == (1, 39)


def test_what_does_not_count_is_counted():
    old, new, *asked = models(1.0, 0.4)
    judged = {**grades(), "q1": {"d5": 0}, "q2": {"gone": 2}, "stranger": {"d0": 1}}
    judged["q3"] = {**judged["q3"], "lost": 1}
    del judged["q4"]
    result = probe(
        old=old, new=new, queries=ProbeQueries(*asked), adapters=["ridge"], num_bootstrap=20,
        judgements=Judgements(Qrels(judged), QUERY_IDS, ITEM_IDS), query_limit=30, budget=0,
    )  # fmt: skip
    assert result.judgements is not None
    assert vars(result.judgements) == {
        "queries_without_features": 1,
        "queries_without_relevant": 3,
        "queries_not_asked": 7,
        "relevant_not_among_items": 2,
    }
    assert (result.num_queries, result.num_skipped) == (30, 3)


def test_one_right_item_each_leaves_the_ceiling_out_and_says_so():
    old, new, *asked = models(1.2, 0.3)
    single = Qrels({name: {f"d{RIGHT * at}": 1} for at, name in enumerate(QUERY_IDS)})
    given = {
        "queries": ProbeQueries(*asked),
        "judgements": Judgements(single, QUERY_IDS, ITEM_IDS),
        "num_bootstrap": 200,
    }
    good = probe(old=old, new=new, adapters=["procrustes"], **given)
    assert good.verdict == "map"
    assert good.left_out == {"oracle/old": "no query has two right rows"}
    none = probe(old=old, new=new, adapters=[], **given)
    assert none.verdict == "unclear"
    assert "cannot be told: no query has two right rows" in none.text


def test_clusters_take_the_place_of_classes(monkeypatch):
    old, new, *asked = models(1.0, 0.4)
    given = {
        "old": old, "new": new[:, :12], "budget": 0, "num_bootstrap": 20,
        "queries": ProbeQueries(asked[0], asked[1][:, :12]),
        "judgements": Judgements(Qrels(grades()), QUERY_IDS, ITEM_IDS),
        "adapters": ["compat-head", "mean-shift"],
    }  # fmt: skip
    result = probe(**given)
    assert result.best == "compat-head"
    assert result.pseudo_labels == 15
    assert result.left_out == {"mean-shift": "needs models of one dim, these have 16 and 12"}
    assert probe(**given, clusters=7).pseudo_labels == 7
    with pytest.raises(ValueError, match=r"clusters: expected 2 to 300, .* got 301"):
        probe(**given, clusters=301)
    monkeypatch.setitem(sys.modules, "faiss", None)
    without = probe(**given)
    assert without.pseudo_labels is None
    assert "pip install faiss-cpu" in without.left_out["compat-head"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(ITEMS, int)}, "labels, judgements: expected exactly one of the two"),
        ({"judgements": None}, "labels, judgements: expected exactly one of the two"),
        ({"queries": None}, "queries: expected real ones, which the judgements are of"),
        ({"item_ids": ITEM_IDS[:-1]}, r"item_ids: expected one per row \(500\), got 499"),
        ({"item_ids": ["d0"] * ITEMS}, "expected distinct ids, got 'd0' in rows 0 and 1"),
        ({"query_ids": ["x"] * QUERIES}, "expected distinct ids, got 'x' in rows 0 and 1"),
        ({"query_ids": ITEM_IDS[:QUERIES]}, "query_ids: expected ids of the qrels, as 'q0'"),
        ({"item_ids": range(ITEMS)}, "gallery_ids: expected ids of the qrels, got '0'"),
        ({"qrels": Qrels({"q0": {"d0": 0}})}, "none of the 40 queries has a relevant item"),
        ({"fit_share": 0.999}, "the first query alone judges 5"),
        ({"fit_share": 0.001}, "expected at least 2 of the 500 items to fit on"),
    ],
)
def test_bad_input(change, message):
    old, new, *asked = models(1.0, 0.4)
    change = dict(change)
    parts = [change.pop("qrels", Qrels(grades())), change.pop("query_ids", QUERY_IDS),
             change.pop("item_ids", ITEM_IDS)]  # fmt: skip
    given = {
        "old": old, "new": new, "queries": ProbeQueries(*asked), "judgements": Judgements(*parts),
        "adapters": ["ridge"], "num_bootstrap": 10,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        probe(**{**given, **change})


@pytest.fixture
def stores(tmp_path):
    old, new, old_query, new_query = models(1.0, 0.4)
    for name, rows, ids, model in (
        ("items-old", old, ITEM_IDS, "old"),
        ("items-new", new, ITEM_IDS, "new"),
        ("q-old", old_query, QUERY_IDS, "old"),
        ("q-new", new_query, QUERY_IDS, "new"),
    ):
        # The new model saw everything in another order.
        order = range(len(ids)) if model == "old" else range(len(ids) - 1, -1, -1)
        FeatureStore.write(
            tmp_path / name,
            F.normalize(rows, dim=1).numpy()[list(order)],
            {"id": [ids[row] for row in order]},
            Fingerprint(model, DIM),
        )
    lines = [f"{q} 0 {d} {g}" for q, judged in grades().items() for d, g in judged.items()]
    (tmp_path / "qrels.txt").write_text("\n".join(lines))
    return tmp_path


def command_of(stores, *more):
    return [
        *("probe", "--old", f"{stores}/items-old", "--new", f"{stores}/items-new"),
        *("--old-query", f"{stores}/q-old", "--new-query", f"{stores}/q-new"),
        *("--qrels", f"{stores}/qrels.txt", "--adapters", "procrustes,compat-head"),
        *("--num-bootstrap", "50", "--json", *more),
    ]


def test_command(stores, capsys):
    out = stores / "run"
    gate = ["--gate", "update_gain>=0.2", "--gate", "rank-merge.map>0"]
    gate += ["--gate", "procrustes.ndcg@10>old/old.ndcg@10"]
    assert main([*command_of(stores), *gate, "--report", str(out)]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["verdict"], result["passed"], result["num_queries"]) == ("map", True, QUERIES)
    assert result["judgements"]["queries_not_asked"] == 0
    assert "compat-head: 15 clusters of old features in place of classes" in printed.err
    direct = probe(
        old=F.normalize(models(1.0, 0.4)[0], dim=1),
        new=F.normalize(models(1.0, 0.4)[1], dim=1),
        queries=ProbeQueries(*(F.normalize(rows, dim=1) for rows in models(1.0, 0.4)[2:])),
        judgements=Judgements(Qrels(grades()), QUERY_IDS, ITEM_IDS),
        adapters=["procrustes"], num_bootstrap=50, metrics=["map", "cmc@1", "ndcg@10"],
    )  # fmt: skip
    assert list(direct.ways[0].metrics) == ["map", "cmc@1", "ndcg@10"]
    table = printed.err[: printed.err.index("compat-head: 15 clusters")].splitlines()
    assert max(map(len, table)) <= 80
    low, high = (100 * bound for bound in direct.ways[1].gain_intervals["ndcg@10"])
    assert f"[{low:+.1f},{high:+.1f}]" in printed.err
    mine = {(way["name"], way["direction"]): way["metrics"] for way in result["ways"]}
    for way in direct.ways:
        assert mine[way.name, way.direction] == pytest.approx(way.metrics)
    page = (out / "report.html").read_text()
    assert "two-stage-rerank" in page
    assert "NDCG@10, gain" in page
    assert "--qrels" in page
    assert "15 clusters of old features" in page
    assert Page(page).all("img")
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page
    assert main(["report", str(out), str(stores / "run"), "--out", str(stores / "both")]) == 2
    (stores / "other").mkdir()
    (stores / "other" / "report.json").write_text((out / "report.json").read_text())
    assert main(["report", str(out), str(stores / "other"), "--out", str(stores / "both")]) == 0
    assert "Probe run" in (stores / "both" / "report.html").read_text()
    (stores / "other" / "report.json").write_text('{"kind": "probe", "verdict": "map"}')
    assert main(["report", str(stores / "other")]) == 2
    assert "report.json is not that of a probe" in capsys.readouterr().err


def test_command_keeps_judged_items_when_it_takes_few(stores, capsys):
    assert main(command_of(stores, "--limit", "200", "--adapters", "ridge", "--fit-share", "0.3",
                           "--budget", "0")) == 0  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    # 120 items are judged; of the other 380, 80 are drawn.
    assert result["judgements"]["relevant_not_among_items"] == 0
    assert (result["num_queries"], result["num_fit"], result["num_gallery"]) == (40, 60, 140)


def test_ids_of_queries_and_items_are_apart_unless_said(stores, capsys):
    items = FeatureStore.open(stores / "items-old")
    few = {"id": [f"d{RIGHT * at}" for at in range(QUERIES)]}
    for model in ("old", "new"):
        rows = FeatureStore.open(stores / f"items-{model}")
        at = [rows.ids.index(name) for name in few["id"]]
        FeatureStore.write(stores / f"self-{model}", rows.features[at], few, rows.fingerprint)
    lines = [f"{name} 0 d{row} 1" for name in few["id"] for row in
             (int(name[1:]), int(name[1:]) + 1)]  # fmt: skip
    (stores / "self.txt").write_text("\n".join(lines))
    assert len(items) == ITEMS
    own = ["--old-query", f"{stores}/self-old", "--new-query", f"{stores}/self-new", "--budget",
           "0", "--qrels", f"{stores}/self.txt", "--adapters", "ridge"]  # fmt: skip
    assert main(command_of(stores, *own)) == 0
    itself = json.loads(capsys.readouterr().out)["ways"][0]["metrics"]
    assert itself["cmc@1"] == 1
    assert main(command_of(stores, *own, "--exclude-self")) == 0
    assert json.loads(capsys.readouterr().out)["ways"][0]["metrics"]["cmc@1"] < 1


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("q0 0 d0", [], "qrels.txt, line 1: expected 'query-id iteration document-id grade'"),
        ("q0 0 d0 good", [], "line 1: expected an integer grade, got 'good'"),
        ("x 0 d0 1", [], "expected ids of the qrels, as 'x', got 'q0' and others"),
        ("q0 0 x 1", [], "none of 1 relevant documents is here"),
        ("", [], "expected judgements, found none"),
        ("q0 0 d0 1", ["--use-groups"], "needs a column 'group'"),
        ("q0 0 d0 1", ["--clusters", "1"], "clusters: expected 2 to 300"),
    ],
)
def test_command_refuses(stores, capsys, text, more, message):
    (stores / "qrels.txt").write_text(text)
    assert main(command_of(stores, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_command_refuses_options_that_do_not_go_together(stores, capsys):
    items = ["probe", "--old", f"{stores}/items-old", "--new", f"{stores}/items-new"]
    for more, message in (
        (["--qrels", f"{stores}/qrels.txt"], "--qrels: expected --old-query and --new-query"),
        (["--exclude-self"], "--exclude-self: expected --qrels"),
        (["--gate", "old/old.ndcg@10>0"], "old/old.ndcg@10 needs --qrels"),
        ([], "or judgements of real queries: --qrels with --old-query and --new-query"),
    ):
        assert main([*items, *more]) == 2
        assert message in capsys.readouterr().err
