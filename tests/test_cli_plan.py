# SPDX-License-Identifier: Apache-2.0
"""``fcl plan``, end to end on small stores, and everything it refuses."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from store_samples import overwritten

from fclearn.adapters import ForwardMap
from fclearn.backfill import ScoreCalibration, backfill_order
from fclearn.cli import main
from fclearn.features import FeatureStore, Fingerprint

ROWS, SAMPLE, DIM, CLASSES = 150, 120, 12, 10
QUICK = ["--num-bootstrap", "50", "--num-random", "2"]


def _features(seed=0):
    """An old model that sees some classes as noise, and a new one that sees them all."""
    rng = np.random.default_rng(seed)
    labels = np.arange(ROWS) % CLASSES
    new = rng.normal(size=(CLASSES, DIM))[labels] + 0.6 * rng.normal(size=(ROWS, DIM))
    old = new + np.where(labels < 5, 2.5, 0.4)[:, None] * rng.normal(size=(ROWS, DIM))
    return old.astype(np.float32), new.astype(np.float32), labels


def _write(path, features, rows, model="old", **columns):
    manifest = {"id": [f"item{row}" for row in rows], **columns}
    fingerprint = Fingerprint(model, features.shape[1], norm="none")
    return FeatureStore.write(path, features[rows], manifest, fingerprint)


@pytest.fixture
def stores(tmp_path):
    """Old features of the gallery, and new ones of a sample of it, in another order."""
    old, new, labels = _features()
    hits = (np.arange(ROWS) * 7) % 50
    _write(
        tmp_path / "old", old, np.arange(ROWS), label=labels, group=np.arange(ROWS) // 2, hits=hits
    )
    sampled = np.random.default_rng(1).permutation(ROWS)[:SAMPLE]
    _write(tmp_path / "new", new, sampled, "new")
    return tmp_path


@pytest.fixture
def plan(stores, capsys):
    """Run ``fcl plan`` on the stores, over an earlier plan; options given later win."""

    def run(*options, old="old", new="new", out="plan", replace=True):
        capsys.readouterr()
        arguments = ["plan", "--old-features", stores / old, "--new-features", stores / new]
        arguments += ["--out", stores / out, *(["--replace"] if replace else [])]
        code = main([str(part) for part in (*arguments, *QUICK, *options)])
        out_text, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out_text, err=err)

    return run


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(result, *parts):
    assert result.code == 2, result.err
    lines = [line for line in result.err.splitlines() if line.startswith("fcl: error: ")]
    assert len(lines) == 1, result.err
    for part in parts:
        assert part in lines[0]
    return True


def test_writes_an_ordered_plan_a_curve_and_a_verdict(stores, plan):
    result = plan("--order", "uncertainty", "--budget", "0.3", "--json")
    assert result.code == 0, result.err
    rows = _rows(stores / "plan" / "plan.csv")
    old, _, labels = _features()
    order = backfill_order("uncertainty", old, labels=labels)
    assert [row["id"] for row in rows] == [f"item{row}" for row in order.rows]
    assert [int(row["rank"]) for row in rows] == list(range(1, ROWS + 1))
    assert [row["in_budget"] for row in rows] == ["1"] * 45 + ["0"] * 105
    priorities = [float(row["priority"]) for row in rows]
    assert priorities == sorted(priorities, reverse=True)
    found = json.loads(result.out)
    written = json.loads((stores / "plan" / "curve.json").read_text())
    assert {**written, "gates": [], "passed": True} == found
    assert found["curve"]["num_gallery"] == SAMPLE
    assert found["verdict"]["status"] == "backfill"
    assert found["verdict"]["text"] in result.err.replace("\n", " ")
    assert found["counts"] == {"gallery": ROWS, "done": 0, "left": ROWS, "left_in_budget": 45}
    with Image.open(stores / "plan" / "curve.png") as picture:
        assert picture.size[0] > 1000
    calibration = ScoreCalibration.load(
        stores / "plan" / "calibration-mixed.safetensors", pair="new/old -> new/new"
    )
    assert calibration.method == "quantile"


def test_resumes_with_the_same_ranks(stores, plan):
    assert plan("--order", "random", "--seed", "5").code == 0
    whole = _rows(stores / "plan" / "plan.csv")
    done = [row["id"] for row in whole[:20]] + [whole[100]["id"]]
    (stores / "done.txt").write_text("\n".join([*done, "", done[0], ""]))
    result = plan("--order", "random", "--seed", "5", "--done", stores / "done.txt", "--json")
    left = _rows(stores / "plan" / "plan.csv")
    assert left == [row for row in whole if row["id"] not in done]
    assert json.loads(result.out)["counts"] == {
        "gallery": ROWS,
        "done": 21,
        "left": ROWS - 21,
        "left_in_budget": 10,
    }
    (stores / "done.txt").write_text("\n".join(row["id"] for row in whole))
    assert plan("--done", stores / "done.txt").code == 0
    assert _rows(stores / "plan" / "plan.csv") == []


def _contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_plan_is_replaced_only_if_told_to(stores, plan):
    assert plan(replace=False).code == 0
    before = _contents(stores)
    said = f"--out: {stores / 'plan'}: expected nothing there, found a plan: give another name"
    assert refused(plan("--order", "random", replace=False), said, "--replace")
    assert _contents(stores) == before
    # A way to serve that this plan does not have leaves no calibration behind.
    (stores / "plan" / "calibration-other.safetensors").write_bytes(b"stale")
    assert plan("--order", "random").code == 0
    assert _rows(stores / "plan" / "plan.csv")[0]["priority"]
    assert not (stores / "plan" / "calibration-other.safetensors").exists()
    # One that was stopped after its list is a plan, too.
    (stores / "plan" / "curve.json").unlink()
    (stores / "plan" / "report.html").unlink()
    assert refused(plan(replace=False), "found a plan")
    assert plan().code == 0


def test_lists_of_what_is_done_are_not_in_the_way(stores, plan):
    (stores / "plan").mkdir()
    (stores / "plan" / "done.txt").write_text("item3\n")
    assert plan("--done", stores / "plan" / "done.txt", replace=False).code == 0
    assert (stores / "plan" / "done.txt").read_text() == "item3\n"


@pytest.mark.parametrize("replace", [False, True])
def test_nothing_else_is_replaced_by_a_plan(stores, plan, replace):
    names = ("plan.csv", "curve.json", "curve.png", "calibration-mixed.safetensors")
    for name in names:
        (stores / name).mkdir()
        (stores / name / name).write_text("mine")
    (stores / "file").write_text("mine")
    before = _contents(stores)
    for name in ("old", "new"):
        said = f"{stores / name}: expected a folder for the report, found a feature store"
        assert refused(plan(out=name, replace=replace), said)
    for name in names:
        said = f"expected nothing or a plan to replace, found another {name}"
        assert refused(plan(out=name, replace=replace), said)
    assert refused(plan(out="file", replace=replace), "found a file")
    assert _contents(stores) == before


def test_equal_runs_are_equal(stores, plan):
    for folder in ("one", "two"):
        assert plan("--compare", "margin,centrality", out=folder).code == 0
    for name in ("plan.csv", "curve.json"):
        one, two = ((stores / folder / name).read_text() for folder in ("one", "two"))
        # The command says where it went.
        assert one == two.replace(str(stores / "two"), str(stores / "one"))


def test_compared_orders_are_told_by_area_and_interval(plan):
    result = plan("--compare", "centrality,random,uncertainty", "--json")
    found = json.loads(result.out)
    orders = found["curve"]["orders"]

    def told(name):
        area = orders[name]["map"]
        low, high = (f"{100 * bound:+.1f}" for bound in area["gain_interval"])
        return f"{100 * area['area']:.1f} %, {100 * area['gain']:+.1f} points [{low}, {high}]"

    text = found["verdict"]["text"]
    assert f"random order: area {told('margin')}" in text
    others = "; ".join(f"'{name}' {told(name)}" for name in ("centrality", "uncertainty"))
    assert f"Beside it, area and difference to random order: {others}." in text
    assert text in result.err.replace("\n", " ")


def test_traffic_and_other_orders_side_by_side(stores, plan):
    old, new, _ = _features()
    fitted = ForwardMap.fit(old=old, new=new, width=8, epochs=2, uncertainty=True)
    fitted.save(stores / "map.safetensors")
    extra = ["--traffic", "hits", "--forward-map", stores / "map.safetensors"]
    result = plan(
        "--order", "traffic", "--compare", "predicted-error,class-mean,random", *extra, "--json"
    )
    assert result.code == 0, result.err
    rows = _rows(stores / "plan" / "plan.csv")
    hits = [int(row["id"].removeprefix("item")) * 7 % 50 for row in rows]
    assert hits == sorted(hits, reverse=True)
    orders = json.loads(result.out)["curve"]["orders"]
    assert set(orders) == {"traffic", "predicted-error", "class-mean", "random"}
    for name in orders:
        assert name in result.err


def test_labels_from_a_file_queries_from_stores_and_groups(stores, plan):
    old, new, labels = _features(seed=0)
    rng = np.random.default_rng(9)
    rows = np.arange(0, ROWS, 5)
    query = new + 0.3 * rng.normal(size=new.shape).astype(np.float32)
    groups = {"label": labels[rows], "group": rows // 2}
    _write(stores / "q-old", old, rows, **groups)
    _write(stores / "q-new", query, rows[::-1], "new")
    lines = [f"item{row},class {labels[row]}" for row in range(ROWS)]
    (stores / "labels.csv").write_text("\n".join(["id,label", *lines]))
    queries = ["--old-query", stores / "q-old", "--new-query", stores / "q-new"]
    result = plan(*queries, "--labels", stores / "labels.csv", "--use-groups", "--json")
    assert result.code == 0, result.err
    curve = json.loads(result.out)["curve"]
    assert curve["num_queries"] + curve["num_skipped"] == len(rows)
    own = plan(*queries, "--use-groups", "--json")
    assert json.loads(own.out)["curve"] == curve


def test_queries_with_nothing_right_are_counted_and_the_rule_is_said(stores, plan):
    old, new, labels = _features()
    rows = np.arange(0, ROWS, 5)
    _write(stores / "q-old", old, rows, label=np.where(rows < 20, 900, labels[rows]))
    _write(stores / "q-new", new, rows, "new")
    result = plan("--old-query", stores / "q-old", "--new-query", stores / "q-new", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["curve"]["num_skipped"] == 4
    said = "4 queries have nothing right in the gallery; they count nowhere"
    assert said in result.err
    assert said in (stores / "plan" / "report.html").read_text()


def test_limits_take_a_sample(plan):
    result = plan("--gallery-limit", "60", "--query-limit", "25", "--json")
    curve = json.loads(result.out)["curve"]
    assert curve["num_gallery"] == 60
    assert curve["num_queries"] + curve["num_skipped"] == 25


def test_spaces_that_cannot_meet_are_served_as_two_indexes(stores, plan):
    _, new, _ = _features()
    _write(stores / "narrow", new[:, :6], np.arange(ROWS), "narrow")
    found = json.loads(plan("--json", new="narrow").out)
    assert found["curve"]["serving"] == "merged"
    assert "one index" not in found["ways"]
    assert not (stores / "plan" / "calibration-mixed.safetensors").exists()


def test_a_threshold_moves(plan):
    found = json.loads(plan("--threshold", "0.5", "--json").out)["thresholds"]
    assert set(found) == {"new/old", "new/new"}
    for moved in found.values():
        assert moved["new"]["false_rate"] <= moved["old"]["false_rate"]
        assert moved["interval"][0] <= moved["new"]["threshold"] <= moved["interval"][1]
    refused(plan("--threshold", "2"), "none of the", "reaches 2")


def test_verdicts(stores, plan):
    old, new, labels = _features()
    everything = np.arange(ROWS)
    good, bad = new, old
    _write(stores / "good", good, everything, label=labels)
    _write(stores / "bad", bad, everything, "new")
    stay = json.loads(plan("--json", old="good", new="bad").out)["verdict"]
    assert stay["status"] == "stay"
    assert "nothing to migrate for" in stay["text"]
    turned = new @ np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0]
    _write(stores / "turned", turned.astype(np.float32), everything, "new")
    few = ["--budget", "0.01", "--query-limit", "6", "--order", "random", "--json"]
    wait = json.loads(plan(*few, new="turned").out)
    assert wait["verdict"]["status"] == "wait"
    assert "keep serving old/old" in wait["verdict"]["text"]
    assert wait["verdict"]["order"] == "no different"


def test_an_order_that_hurts_is_called_so(stores, plan):
    old, _, labels = _features()
    # Busy rows are those the old model sees well already.
    _write(stores / "busy", old, np.arange(ROWS), label=labels, hits=labels)
    found = json.loads(plan("--order", "traffic", "--traffic", "hits", "--json", old="busy").out)
    assert found["verdict"]["order"] == "worse"
    assert "is worse than random order" in found["verdict"]["text"]
    assert found["curve"]["orders"]["traffic"]["map"]["gain_interval"][1] < 0


def test_gates(plan):
    passed = plan("--gate", "map>new/old.map", "--gate", "new/new.map > old/old.map", "--json")
    assert passed.code == 0, passed.err
    assert [gate["passed"] for gate in json.loads(passed.out)["gates"]] == [True, True]
    failed = plan("--gate", "area_gain>=0.9")
    assert failed.code == 1
    assert "gate FAILED: area_gain>=0.9" in failed.err
    assert refused(plan("--gate", "area>0"), "unknown name 'area'", "area_gain")
    assert refused(plan("--gate", "area_gain>1.5"), "area_gain is always in [-1, 1], got 1.5")
    assert refused(plan("--gate", "map>=30"), "map is always in [0, 1], got 30")
    # Shares of a gain have no bounds: an order may do harm, or more than all rows at once.
    assert plan("--gate", "gain_share>-3").code == 0


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--budget", "0"], ["--budget", "(0, 1]", "got 0"]),
        (["--budget", "1.5"], ["--budget", "got 1.5"]),
        (["--budget", "0.001"], ["--budget: 0.001 of the 120 rows measured is none"]),
        (["--order", "margins"], ["unknown name 'margins'", "did you mean 'margin'"]),
        (["--order", "traffic"], ["order 'traffic' needs --traffic COLUMN"]),
        (["--compare", "predicted-error"], ["needs --forward-map FILE"]),
        (["--traffic", "clicks"], ["--traffic: expected a column 'clicks'", "id, label, group"]),
        (["--num-random", "1"], ["--num-random: expected at least 2, got 1"]),
        (["--query-limit", "0"], ["--query-limit: expected at least 1"]),
        (["--old-query", "x"], ["--old-query and --new-query: expected both or neither"]),
    ],
)
def test_refused_options(plan, options, parts):
    assert refused(plan(*options), *parts)


def test_refused_ids(stores, plan):
    _, new, _ = _features()
    manifest = {"id": ["item0", "ghost1", "ghost2"]}
    FeatureStore.write(stores / "ghosts", new[:3], manifest, Fingerprint("new", DIM, norm="none"))
    assert refused(plan(new="ghosts"), "no features for 2 of the 3 ids", "'ghost1', 'ghost2'")
    held = "; the store has 'item0', 'item1', 'item2', …"
    assert refused(plan(new="ghosts"), held)
    (stores / "done.txt").write_text("item3\nite")
    assert refused(plan("--done", stores / "done.txt"), "1 of 2 ids are not in the gallery: 'ite'")
    (stores / "done.txt").write_bytes(b"\xff\xfe\x00")
    assert refused(plan("--done", stores / "done.txt"), "expected ids as UTF-8 text")
    assert refused(plan("--done", stores / "no.txt"), "no.txt: No such file")
    with (stores / "new" / "manifest.csv").open("a") as file:
        file.write("item0\r\n")
    assert refused(plan(), "manifest.csv", f"expected {SAMPLE} rows")
    text = (stores / "old" / "manifest.csv").read_text().replace("item1,", "item0,")
    (stores / "old" / "manifest.csv").write_text(text)
    assert refused(plan(), "expected distinct ids, found 'item0' in rows 0 and 1")


def test_refused_features(stores, plan):
    old, new, labels = _features()
    everything = np.arange(ROWS)
    broken = new.copy()
    broken[7, 3] = np.nan
    overwritten(_write(stores / "nan", new, everything, "new").path, broken)
    assert refused(plan(new="nan"), "nan: expected finite numbers, got a NaN or infinity in row 7")
    broken = old.copy()
    broken[9] = np.inf
    overwritten(_write(stores / "inf", old, everything, label=labels).path, broken)
    assert refused(plan(old="inf"), "expected finite numbers, got a NaN or infinity in row 9")
    broken[9] = 0
    _write(stores / "zero", broken, everything, label=labels)
    assert refused(plan(old="zero"), "zero: row 9 has norm zero", ": id 'item9'")
    _write(stores / "empty", old, everything[:0], label=labels[:0])
    _write(stores / "empty-new", new, everything[:0], "new")
    assert refused(plan(old="empty", new="empty-new"), "empty: expected at least one row")
    _write(stores / "q-old", old[:, :5], everything, label=labels)
    _write(stores / "q-new", new, everything, "new")
    queries = ["--old-query", stores / "q-old", "--new-query", stores / "q-new"]
    assert refused(plan(*queries), "--old-query and --old-features", "dim 5 and 12")
    FeatureStore.write(
        stores / "l2", old, {"id": [f"item{r}" for r in everything], "label": labels},
        Fingerprint("old", DIM, norm="none", metric="l2"),
    )  # fmt: skip
    assert refused(plan(old="l2"), "compared by the cosine", "metric 'l2'")


def test_refused_labels_and_traffic(stores, plan):
    old, _, labels = _features()
    everything = np.arange(ROWS)
    _write(stores / "bare", old, everything)
    assert refused(plan(old="bare"), "'label' in the manifest, or --labels")
    file = stores / "labels.csv"
    for text, part in (
        ("id,class\nitem0,1\n", "expected the columns 'id' and 'label', found id, class"),
        ("id,label\nitem0,1\nitem0,2\n", "expected each id once, found 'item0' again"),
        ("id,label\nitem0\n", "expected an id and a label in line 2"),
        ("id,label\n,1\n", "expected an id and a label in line 2"),
        ("id,label\nitem0,1\n", "no label for 149 of 150 ids: 'item1', 'item2', 'item3', …"),
    ):
        file.write_text(text)
        assert refused(plan("--labels", file, old="bare"), part)
    for values, part in (
        (["3"] * (ROWS - 1) + ["-2"], "column 'hits': expected counts >= 0, got -2 in row 149"),
        (["many"] * ROWS, "column 'hits': expected numbers"),
    ):
        _write(stores / "busy", old, everything, label=labels, hits=values)
        assert refused(plan("--order", "traffic", "--traffic", "hits", old="busy"), part)
    (stores / "map.safetensors").write_bytes(b"\x80\x04 not a map")
    forward = ["--order", "predicted-error", "--forward-map", stores / "map.safetensors"]
    assert refused(plan(*forward), "map.safetensors: not a valid ForwardMap")
    assert refused(plan("--use-groups", old="busy"), "--use-groups needs a column 'group'")
    assert not (stores / "plan").exists()
