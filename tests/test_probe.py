# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fclearn.backfill import (
    MERGED,
    MigrationSample,
    ScoreCalibration,
    compare_serving,
    fit_calibration,
)
from fclearn.cli import main
from fclearn.evaluation import compatibility_report
from fclearn.features import FeatureStore, Fingerprint
from fclearn.probe import HALFWAY, NEW_TO_OLD, OLD_TO_NEW, ProbeQueries, probe
from fclearn.probe.fitting import FitPairs, calibrate
from fclearn.probe.held import Draw
from fclearn.probe.labelled import choose_classes, choose_items
from fclearn.probe.verdict import judge

CLASSES, ROWS, DIM = 30, 12, 16
DRAW = Draw(fit_share=0.6, query_limit=5000, seed=0)


def _models(old_noise, new_noise, *, same_noise=0.0, turn=True, seed=0):
    """Class centres in a latent space, seen by two models through noise of their own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES * ROWS) % CLASSES
    centres = torch.randn(CLASSES, DIM, generator=generator)[labels]
    noise = torch.randn(3, len(labels), DIM, generator=generator)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
    old = centres + same_noise * noise[2] + old_noise * noise[0]
    new = centres + same_noise * noise[2] + new_noise * noise[1]
    return old, new @ rotation if turn else new, labels


def _held_out(labels, split):
    if split == "items":
        return ~choose_items(labels.numpy(), np.arange(len(labels)), DRAW)
    return ~choose_classes(labels.numpy(), DRAW)


@pytest.mark.parametrize("split", [None, "classes", "items"])
def test_measures_what_the_report_measures_on_what_is_unseen(split):
    old, new, labels = _models(1.5, 0.7)
    options = {"labels": labels, "adapters": ["procrustes"], "split": split, "num_bootstrap": 50}
    result = probe(old=old, new=new, **options)
    test = _held_out(labels, split)
    shared = set(labels[test].tolist()) & set(labels[~test].tolist())
    assert len(shared) == (CLASSES if split == "items" else 0)
    ways = {(way.name, way.direction): way for way in result.ways}
    mapped = ways["procrustes", NEW_TO_OLD]
    report = compatibility_report(
        old_query=old[test],
        old_gallery=old[test],
        new_query=new[test],
        new_gallery=new[test],
        query_labels=labels[test],
        gallery_labels=labels[test],
        exclude_self=True,
        query_ids=np.arange(test.sum()),
        gallery_ids=np.arange(test.sum()),
    )
    for name in ("old/old", "new/new"):
        for metric in ("map", "cmc@1"):
            assert ways[name, ""].metrics[metric] == pytest.approx(report.matrix[name][metric])
    room = report.matrix["new/new"]["map"] - report.matrix["old/old"]["map"]
    assert mapped.update_gain == pytest.approx(mapped.gain["map"] / room)
    assert result.num_fit == (~test).sum()
    assert result.num_fit_classes == len(labels[~test].unique())
    assert result.num_test_classes == len(labels[test].unique())
    content = result.to_dict()
    assert content["num_test_classes"] == result.num_test_classes
    assert content["num_shared_classes"] == len(shared)
    assert content["split"] == (split or "classes")


def test_recommends_by_what_is_possible():
    options = {"adapters": ["procrustes"], "num_bootstrap": 200}
    # A rotation apart and much better: the map will do.
    old, new, labels = _models(1.5, 0.3)
    good = probe(old=old, new=new, labels=labels, **options)
    assert (good.verdict, good.best) == ("map", "procrustes")
    assert "can be used as it is" in good.text
    share = next(way for way in good.ways if way.direction == NEW_TO_OLD).update_gain
    assert f"That is {100 * share:.0f} % of what re-indexing would bring" in good.text
    assert "so training compatibly may bring more" in good.text
    # Better, but in a way that no map tells: training is left.
    generator = torch.Generator().manual_seed(0)
    scrambled = torch.nn.Sequential(torch.nn.Linear(DIM, 64), torch.nn.ReLU())
    with torch.no_grad():
        for parameter in scrambled.parameters():
            parameter.copy_(3 * torch.randn(parameter.shape, generator=generator))
        hard = probe(old=old.abs(), new=scrambled(new), labels=labels, **options)
    assert hard.verdict == "train"
    assert "train the new model compatibly" in hard.text
    worse = probe(old=new, new=old, labels=labels, **options)
    assert worse.verdict == "stay"


def test_the_ceiling_lies_above_the_old_model_and_sees_no_item_twice():
    old, new, labels = _models(1.5, 0.7)
    result = probe(old=old, new=new, labels=labels, adapters=[], num_bootstrap=50)
    oracle = next(way for way in result.ways if way.name == "oracle/old")
    assert oracle.gain_intervals["map"][0] > 0.05
    # Without any class in the features, the mean of the other half knows nothing of this half.
    noise = torch.randn(2, len(labels), DIM, generator=torch.Generator().manual_seed(1))
    result = probe(old=noise[0], new=noise[1], labels=labels, adapters=[], num_bootstrap=200)
    oracle = next(way for way in result.ways if way.name == "oracle/old")
    low, high = oracle.gain_intervals["map"]
    assert low < 0.02
    assert high > -0.02


def test_every_adapter_in_both_directions_and_other_dims():
    old, new, labels = _models(1.0, 0.5)
    result = probe(old=old[:, :10], new=new, labels=labels, num_bootstrap=20)
    found = {
        (way.name, way.direction)
        for way in result.ways
        if way.direction in {NEW_TO_OLD, OLD_TO_NEW}
    }
    names = {"procrustes", "ridge", "low-rank", "mlp", "compat-head"}
    assert found == {(name, way) for name in names for way in (NEW_TO_OLD, OLD_TO_NEW)}
    again = probe(old=old[:, :10], new=new, labels=labels, num_bootstrap=20)
    assert [way.metrics for way in again.ways] == [way.metrics for way in result.ways]


def test_groups_leave_out_near_copies():
    old, new, labels = _models(1.0, 0.5)
    # Each item twice: without groups, its copy is every query's first hit.
    twice = [torch.cat([x, x]) for x in (old, new, labels)]
    groups = torch.arange(len(labels)).repeat(2)
    options = {"adapters": ["procrustes"], "num_bootstrap": 20}
    copies = probe(old=twice[0], new=twice[1], labels=twice[2], **options)
    apart = probe(old=twice[0], new=twice[1], labels=twice[2], groups=groups, **options)
    assert copies.ways[0].metrics["cmc@1"] == 1
    assert apart.ways[0].metrics["cmc@1"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit_share": 1.0}, "fit_share: expected a number in"),
        ({"budget": 1.5}, r"budget: expected a share of the gallery in \[0, 1\], got 1.5"),
        ({"num_bootstrap": 0}, "num_bootstrap: expected at least 1, got 0"),
        ({"query_limit": 0}, "query_limit: expected at least 1, got 0"),
        ({"shortlist": 0, "adapters": []}, "shortlist: expected at least 1, got 0"),
        ({"adapters": ["magic"]}, "adapters: expected some of .* got 'magic'"),
        ({"labels": [0, 1]}, "old: expected one row per label \\(2\\), got 360"),
        ({"labels": np.arange(360) % 3}, "at least 2 classes to fit and 2 to test, got 3"),
    ],
)
def test_bad_input(change, message):
    old, new, labels = _models(1.0, 0.5)
    with pytest.raises(ValueError, match=message):
        probe(**{"old": old, "new": new, "labels": labels, **change})


@pytest.mark.parametrize("split", ["classes", "items"])
def test_rank_merge_and_reranking_are_those_of_the_plan_at_one_budget(split):
    old, new, labels = _models(1.5, 0.5)
    result = probe(
        old=old, new=new, labels=labels, adapters=[], split=split, budget=0.3, shortlist=20,
        num_bootstrap=50,
    )  # fmt: skip
    halves = {way.name: way for way in result.ways if way.direction == HALFWAY}
    test = _held_out(labels, split)
    everything = {}
    for name, rows in (("fit", ~test), ("test", test)):
        ids = np.flatnonzero(rows)
        everything[name] = MigrationSample.build(
            old_query=old[rows], new_query=new[rows], old_gallery=old[rows],
            new_gallery=new[rows], query_labels=labels[rows], gallery_labels=labels[rows],
            query_ids=ids, gallery_ids=ids,
        )  # fmt: skip
    size = int(test.sum())
    count = round(0.3 * size)
    migrated = np.random.default_rng(0).permutation(size)[:count]
    table = compare_serving(
        everything["test"],
        migrated,
        {MERGED: fit_calibration(everything["fit"], MERGED, seed=0)},
        shortlist=20,
        num_bootstrap=50,
    )
    for name, way in {
        "rank-merge": "two indexes, RRF",
        "rank-merge-calibrated": "two indexes, calibrated",
        "two-stage-rerank": "two-stage rerank",
    }.items():
        assert halves[name].metrics == pytest.approx(table.ways[way].metrics)
        assert halves[name].embedded == pytest.approx(count / size)
        assert halves[name].queries_by == "both"
    # What is measured elsewhere agrees with what is measured here.
    before = {way.name: way for way in result.ways}["old/old"]
    assert before.metrics == pytest.approx(table.ways["old/old"].metrics)
    assert (before.embedded, before.queries_by) == (0, "old")


def test_the_ceiling_is_never_above_one():
    # Classes that lie far apart, with a few rows astray: half of a gallery is easier by far.
    old, _, labels = _models(0.05, 0.05)
    old = torch.where((torch.arange(len(old)) % 7 == 0)[:, None], old.roll(1, 0), old)
    result = probe(old=old, new=old, labels=labels, adapters=[], budget=0, num_bootstrap=50)
    oracle = next(way for way in result.ways if way.name == "oracle/old")
    assert oracle.gain["map"] > 0
    assert all(value <= 1 for value in oracle.metrics.values())
    assert all(bounds[1] <= 1 for bounds in oracle.intervals.values())


def test_fewer_queries_search_the_same_gallery():
    old, new, labels = _models(1.5, 0.7)
    options = {"labels": labels, "adapters": ["ridge"], "num_bootstrap": 50}
    everyone = probe(old=old, new=new, **options)
    some = probe(old=old, new=new, query_limit=100, **options)
    assert (some.num_queries, some.num_gallery) == (100, everyone.num_gallery)
    for mine, theirs in zip(some.ways, everyone.ways, strict=True):
        assert mine.name == theirs.name
        assert mine.metrics["map"] == pytest.approx(theirs.metrics["map"], abs=0.1)


def test_real_queries_meet_held_out_classes_alone():
    old, new, labels = _models(1.5, 0.5)
    asked = torch.arange(len(labels)) // CLASSES % 3 == 0
    strangers = torch.full((5,), 999)
    queries = ProbeQueries(
        torch.cat([old[asked], old[:5]]),
        torch.cat([new[asked], new[:5]]),
        torch.cat([labels[asked], strangers]),
        torch.cat([torch.arange(len(labels))[asked], torch.arange(-6, -1)]),
    )
    items = ~asked
    result = probe(
        old=old[items], new=new[items], labels=labels[items], queries=queries,
        groups=torch.arange(len(labels))[items], adapters=["procrustes"], num_bootstrap=50,
    )  # fmt: skip
    test = torch.from_numpy(~choose_classes(labels[items].numpy(), DRAW))
    held_out = torch.isin(labels[asked], labels[items][test].unique())
    # Queries of a class that nothing has are counted; those of the fitting classes are not asked.
    assert (result.num_queries, result.num_skipped) == (int(held_out.sum()), 5)
    report = compatibility_report(
        old_query=old[asked][held_out],
        old_gallery=old[items][test],
        new_query=new[asked][held_out],
        new_gallery=new[items][test],
        query_labels=labels[asked][held_out],
        gallery_labels=labels[items][test],
    )
    ways = {way.name: way for way in result.ways if not way.direction}
    for name in ("old/old", "new/new"):
        assert ways[name].metrics["map"] == pytest.approx(report.matrix[name]["map"])
    assert ways["oracle/old"].gain["map"] > 0
    wrong = {"queries": ProbeQueries(old[:3, :4], new[:3], labels[:3])}
    with pytest.raises(ValueError, match=r"queries\.old: expected 16 dims .* got 4"):
        probe(old=old, new=new, labels=labels, **wrong)


def test_no_room_in_the_old_space_is_said():
    old, new, labels = _models(1.5, 0.3)
    result = probe(old=old, new=new, labels=labels, adapters=["procrustes"], num_bootstrap=50)
    ways = {way.name: way for way in result.ways if way.direction != OLD_TO_NEW}
    stuck = replace(ways["procrustes"], gain_intervals={"map": (-0.1, 0.1)})
    sides = [ways["old/old"], ways["new/new"], stuck]
    advice = judge([*sides, ways["oracle/old"]], 144, 200, 16)
    assert (advice.verdict, advice.best) == ("train", "procrustes")
    closed = replace(ways["oracle/old"], gain={"map": -0.1}, gain_intervals={"map": (-0.2, -0.05)})
    advice = judge([*sides, closed, ways["two-stage-rerank"]], 144, 200, 16)
    assert advice.verdict == "reindex"
    assert "only embedding the gallery anew helps" in advice.text
    assert "two-stage-rerank reaches" in advice.text


def test_what_mAP_alone_does_not_say():
    old, new, labels = _models(1.5, 0.3)
    result = probe(old=old, new=new, labels=labels, adapters=["procrustes"], num_bootstrap=50)
    ways = {way.name: way for way in result.ways if way.direction != OLD_TO_NEW}
    mapped = ways["procrustes"]
    lost = replace(
        mapped,
        gain={**mapped.gain, "cmc@1": -0.12},
        gain_intervals={**mapped.gain_intervals, "cmc@1": (-0.17, -0.07)},
    )
    sides = [ways["old/old"], ways["new/new"], ways["oracle/old"]]
    advice = judge([*sides, lost], 144, 200, 16, 4)
    assert "their first hit gets worse, CMC@1 -12.0 points" in advice.text
    assert "used as it is" not in advice.text
    assert "Only 4 classes were held out: others may change" in advice.text
    sure = judge([*sides, mapped], 144, 200, 16, 100)
    assert "used as it is" in sure.text
    assert "held out" not in sure.text


def test_a_rotation_of_the_old_model_needs_no_more_than_a_map():
    old, _, labels = _models(1.0, 1.0)
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(5)))[0]
    same = probe(old=old, new=old @ turn, labels=labels, adapters=["procrustes"], num_bootstrap=200)
    assert (same.verdict, same.map_suffices) == ("stay", True)
    assert "a map suffices: new queries on the old gallery reach" in same.text
    noise = torch.randn(len(old), DIM, generator=torch.Generator().manual_seed(6))
    none = probe(old=old, new=noise, labels=labels, num_bootstrap=200)
    assert (none.verdict, none.map_suffices) == ("stay", False)
    assert "Nor does a map make it take the old one's place" in none.text


def test_few_queries_decide_nothing():
    old, new, labels = _models(1.0, 0.9)
    found = probe(old=old, new=new, labels=labels, adapters=["ridge"], num_bootstrap=50)
    ways = {way.name: way for way in found.ways if way.direction in {"", NEW_TO_OLD}}

    def advice(gain, interval, of_map, num_queries=20):
        better = replace(ways["new/new"], gain={"map": gain}, gain_intervals={"map": interval})
        mapped = replace(ways["ridge"], gain_intervals={"map": of_map})
        return judge(
            [ways["old/old"], better, ways["oracle/old"], mapped],
            num_queries,
            10 * num_queries,
            128,
        )

    unclear = advice(0.02, (-0.01, 0.05), (-0.02, 0.03))
    assert (unclear.verdict, unclear.map_suffices) == ("unclear", False)
    assert "These 20 queries cannot tell whether it is better" in unclear.text
    assert "the difference of +2.0 points has the interval -1.0 to +5.0" in unclear.text
    assert "Only 20 queries counted: read all intervals as rough." in unclear.text
    enough = advice(0.02, (0.01, 0.03), (-0.02, 0.03), 500)
    assert enough.verdict == "train"
    assert "Only" not in enough.text
    assert "Only 200 pairs for maps of 128 dims" in unclear.text
    # What rounding moves is no gain, and a map that clearly helps is one whatever the new model is.
    assert advice(1e-5, (-1e-5, 1e-4), (-0.001, 0.001)).verdict == "stay"
    assert advice(0.02, (-0.01, 0.05), (0.001, 0.03)).verdict == "map"


def test_half_precision_and_more_dims_than_rows():
    old, new, labels = _models(1.0, 0.5)
    whole = probe(old=old, new=new, labels=labels, adapters=["ridge"], num_bootstrap=20)
    half = probe(
        old=old.half().numpy(), new=new.half().numpy(), labels=labels, adapters=["ridge"],
        num_bootstrap=20,
    )  # fmt: skip
    for one, other in zip(half.ways, whole.ways, strict=True):
        assert one.metrics["map"] == pytest.approx(other.metrics["map"], abs=0.01)
    wide = torch.randn(DIM, 300, generator=torch.Generator().manual_seed(7))
    few = torch.arange(len(labels)) < 3 * CLASSES
    result = probe(old=old[few] @ wide, new=new[few] @ wide, labels=labels[few], num_bootstrap=20)
    assert len(result.ways) == 3 + 2 * 6 + 3


def test_classes_of_one_row_are_counted():
    old, new, labels = _models(1.0, 0.5)
    alone = torch.arange(len(labels)) % 2 == 0
    labels = torch.where(alone, 1000 + torch.arange(len(labels)), labels)
    result = probe(old=old, new=new, labels=labels, num_bootstrap=20)
    assert result.num_skipped > 50
    assert result.num_queries + result.num_skipped == result.num_gallery
    with pytest.raises(
        ValueError, match="alone in its class, so that no query has anything to find"
    ):
        probe(old=old, new=new, labels=torch.arange(360), num_bootstrap=20)
    # Where no class to fit on has two rows, all pairs but a row with itself calibrate.
    sides = {"old": old[:50], "new": new[:50]}
    single = FitPairs(sides, np.arange(50), np.arange(50), 2, 0)
    old_unit, new_unit = (F.normalize(rows, dim=1) for rows in sides.values())
    apart = ~np.eye(50, dtype=bool)
    expected = ScoreCalibration.fit(
        source=(old_unit @ old_unit.T).numpy()[apart], target=(new_unit @ new_unit.T).numpy()[apart]
    )
    at = np.linspace(-1, 1, 9)
    assert calibrate(single, None).transform(at) == pytest.approx(expected.transform(at), abs=1e-5)


@pytest.fixture
def stores(tmp_path):
    old, new, labels = _models(1.5, 0.3)
    ids = [f"item-{row}" for row in range(len(labels))]
    FeatureStore.write(
        tmp_path / "old",
        F.normalize(old, dim=1).numpy(),
        {"id": ids, "label": labels.tolist()},
        Fingerprint("old", DIM),
    )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    FeatureStore.write(
        tmp_path / "new",
        F.normalize(new, dim=1)[order].numpy(),
        {"id": [ids[row] for row in order]},
        Fingerprint("new", DIM),
    )
    return tmp_path


def test_command(stores, capsys):
    command = ["probe", "--old", f"{stores}/old", "--new", f"{stores}/new", "--num-bootstrap", "50"]
    command += ["--adapters", "procrustes,ridge", "--json"]
    assert main([*command, "--gate", "procrustes.map>old/old.map"]) == 0
    out = capsys.readouterr()
    result = json.loads(out.out)
    # Rows of the new store come in another order: they are matched by id.
    assert result["verdict"] == "map"
    assert result["passed"] is True
    # On 80 columns no number is cut.
    table = [line for line in out.err.splitlines() if "│" in line]
    assert max(map(len, table)) <= 80
    assert "…" not in out.err
    for heading in ("queries mapped", "gallery mapped", "partly embedded anew"):
        assert sum(heading in line for line in table) == 1
    assert sum("ridge" in line for line in table) == 2
    assert main([*command, "--gate", "update_gain>=2"]) == 1
    assert main([*command, "--gate", "ridge.map>=40"]) == 2
    assert "gates are on fractions: 5 % is 0.05" in capsys.readouterr().err
    assert main([*command, "--gate", "ridg.map>0"]) == 2
    assert "did you mean 'ridge.map'" in capsys.readouterr().err
    assert main([*command, "--limit", "200"]) == 0
    assert main([*command, "--use-groups"]) == 2
    assert "needs a column 'group'" in capsys.readouterr().err
    assert main([*command, "--budget", "0", "--gate", "rank-merge.map>0"]) == 2
    assert "rank-merge.map needs --budget" in capsys.readouterr().err
    assert main([*command, "--gate", "two-stage-rerank.map>old/old.map"]) == 0
    assert main([*command, "--old-query", f"{stores}/old"]) == 2
    assert "expected both or neither" in capsys.readouterr().err
    both = ["--old-query", f"{stores}/old", "--new-query", f"{stores}/new"]
    assert main([*command, *both]) == 0
    # Every item is a query and left out of its own gallery: the same as without query stores.
    assert json.loads(capsys.readouterr().out)["ways"][0]["metrics"] == result["ways"][0]["metrics"]
    swapped = ["--old-query", f"{stores}/new", "--new-query", f"{stores}/old"]
    assert main([*command, *swapped]) == 2
    assert "--old and --old-query: refusing to mix" in capsys.readouterr().err
