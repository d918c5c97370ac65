# SPDX-License-Identifier: Apache-2.0
"""The probe by judgements of real queries, beside its definition on small data."""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from judged_data import ITEM_IDS, ITEMS, QUERIES, QUERY_IDS, RIGHT, grades, models

from fclearn.adapters import Procrustes
from fclearn.backfill.sample import sample_rows
from fclearn.evaluation import Qrels, judged_oracle_gain
from fclearn.probe import NEW_TO_OLD, Judgements, ProbeQueries, probe
from fclearn.probe.fitting import FitPairs, calibrate
from fclearn.probe.held import Draw
from fclearn.probe.items import Items
from fclearn.probe.judged import split_by_judgement

DRAW = Draw(fit_share=0.6, query_limit=5000, seed=0)


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
    gain = judged_oracle_gain(
        old, positives, np.arange(ITEMS), query=old_query[:10], query_ids=np.full(10, -1),
        grades=[[table[row] for row in rows] for rows, table in
                zip(positives, grades_of, strict=True)], metrics=("ndcg@2",),
    )  # fmt: skip
    assert gain.num_measured == 10
    for at, table in enumerate(grades_of):
        outcomes = []
        for stood in positives[at]:
            left = np.setdiff1d(np.arange(ITEMS), [stood])
            sought = {row: grade for row, grade in table.items() if row != stood}
            both = cosines(torch.stack([old[stood], old_query[at]]), old[left])
            mean, own = (ndcg(left[by_score(scores)], sought, k=2) for scores in both)
            outcomes.append(mean - own)
        assert any(abs(gain.per_query["ndcg@2"][at] - one) < 1e-6 for one in outcomes)


def test_the_ceiling_is_one_of_the_halves_by_definition():
    old, _, old_query, _ = models(1.0, 0.4)
    positives = [[3 * at, 3 * at + 1] for at in range(10)] + [[30], []]
    ids, nobody = np.arange(ITEMS), np.full(12, -1)
    gain = judged_oracle_gain(
        old, positives, ids, query=old_query[:12], query_ids=nobody, metrics=("map",)
    )
    assert gain.num_measured == 10
    assert gain.per_query["map"][10:].tolist() == [0, 0]
    moved = []
    for at in range(10):
        outcomes = []
        for stood, sought in (positives[at], positives[at][::-1]):
            left = np.setdiff1d(ids, [stood])
            both = cosines(torch.stack([old[stood], old_query[at]]), old[left])
            mean, own = (average_precision(left[by_score(scores)], {sought}) for scores in both)
            outcomes.append(mean - own)
        found = [abs(gain.per_query["map"][at] - one) < 1e-6 for one in outcomes]
        assert any(found)
        moved.append(outcomes[0] != outcomes[1])
    assert any(moved)
    # A row of the query's own id is not there to stand at, nor to be found.
    gain = judged_oracle_gain(
        old, [[0, 1]], ids, query=old_query[:1], query_ids=np.array([1]), metrics=("map",)
    )
    assert (gain.num_measured, gain.per_query["map"].tolist()) == (0, [0])


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
