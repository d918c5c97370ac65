# SPDX-License-Identifier: Apache-2.0
"""Serving a half-migrated gallery: calibrations, and the table of ways, against evaluations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from store_samples import unit

from fclearn.backfill import (
    HALFWAY,
    MERGED,
    MIXED,
    MigrationSample,
    ScoreCalibration,
    compare_serving,
    fit_calibration,
    impostor_scores,
)
from fclearn.backfill.serving import ONE, ONE_CALIBRATED, RERANK, TWO_CALIBRATED, TWO_RRF
from fclearn.evaluation import evaluate_retrieval

ROWS, DIM, CLASSES = 160, 10, 8


def _scaled(factor=0.5, seed=0):
    """An upgrade that only turns the space and scales old cosines, in both kinds of serving.

    Rows keep a private direction, the same for all of a kind, that takes up the rest of their
    length: cos(old query, old row) = cos(new query, old row) = factor * cos(new query, new row).
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(ROWS) % CLASSES
    seen = unit(rng.normal(size=(CLASSES, DIM))[labels] + 0.9 * rng.normal(size=(ROWS, DIM)))
    plain = np.hstack([seen, np.zeros((ROWS, 1))])
    dull = np.hstack([factor * seen, np.full((ROWS, 1), np.sqrt(1 - factor**2))])
    return {
        "old_query": plain,
        "old_gallery": dull,
        "new_query": plain,
        "new_gallery": plain,
        "query_labels": labels,
        "gallery_labels": labels,
        "query_ids": np.arange(ROWS),
        "gallery_ids": np.arange(ROWS),
    }


def test_calibrated_serving_restores_what_mixing_loses():
    sample = MigrationSample.build(**_scaled())
    calibrations = {serving: fit_calibration(sample, serving) for serving in (MIXED, MERGED)}
    half = np.random.default_rng(1).permutation(ROWS)[: ROWS // 2]
    ways = compare_serving(sample, half, calibrations, num_bootstrap=100).ways
    truth = ways["new/new"].metrics["map"]
    assert ways["old/old"].metrics["map"] == pytest.approx(truth, abs=1e-3)
    for name in (ONE_CALIBRATED, TWO_CALIBRATED):
        assert ways[name].metrics["map"] == pytest.approx(truth, abs=1e-3)
    assert ways[ONE].metrics["map"] < truth - 0.05
    assert ways[ONE].gain_intervals["map"][1] < 0
    # Ranks of disjoint halves say nothing about each other; random halves of one kind lose little.
    assert ways[TWO_RRF].metrics["map"] < truth


def _noisy(seed=0, **change):
    rng = np.random.default_rng(seed)
    labels = np.arange(ROWS) % CLASSES
    seen = rng.normal(size=(CLASSES, DIM))[labels]
    new = seen + 0.6 * rng.normal(size=seen.shape)
    old = (seen + 1.2 * rng.normal(size=seen.shape)) @ np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    return {
        "old_query": old,
        "old_gallery": old,
        "new_query": new,
        "new_gallery": new,
        "query_labels": labels,
        "gallery_labels": labels,
        "query_ids": np.arange(ROWS),
        "gallery_ids": np.arange(ROWS),
        **change,
    }


def _ap(order, positive):
    hits = np.flatnonzero(positive[order])
    return np.mean((np.arange(len(hits)) + 1) / (hits + 1))


def test_every_way_by_definition():
    data = _noisy()
    sample = MigrationSample.build(**data)
    calibrations = {serving: fit_calibration(sample, serving) for serving in (MIXED, MERGED)}
    migrated = np.random.default_rng(3).permutation(ROWS)[:50]
    table = compare_serving(sample, migrated, calibrations, shortlist=20, num_bootstrap=50)
    old, new = (unit(data[name]) @ unit(data[name]).T for name in ("old_query", "new_query"))
    cross = unit(data["new_query"]) @ unit(data["old_gallery"]).T
    is_new, labels = np.isin(np.arange(ROWS), migrated), data["gallery_labels"]
    found = {name: [] for name in table.ways}
    for query in range(ROWS):
        others = np.setdiff1d(np.arange(ROWS), [query])
        positive = labels == labels[query]

        def ranked(scores, rows=others):
            return rows[np.argsort(-scores[rows], kind="stable")]

        moved = calibrations[MERGED].transform(old[query])
        halves = {
            ONE: cross[query],
            ONE_CALIBRATED: calibrations[MIXED].transform(cross[query]),
            TWO_CALIBRATED: moved,
        }
        orders = {name: ranked(np.where(is_new, new[query], s)) for name, s in halves.items()}
        orders |= {
            "old/old": ranked(old[query]),
            "new/old": ranked(cross[query]),
            "new/new": ranked(new[query]),
        }
        fused = np.zeros(ROWS)
        for scores, part in ((old, ~is_new), (new, is_new)):
            listed = ranked(scores[query], others[part[others]])
            fused[listed] = 1 / (60 + 1 + np.arange(len(listed)))
        orders[TWO_RRF] = ranked(fused)
        top = orders["old/old"][:20]
        worth = np.where(is_new, new[query], moved)
        orders[RERANK] = np.concatenate([ranked(worth, top), orders["old/old"][20:]])
        for name, order in orders.items():
            found[name].append(_ap(order, positive))
    assert set(found) == {"old/old", "new/old", "new/new", *HALFWAY}
    for name, values in found.items():
        # Scores are float32 in the table, so two rows in a million may trade places.
        assert table.ways[name].metrics["map"] == pytest.approx(np.mean(values), abs=2e-4)
    assert table.baseline == "old/old"
    assert table.ways["old/old"].gain == {"map": 0.0, "cmc@1": 0.0}
    assert table.best == TWO_CALIBRATED


def test_ends_are_those_of_evaluate_retrieval():
    data = _noisy(seed=4)
    sample = MigrationSample.build(**data)
    calibrations = {MERGED: fit_calibration(sample, MERGED)}
    same = {key: value for key, value in data.items() if key.endswith(("labels", "ids"))}
    for rows, side in ((np.arange(ROWS), "new"), (np.empty(0, int), "old")):
        table = compare_serving(sample, rows, calibrations, num_bootstrap=10)
        expected = evaluate_retrieval(
            data[f"{side}_query"], data[f"{side}_gallery"], exclude_self=True, **same
        )["map"]
        assert table.ways[f"{side}/{side}"].metrics["map"] == pytest.approx(expected, abs=1e-12)
        assert table.ways[TWO_CALIBRATED].metrics["map"] == pytest.approx(expected, abs=1e-4)
    assert ONE_CALIBRATED not in table.ways


def test_graded_positives_are_those_of_evaluate_retrieval():
    data = _noisy(seed=4)
    rng = np.random.default_rng(2)
    bare = {key: value for key, value in data.items() if not key.endswith("labels")}
    right = {
        "positives": [rng.permutation(ROWS)[: rng.integers(0, 9)].tolist() for _ in range(ROWS)]
    }
    right["grades"] = [rng.integers(1, 4, len(rows)).tolist() for rows in right["positives"]]
    metrics = ("ndcg@3", "ndcg", "map", "cmc@2")
    sample = MigrationSample.build(**bare, **right)
    table = compare_serving(sample, np.arange(ROWS), {}, metrics=metrics, num_bootstrap=10)
    ids = {key: value for key, value in data.items() if key.endswith("ids")}
    for side in ("old", "new"):
        expected = evaluate_retrieval(
            data[f"{side}_query"], data[f"{side}_gallery"], exclude_self=True, metrics=metrics,
            **ids, **right,
        )  # fmt: skip
        assert table.ways[f"{side}/{side}"].metrics == pytest.approx(expected.means, abs=1e-12)
    flat = MigrationSample.build(**bare, positives=right["positives"])
    plain = compare_serving(flat, np.arange(ROWS), {}, metrics=metrics, num_bootstrap=10)
    assert plain.ways["new/new"].metrics["ndcg@3"] != table.ways["new/new"].metrics["ndcg@3"]


def test_what_a_sample_lacks_is_left_out_or_refused():
    alone = MigrationSample.build(**_noisy(old_query=None))
    assert set(compare_serving(alone, [0], {}, num_bootstrap=10).ways) == {
        "new/old",
        ONE,
        "new/new",
    }
    thin = {"new_query": np.ones((ROWS, 4)), "new_gallery": np.ones((ROWS, 4))}
    apart = compare_serving(MigrationSample.build(**_noisy(**thin)), [0], {}, num_bootstrap=10)
    assert set(apart.ways) == {"old/old", TWO_RRF, RERANK, "new/new"}
    lone = MigrationSample.build(**_noisy(**thin, old_query=None))
    with pytest.raises(ValueError, match="new queries of 4 dims cannot meet old rows of 10"):
        compare_serving(lone, [0], {}, num_bootstrap=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"migrated": [0, 0]}, "migrated: expected each row once, got 1 repeats"),
        ({"migrated": [ROWS]}, r"migrated: expected rows in \[0, 160\), got 160 to 160"),
        ({"migrated": [0.5]}, "migrated: expected row numbers"),
        ({"shortlist": 0}, "shortlist: expected at least 1"),
        ({"num_bootstrap": 0}, "num_bootstrap: expected at least 1, got 0"),
        ({"confidence": 0.0}, r"confidence: expected a number in \(0, 1\), got 0.0"),
        ({"metrics": ["nap@5"]}, "metrics: unknown metric 'nap@5'; did you mean 'map@5'"),
    ],
)
def test_refused_tables(change, message):
    sample = MigrationSample.build(**_noisy())
    with pytest.raises(ValueError, match=message):
        compare_serving(**{"sample": sample, "migrated": [0], "calibrations": {}, **change})


def test_impostors_are_all_pairs_of_other_labels():
    data = _noisy()
    sample = MigrationSample.build(**data)
    scores = unit(data["old_query"]) @ unit(data["old_gallery"]).T
    differ = data["query_labels"][:, None] != data["gallery_labels"]
    found = impostor_scores(sample, "old/old", num_queries=ROWS)
    assert np.sort(found) == pytest.approx(np.sort(scores[differ]), abs=1e-6)
    assert len(impostor_scores(sample, "new/new", num_queries=3)) == 3 * ROWS * 7 // 8
    single = MigrationSample.build(
        **_noisy(query_labels=np.zeros(ROWS, int), gallery_labels=np.zeros(ROWS, int))
    )
    with pytest.raises(ValueError, match="gallery_labels: expected rows of other labels"):
        impostor_scores(single, "new/new")
    with pytest.raises(ValueError, match="serving: expected 'mixed' or 'merged', got 'x'"):
        fit_calibration(sample, "x")


@pytest.mark.parametrize("shape", [lambda s: s**3, np.tanh, lambda s: 0.2 * s + 3])
def test_quantiles_recover_any_increasing_change(shape):
    rng = np.random.default_rng(0)
    target = rng.normal(size=40_000)
    source = shape(rng.normal(size=40_000))
    calibration = ScoreCalibration.fit(source=source, target=target)
    probe = np.linspace(-2.5, 2.5, 21)
    assert calibration.transform(shape(probe)) == pytest.approx(probe, abs=0.12)
    steps = calibration.transform(np.linspace(source.min() - 1, source.max() + 1, 999))
    assert (np.diff(steps) >= 0).all()


def test_false_accept_rates_match_where_the_calibration_was_fitted():
    rng = np.random.default_rng(0)
    source, target = rng.gumbel(size=5000), rng.normal(size=7000)
    moved = ScoreCalibration.fit(source=source, target=target).transform(source)
    for threshold in np.quantile(target, [0.5, 0.9, 0.99, 0.999]):
        assert (moved >= threshold).mean() == pytest.approx((target >= threshold).mean(), abs=2e-3)


def test_affine_matches_mean_and_spread_and_goes_on_beyond():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=500), 3 * rng.normal(size=500) + 1
    calibration = ScoreCalibration.fit(source=source, target=target, method="affine")
    moved = calibration.transform(source)
    assert (moved.mean(), moved.std()) == pytest.approx((target.mean(), target.std()))
    far = calibration.transform([100.0, 200.0, 300.0])
    assert far[2] - far[1] == pytest.approx(far[1] - far[0])
    assert np.isnan(calibration.transform([np.nan])).all()
    assert calibration.transform([np.inf, -np.inf]).tolist() == [np.inf, -np.inf]


def test_ties_in_a_sample_are_one_knot():
    calibration = ScoreCalibration.fit(source=[0, 0, 0, 1], target=[1.0, 2.0, 3.0, 9.0])
    moved = calibration.transform([0.0, 1.0])
    assert 1 <= moved[0] <= 3
    assert moved[1] == pytest.approx(9.0)


@pytest.mark.parametrize("method", ["quantile", "affine"])
def test_calibrations_survive_a_file(method, tmp_path):
    rng = np.random.default_rng(0)
    first = ScoreCalibration.fit(
        source=rng.normal(size=99), target=rng.normal(size=99), method=method, pair="a -> b"
    )
    first.save(tmp_path / "c.safetensors")
    again = ScoreCalibration.load(tmp_path / "c.safetensors", pair="a -> b")
    probe = np.linspace(-9, 9, 50)
    assert np.array_equal(first.transform(probe), again.transform(probe))
    assert (again.method, again.pair) == (method, "a -> b")
    with pytest.raises(ValueError, match="expected a calibration 'b -> a', got 'a -> b'"):
        ScoreCalibration.load(tmp_path / "c.safetensors", pair="b -> a")


def _file(path, source, target, **header):
    meta = {"version": 1, "method": "quantile", "pair": "", **header}
    save_file(
        {"source": source, "target": target}, path, {"fclearn.ScoreCalibration": json.dumps(meta)}
    )


@pytest.mark.parametrize(
    ("source", "target", "header"),
    [
        ([0.0, 1.0], [0.0, 1.0], {"version": 2}),
        ([0.0, 1.0], [0.0, 1.0], {"method": "eval"}),
        ([0.0], [0.0], {}),
        ([0.0, 1.0], [0.0, 1.0, 2.0], {}),
        ([1.0, 0.0], [0.0, 1.0], {}),
        ([0.0, 1.0], [1.0, 0.0], {}),
        ([0.0, float("nan")], [0.0, 1.0], {}),
        ([0.0, 1.0], [0.0, float("inf")], {}),
    ],
)
def test_files_that_are_no_calibration(tmp_path, source, target, header):
    path = tmp_path / "c.safetensors"
    _file(path, torch.tensor(source).double(), torch.tensor(target).double(), **header)
    with pytest.raises(ValueError, match="not a valid ScoreCalibration"):
        ScoreCalibration.load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(FileNotFoundError):
        ScoreCalibration.load(path)
    for content in (b"", b"\x80\x04not a safetensors file"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a valid ScoreCalibration"):
            ScoreCalibration.load(path)
    _file(path, torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="expected two float64 vectors"):
        ScoreCalibration.load(path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"source": []}, ValueError, "source: expected at least one score"),
        ({"source": [1.0, 1.0]}, ValueError, "source: expected at least 2 distinct scores, got 2"),
        ({"target": [1.0, np.nan]}, ValueError, "target: expected finite scores"),
        ({"target": ["a"]}, TypeError, "target: expected real numbers"),
        ({"method": "platt"}, ValueError, "method: expected 'quantile' or 'affine', got 'platt'"),
    ],
)
def test_refused_calibrations(change, error, message):
    with pytest.raises(error, match=message):
        ScoreCalibration.fit(**{"source": [0.0, 1.0], "target": [0.0, 1.0], **change})
    with pytest.raises(TypeError, match="scores: expected real numbers"):
        ScoreCalibration.fit(source=[0.0, 1.0], target=[0.0, 1.0]).transform(["a"])
