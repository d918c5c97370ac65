# SPDX-License-Identifier: Apache-2.0
"""The probe's splits by classes and by items: what is fitted on, what is measured on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from judged_data import ITEM_IDS, QUERIES, QUERY_IDS, grades
from judged_data import models as judged_models

from fclearn.adapters import Procrustes
from fclearn.cli import main
from fclearn.evaluation import Qrels, compatibility_report
from fclearn.features import FeatureStore, Fingerprint
from fclearn.probe import (
    NEW_TO_OLD,
    OLD_TO_NEW,
    SPLITS,
    Judgements,
    ProbeQueries,
    probe,
)
from fclearn.probe.held import Draw
from fclearn.probe.labelled import choose_items

CLASSES, ROWS, DIM = 24, 10, 32
DRAW = Draw(fit_share=0.6, query_limit=5000, seed=0)
FEW = {"adapters": ["ridge"], "budget": 0, "num_bootstrap": 50}


def unrelated():
    """Two models that put the classes in places that have nothing to do with each other.

    What a map learns of the places of some classes says nothing of those of the others.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES * ROWS) % CLASSES
    old, new = (torch.randn(2, CLASSES, DIM, generator=generator)[:, labels]).unbind()
    far = torch.randn(2, len(labels), DIM, generator=generator)
    return old + 1.2 * far[0], new + 0.2 * far[1], labels


def ways_of(result):
    return {way.name: way for way in result.ways if way.direction != OLD_TO_NEW}


class Spy(Procrustes):
    """Remembers what it was given."""

    fitted: list[torch.Tensor] = []  # noqa: RUF012
    moved: list[torch.Tensor] = []  # noqa: RUF012

    def fit(self, **given):
        self.fitted.append(given["source"])
        return super().fit(**given)

    def transform(self, features, **given):
        self.moved.append(features)
        return super().transform(features, **given)


@pytest.fixture
def spy(monkeypatch):
    monkeypatch.setattr(Spy, "fitted", [])
    monkeypatch.setattr(Spy, "moved", [])
    return {"adapters": {"spy": lambda _: Spy()}, "budget": 0, "num_bootstrap": 20}


@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=30),
    group_size=st.integers(1, 3),
    fit_share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_groups_are_whole_and_classes_on_both_sides(sizes, group_size, fit_share, seed):
    # Classes of so many groups each, and one more, so that something is on either side.
    sizes = [*sizes, 8, 8]
    groups = np.repeat(np.arange(sum(sizes)), group_size)
    classes = np.repeat(np.repeat(np.arange(len(sizes)), sizes), group_size)
    draw = Draw(fit_share, 5000, seed)
    is_fit = choose_items(classes, groups, draw)
    np.testing.assert_array_equal(is_fit, choose_items(classes, groups, draw))
    by_group = is_fit.reshape(-1, group_size)
    assert (by_group == by_group[:, :1]).all()
    for one, size in enumerate(sizes):
        count = by_group[classes.reshape(-1, group_size)[:, 0] == one, 0].sum()
        if size >= 3:
            assert 1 <= count <= size - 2
        if size == 2:
            assert count == 1
        least, most = min(1, size // 2), size - min(2, size - 1)
        assert abs(count - np.clip(fit_share * size, least, most)) <= 1


def test_names_of_groups_do_not_move_them():
    classes = np.arange(60) % 6
    named = np.array([f"i{row}" for row in range(60)])
    by_name, by_row = (choose_items(classes, own, DRAW) for own in (named, np.arange(60)))
    np.testing.assert_array_equal(by_name, by_row)


def test_small_classes_make_up_the_share_together_and_seeds_differ():
    classes = np.arange(500)
    draws = [choose_items(classes, classes, Draw(0.6, 1, seed)) for seed in range(3)]
    assert [draw.sum() for draw in draws] == [300] * 3
    assert len({draw.tobytes() for draw in draws}) == 3


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_several_classes_stay_whole(seed):
    rng = np.random.default_rng(seed)
    classes, groups = rng.integers(0, 20, 600), rng.integers(0, 150, 600)
    is_fit = choose_items(classes, groups, Draw(0.6, 1, seed))
    assert not set(groups[is_fit]) & set(groups[~is_fit])
    assert set(classes[is_fit]) == set(classes[~is_fit]) == set(range(20))
    assert abs(is_fit.mean() - 0.6) < 0.1


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("grouped", [False, True])
def test_nothing_is_measured_on_what_it_was_fitted_on(spy, split, grouped):
    old, new, labels = unrelated()
    groups = torch.arange(len(labels)) // (2 * CLASSES) * CLASSES + labels if grouped else None
    result = probe(old=old, new=new, labels=labels, groups=groups, split=split, **spy)
    number = {tuple(row.tolist()): at for at, row in enumerate(new)}
    fitted, measured = (
        [number[tuple(row.tolist())] for row in part] for part in (Spy.fitted[0], Spy.moved[0])
    )
    assert (len(fitted), len(measured)) == (result.num_fit, result.num_gallery)
    assert sorted(fitted + measured) == list(range(len(labels)))
    if groups is not None:
        assert not set(groups[fitted].tolist()) & set(groups[measured].tolist())


def test_where_the_classes_lie_is_learnt_for_those_there_are():
    old, new, labels = unrelated()
    by_class, by_item = (
        probe(old=old, new=new, labels=labels, split=split, **FEW) for split in SPLITS
    )
    known, unknown = (ways_of(result)["ridge"] for result in (by_item, by_class))
    assert unknown.metrics["map"] < 0.4
    assert known.metrics["map"] > 0.8
    assert known.gain_intervals["map"][0] > 0 > unknown.gain_intervals["map"][1]
    assert (by_item.verdict, by_class.verdict) == ("map", "train")
    assert (by_class.num_fit_classes, by_class.num_test_classes) == (14, 10)
    assert (by_item.num_fit_classes, by_item.num_test_classes) == (CLASSES, CLASSES)
    assert (by_class.num_shared_classes, by_item.num_shared_classes) == (0, CLASSES)
    # Which of the two was asked is said, and doubts are those of it.
    assert "measured on 10 of the 24 classes, held out" in by_class.split_text
    assert "Only 10 classes were held out" in by_class.text
    assert "Adapters were fitted on other classes" in by_class.text
    assert "held-out items of 24 classes: other items of all of them" in by_item.split_text
    assert "held out" not in by_item.text
    assert "Adapters were fitted on these classes: of others, they may do worse" in by_item.text
    again = probe(old=old, new=new, labels=labels, split="items", **FEW)
    assert [way.metrics for way in again.ways] == [way.metrics for way in by_item.ways]
    other = probe(old=old, new=new, labels=labels, split="items", seed=1, **FEW)
    assert other.ways[0].metrics != by_item.ways[0].metrics


def test_every_way_is_measured_on_items_of_the_same_classes():
    old, new, labels = unrelated()
    result = probe(old=old, new=new, labels=labels, split="items", num_bootstrap=100)
    names = {"procrustes", "ridge", "low-rank", "mean-shift", "mlp", "compat-head"}
    halves = {"rank-merge", "rank-merge-calibrated", "two-stage-rerank"}
    assert set(ways_of(result)) == {"old/old", "new/new", "oracle/old"} | names | halves
    assert result.left_out == {}
    assert ways_of(result)["oracle/old"].gain_intervals["map"][0] > 0
    for way in result.ways:
        low, high = way.intervals["map"]
        assert low <= way.metrics["map"] <= high


def test_digits_known_and_unknown():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16 + 0.1
    pair = {"old": F.avg_pool2d(images, 2).flatten(1), "new": images.flatten(1)}
    options = {"labels": digits.target, "adapters": ["compat-head"], "budget": 0}
    by_class, by_item = (
        probe(**pair, split=split, num_bootstrap=100, **options) for split in SPLITS
    )
    gains = [ways_of(result)["compat-head"].gain["map"] for result in (by_class, by_item)]
    assert gains[1] > gains[0] + 0.03
    assert (by_class.num_test_classes, by_item.num_shared_classes) == (4, 10)


def test_real_queries_are_of_any_class_and_none_was_fitted_on():
    old, new, labels = unrelated()
    ids = np.array([f"i{row}" for row in range(len(labels))])
    asked = np.arange(len(labels)) % 7 == 0
    items = np.arange(len(labels)) % 7 < 5  # so that some of the queries are items, and some not
    asked |= np.arange(len(labels)) % 7 == 6
    queries = ProbeQueries(
        torch.cat([old[asked], old[:3]]),
        torch.cat([new[asked], new[:3]]),
        np.concatenate([labels.numpy()[asked], [99] * 3]),
        np.concatenate([ids[asked], ["a", "b", "c"]]),
    )
    result = probe(
        old=old[items], new=new[items], labels=labels[items], groups=ids[items], queries=queries,
        split="items", **FEW,
    )  # fmt: skip
    is_fit = choose_items(labels[items].numpy(), ids[items], DRAW)
    fitted, gallery = ids[items][is_fit], np.isin(ids, ids[items][~is_fit])
    usable = asked & ~np.isin(ids, fitted)
    assert 0 < usable.sum() < asked.sum()
    assert (result.num_queries, result.num_skipped) == (usable.sum(), 3)
    report = compatibility_report(
        old_query=old[usable],
        old_gallery=old[gallery],
        new_query=new[usable],
        new_gallery=new[gallery],
        query_labels=labels[usable],
        gallery_labels=labels[gallery],
        exclude_self=True,
        query_ids=ids[usable],
        gallery_ids=ids[gallery],
    )
    for name in ("old/old", "new/new"):
        assert ways_of(result)[name].metrics["map"] == pytest.approx(report.matrix[name]["map"])
    assert set(labels[usable].tolist()) == set(range(CLASSES))
    known = ProbeQueries(old[:2], new[:2], labels[:2], [fitted[0], fitted[1]])
    with pytest.raises(ValueError, match=r"queries\.ids: expected some of no item fitted on"):
        probe(
            old=old[items], new=new[items], labels=labels[items], groups=ids[items], queries=known,
            split="items", **FEW,
        )  # fmt: skip
    # Without ids, nobody says that they are items: all may be asked.
    free = ProbeQueries(old[asked], new[asked], labels[asked])
    options = {"queries": free, "split": "items", **FEW}
    result = probe(old=old[items], new=new[items], labels=labels[items], **options)
    assert result.num_queries == asked.sum()


def test_classes_of_one_item_are_counted_and_those_of_two_need_real_queries():
    old, new, labels = unrelated()
    alone = torch.arange(len(labels)) < 60
    mixed = torch.where(alone, 1000 + torch.arange(len(labels)), labels)
    result = probe(old=old, new=new, labels=mixed, split="items", **FEW)
    assert result.num_skipped == 24  # of 60 alone in their class, 0.6 are fitted on
    assert result.num_queries + result.num_skipped == result.num_gallery
    assert result.num_shared_classes == CLASSES
    assert result.num_fit_classes == CLASSES + 36
    assert result.num_test_classes == CLASSES + 24
    assert "items of 48 classes: other items of 24 of them were fitted on" in result.split_text
    # One of two is fitted on: the other has nothing to find, but a query from elsewhere finds it.
    pairs = torch.arange(len(labels)) // 2
    message = "classes of three items or more, of as many groups .* alone in its class"
    with pytest.raises(ValueError, match=message):
        probe(old=old, new=new, labels=pairs, split="items", **FEW)
    queries = ProbeQueries(old[:50], new[:50], pairs[:50])
    result = probe(old=old, new=new, labels=pairs, queries=queries, split="items", **FEW)
    assert (result.num_queries, result.num_skipped, result.num_gallery) == (50, 0, len(pairs) // 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "rows"}, r"split: expected one of \['classes', 'items'\], got 'rows'"),
        ({"labels": np.zeros(240, int)}, "labels: expected at least 2 classes, got 1"),
        (
            {"groups": np.zeros(240, int)},
            "at least 2 items to fit on and 1 to test, got 240 items in 1 groups, of which",
        ),
        ({"queries": ProbeQueries(np.ones((2, DIM)), np.ones((2, DIM)))}, "queries.labels: expect"),
        ({"labels": [0, 1]}, r"old: expected one row per label \(2\), got 240"),
    ],
)
def test_bad_input(change, message):
    old, new, labels = unrelated()
    options = {"old": old, "new": new, "labels": labels, "split": "items", **FEW, **change}
    with pytest.raises(ValueError, match=message):
        probe(**options)


def test_judgements_split_by_items_alone():
    old, new, *asked = judged_models(1.0, 0.4)
    options = {
        "old": old, "new": new, "queries": ProbeQueries(*asked), **FEW,
        "judgements": Judgements(Qrels(grades()), QUERY_IDS, ITEM_IDS),
    }  # fmt: skip
    unsaid, said = (probe(**options, split=split) for split in (None, "items"))
    assert (unsaid.split, unsaid.num_shared_classes) == ("items", None)
    assert unsaid.split_text == "measured by judgements: fitted on items that no asked query judges"
    assert [way.metrics for way in unsaid.ways] == [way.metrics for way in said.ways]
    assert "Adapters were fitted" not in unsaid.text
    assert unsaid.num_queries == QUERIES
    with pytest.raises(ValueError, match="split: expected 'items' or none with judgements"):
        probe(**options, split="classes")


@pytest.fixture
def stores(tmp_path):
    old, new, labels = unrelated()
    ids = [f"item-{row}" for row in range(len(labels))]
    groups = (torch.arange(len(labels)) // (2 * CLASSES) * CLASSES + labels).tolist()
    for name, rows in (("old", old), ("new", new)):
        FeatureStore.write(
            tmp_path / name,
            F.normalize(rows, dim=1).numpy(),
            {"id": ids, "label": labels.tolist(), "group": groups},
            Fingerprint(name, DIM),
        )
    return tmp_path


@pytest.mark.parametrize("split", [None, "classes", "items"])
def test_command(stores, capsys, split):
    out = stores / "run"
    command = ["probe", "--old", f"{stores}/old", "--new", f"{stores}/new", "--adapters", "ridge"]
    command += ["--num-bootstrap", "50", "--json"] + (["--split", split] if split else [])
    gate = ["--gate", "ridge.map>old/old.map", "--report", f"{out}"]
    assert main([*command, *gate]) == (0 if split == "items" else 1)
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    used, other = ("items", "classes") if split == "items" else ("classes", "items")
    assert result["split"] == used
    assert result["passed"] is (split == "items")
    assert result["num_shared_classes"] == (CLASSES if split == "items" else 0)
    assert f"Metrics in %, {used} unseen in fitting" in printed.err
    assert f"{result['split_text']}\n" in printed.err
    asked = f"--split {other} measures that"
    assert asked in printed.err
    table = [line for line in printed.err.splitlines() if "│" in line]
    assert max(map(len, table)) <= 80
    page = (out / "report.html").read_text()
    assert f"Split by {used}, {result['split_text']}." in page
    assert asked in page
    (out / "report.html").unlink()
    assert main(["report", f"{out}"]) == 0
    assert (out / "report.html").read_text() == page
    old, new, labels = unrelated()
    direct = probe(old=F.normalize(old, dim=1), new=F.normalize(new, dim=1), labels=labels,
                   split=split, adapters=["ridge"], num_bootstrap=50)  # fmt: skip
    mine = {(way["name"], way["direction"]): way["metrics"] for way in result["ways"]}
    for way in direct.ways:
        assert mine[way.name, way.direction] == pytest.approx(way.metrics)
    # Every item is asked, by its id: those fitted on are not, so that it is the same again.
    capsys.readouterr()
    queries = ["--old-query", f"{stores}/old", "--new-query", f"{stores}/new"]
    assert main([*command, *queries]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [way["metrics"] for way in again["ways"]] == [way["metrics"] for way in result["ways"]]


def test_command_keeps_groups_together(stores, capsys):
    command = ["probe", "--old", f"{stores}/old", "--new", f"{stores}/new", "--adapters", "ridge"]
    command += ["--split", "items", "--use-groups", "--budget", "0", "--num-bootstrap", "20"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # Five groups of two items in each class: three of them are fitted on.
    assert (found["num_fit"], found["num_gallery"]) == (6 * CLASSES, 4 * CLASSES)
    old, new, labels = unrelated()
    groups = torch.arange(len(labels)) // (2 * CLASSES) * CLASSES + labels
    direct = probe(old=old, new=new, labels=labels, groups=groups, split="items", **FEW)
    mapped = next(way for way in direct.ways if way.direction == NEW_TO_OLD)
    (mine,) = (way for way in found["ways"] if way["direction"] == NEW_TO_OLD)
    assert mine["metrics"]["map"] == pytest.approx(mapped.metrics["map"], abs=0.02)


def test_command_refuses(stores, capsys):
    command = ["probe", "--old", f"{stores}/old", "--new", f"{stores}/new"]
    queries = ["--old-query", f"{stores}/old", "--new-query", f"{stores}/new", "--qrels", "none"]
    for more, message in (
        (["--split", "rows"], "--split: expected one of ['classes', 'items'], got 'rows'"),
        ([*queries, "--split", "classes"], "--split: expected items or none with --qrels"),
    ):
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
