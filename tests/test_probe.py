# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fclearn.cli import main
from fclearn.evaluation import compatibility_report
from fclearn.features import FeatureStore, Fingerprint
from fclearn.probe import NEW_TO_OLD, OLD_TO_NEW, _choose_classes, probe

CLASSES, ROWS, DIM = 30, 12, 16


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


def test_measures_what_the_report_measures_on_unseen_classes():
    old, new, labels = _models(1.5, 0.7)
    result = probe(old=old, new=new, labels=labels, adapters=["procrustes"], num_bootstrap=50)
    test = ~_choose_classes(labels.numpy(), 0.6, 0)
    assert not set(labels[test].tolist()) & set(labels[~test].tolist())
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


def test_recommends_by_what_is_possible():
    options = {"adapters": ["procrustes"], "num_bootstrap": 200}
    # A rotation apart and much better: the map will do.
    old, new, labels = _models(1.5, 0.3)
    good = probe(old=old, new=new, labels=labels, **options)
    assert (good.verdict, good.best) == ("map", "procrustes")
    assert "can be used as it is" in good.text
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
    found = {(way.name, way.direction) for way in result.ways if way.direction}
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
        ({"adapters": ["magic"]}, "adapters: expected some of .* got 'magic'"),
        ({"labels": [0, 1]}, "old: expected one row per label \\(2\\), got 360"),
        ({"labels": np.arange(360) % 3}, "at least 2 classes to fit and 2 to test, got 3"),
    ],
)
def test_bad_input(change, message):
    old, new, labels = _models(1.0, 0.5)
    with pytest.raises(ValueError, match=message):
        probe(**{"old": old, "new": new, "labels": labels, **change})


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
    assert "new query -> old space" in out.err
    assert main([*command, "--gate", "update_gain>=2"]) == 1
    assert main([*command, "--gate", "ridg.map>0"]) == 2
    assert "did you mean 'ridge.map'" in capsys.readouterr().err
    assert main([*command, "--limit", "200"]) == 0
    assert main([*command, "--use-groups"]) == 2
    assert "needs a column 'group'" in capsys.readouterr().err
