# SPDX-License-Identifier: Apache-2.0
"""``fcl probe --qrels``: a decision by judgements of real queries."""

from __future__ import annotations

import json

import pytest
import torch.nn.functional as F
from judged_data import DIM, ITEM_IDS, ITEMS, QUERIES, QUERY_IDS, RIGHT, grades, models
from test_report import Page

from fclearn.cli import main
from fclearn.evaluation import Qrels
from fclearn.features import FeatureStore, Fingerprint
from fclearn.probe import Judgements, ProbeQueries, probe


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
