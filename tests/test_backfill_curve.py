# SPDX-License-Identifier: Apache-2.0
"""The gain curve against evaluations of galleries that are really half migrated."""

from __future__ import annotations

import numpy as np
import pytest

from fclearn.backfill import MERGED, MIXED, MigrationSample, ScoreCalibration, backfill_curve
from fclearn.backfill.curve import RANDOM
from fclearn.evaluation import METRIC_NAMES, evaluate_retrieval
from fclearn.evaluation._rows import Rows, Scorer

QUERIES, ROWS, DIM, CLASSES = 23, 90, 12, 6
METRICS = tuple(name.replace("@k", "@4") for name in METRIC_NAMES)
FRACTIONS = (0.0, 0.1, 0.35, 0.5, 0.9, 1.0)


@pytest.fixture(scope="module")
def data():
    """Compatible spaces; rows of other labels are copies of the first, so that ties decide."""
    rng = np.random.default_rng(1)
    labels = {"gallery": np.arange(ROWS) % CLASSES, "query": rng.integers(0, CLASSES + 1, QUERIES)}
    centres = rng.normal(size=(CLASSES + 1, DIM))
    new = centres[labels["gallery"]] + 0.5 * rng.normal(size=(ROWS, DIM))
    new[31:37], new[62:68] = new[:6], new[:6]
    old = new + 0.8 * rng.normal(size=(ROWS, DIM))
    old[62:68] = old[:6]
    query = centres[labels["query"]] + 0.5 * rng.normal(size=(QUERIES, DIM))
    return {
        "new_query": query.astype(np.float32),
        "old_query": (query + 0.8 * rng.normal(size=query.shape)).astype(np.float32),
        "old_gallery": old.astype(np.float32),
        "new_gallery": new.astype(np.float32),
        "query_labels": labels["query"],
        "gallery_labels": labels["gallery"],
        "query_ids": np.arange(QUERIES),
        "gallery_ids": np.arange(ROWS),
        "query_groups": np.arange(QUERIES) // 2,
        "gallery_groups": np.arange(ROWS) // 3,
    }


def _evaluate(data, gallery, query="new_query"):
    return evaluate_retrieval(
        data[query],
        gallery,
        query_labels=data["query_labels"],
        gallery_labels=data["gallery_labels"],
        exclude_self=True,
        query_ids=data["query_ids"],
        gallery_ids=data["gallery_ids"],
        query_groups=data["query_groups"],
        gallery_groups=data["gallery_groups"],
        metrics=METRICS,
        return_per_query=True,
    )


def test_every_point_is_an_evaluation_of_the_mixed_gallery(data):
    orders = {name: np.random.default_rng(s).permutation(ROWS) for s, name in enumerate("ab")}
    curve = backfill_curve(
        MigrationSample.build(**data),
        orders,
        fractions=FRACTIONS,
        metrics=METRICS,
        num_bootstrap=10,
    )
    for name, order in orders.items():
        for at, share in enumerate(curve.fractions):
            mixed = data["old_gallery"].copy()
            moved = order[: round(share * ROWS)]
            mixed[moved] = data["new_gallery"][moved]
            expected = _evaluate(data, mixed)
            for metric in METRICS:
                found = curve.orders[name][metric].values[at]
                assert found == pytest.approx(expected[metric], abs=1e-12)
            assert (curve.num_queries, curve.num_skipped) == (
                expected.num_queries,
                expected.num_skipped,
            )
    assert curve.num_skipped > 0


def test_scores_are_those_of_an_evaluation_bit_for_bit(data):
    sample = MigrationSample.build(**data)
    for found, query, gallery in (
        (sample.new_scores, "new_query", "new_gallery"),
        (sample.old_scores, "old_query", "old_gallery"),
        (sample.cross_scores, "new_query", "old_gallery"),
    ):
        scorer = Scorer(Rows(data[query], query), Rows(data[gallery], gallery), "cosine")
        expected = scorer.score(
            scorer.queries(slice(0, QUERIES)), scorer.gallery(slice(0, ROWS))
        ).numpy()
        assert np.array_equal(found(slice(0, QUERIES)), expected)


def test_ends_are_the_cross_and_the_self_test_also_of_a_wider_new_model(data):
    rng = np.random.default_rng(5)
    wide = {
        **data,
        "new_query": np.hstack([data["new_query"], rng.normal(size=(QUERIES, 3))]),
        "new_gallery": np.hstack([data["new_gallery"], rng.normal(size=(ROWS, 3))]),
    }
    sample = MigrationSample.build(**wide)
    order = {"rows": np.arange(ROWS)}
    mixed = backfill_curve(sample, order, num_bootstrap=10).orders["rows"]["map"].values
    assert mixed[0] == pytest.approx(_evaluate(wide, wide["old_gallery"])["map"], abs=1e-12)
    assert mixed[-1] == pytest.approx(_evaluate(wide, wide["new_gallery"])["map"], abs=1e-12)
    merged = backfill_curve(sample, order, serving=MERGED, num_bootstrap=10)
    old = _evaluate(data, data["old_gallery"], "old_query")["map"]
    assert merged.orders["rows"]["map"].values[0] == pytest.approx(old, abs=1e-12)


def test_areas_are_integrals_and_compare_with_random_and_ideal(data):
    orders = {"rows": np.arange(ROWS)}
    curve = backfill_curve(
        MigrationSample.build(**data), orders, fractions=FRACTIONS, num_random=4, num_bootstrap=200
    )
    found, chance = curve.orders["rows"]["map"], curve.orders[RANDOM]["map"]
    x = np.array(curve.fractions)
    for item in (found, chance):
        y = np.array(item.values)
        assert item.area == pytest.approx(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum(), abs=1e-12)
    assert found.gain == pytest.approx(found.area - chance.area, abs=1e-12)
    ideal = found.values[-1] - chance.area
    assert found.share_of_ideal == pytest.approx(found.gain / ideal, abs=1e-12)
    assert found.gain_interval[0] < found.gain < found.gain_interval[1]
    assert (chance.gain, chance.gain_interval) == (0.0, (0.0, 0.0))
    for (low, high), value in zip(curve.random_band["map"], chance.values, strict=True):
        assert low <= value <= high


def test_random_order_is_the_mean_over_its_seeds(data):
    sample = MigrationSample.build(**data)
    rng = np.random.default_rng(7)
    orders = {str(at): rng.permutation(ROWS) for at in range(3)}
    curve = backfill_curve(sample, orders, num_random=3, seed=7, num_bootstrap=10)
    values = np.array([curve.orders[name]["map"].values for name in orders])
    assert curve.orders[RANDOM]["map"].values == pytest.approx(values.mean(0), abs=1e-12)
    spread = 1.96 * values.std(axis=0, ddof=1)
    widths = [high - low for low, high in curve.random_band["map"]]
    assert widths == pytest.approx(2 * spread, abs=1e-12)


def test_blocks_do_not_change_the_curve(data, monkeypatch):
    sample = MigrationSample.build(**data)
    orders = {"rows": np.arange(ROWS)}
    whole = backfill_curve(sample, orders, num_bootstrap=10)
    monkeypatch.setattr(MigrationSample, "blocks", lambda self: [slice(0, 4), slice(4, QUERIES)])
    assert backfill_curve(sample, orders, num_bootstrap=10) == whole


def _half_broken(seed=0):
    """The old model sees every other row as noise, and the rest as the new one does."""
    rng = np.random.default_rng(seed)
    labels = np.arange(240) % 12
    new = np.eye(16)[labels] + 0.15 * rng.normal(size=(240, 16))
    broken = np.flatnonzero(rng.permutation(240) < 120)
    old = new.copy()
    old[broken] = rng.normal(size=(120, 16))
    sample = MigrationSample.build(
        new_query=new,
        old_gallery=old,
        new_gallery=new,
        query_labels=labels,
        gallery_labels=labels,
        query_ids=np.arange(240),
        gallery_ids=np.arange(240),
    )
    fine = np.setdiff1d(np.arange(240), broken)
    return sample, np.concatenate([broken, fine]), np.concatenate([fine, broken])


def test_an_order_that_must_beat_random_does_and_the_reverse_loses():
    sample, best, worst = _half_broken()
    curve = backfill_curve(sample, {"best": best, "worst": worst}, num_bootstrap=200)
    good, bad = curve.orders["best"]["map"], curve.orders["worst"]["map"]
    at = curve.fractions.index(0.5)
    # Once the broken rows are mended the rest changes nothing, and until then nothing else helps.
    assert good.values[at] == pytest.approx(good.values[-1], abs=1e-12)
    assert bad.values[at] == pytest.approx(bad.values[0], abs=1e-12)
    assert good.gain_interval[0] > 0 > bad.gain_interval[1]
    assert 0.2 < good.share_of_ideal < 1


def test_calibration_restores_a_mixture_known_to_be_scaled():
    """Old rows whose cosines are exactly half those of the new rows they stand for."""
    sample, half = _scaled(0.5)
    order = {"rows": np.random.default_rng(0).permutation(sample.num_gallery)}
    raw = backfill_curve(sample, order, num_bootstrap=10).orders["rows"]["map"]
    exact = ScoreCalibration.fit(source=half / 2, target=half)
    mended = backfill_curve(sample, order, calibration=exact, num_bootstrap=10)
    values = mended.orders["rows"]["map"].values
    assert mended.is_calibrated
    assert np.ptp(values) < 1e-3  # any mixture ranks as all-new does
    middle = mended.fractions.index(0.5)
    assert raw.values[middle] < values[middle] - 0.05
    assert raw.values[0] == pytest.approx(raw.values[-1], abs=1e-3)


def _scaled(factor):
    rng = np.random.default_rng(3)
    labels = np.arange(200) % 10
    new = rng.normal(size=(10, 8))[labels] + 0.8 * rng.normal(size=(200, 8))
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    new = np.hstack([new, np.zeros((200, 1))])
    old = np.hstack([factor * new[:, :8], np.full((200, 1), np.sqrt(1 - factor**2))])
    sample = MigrationSample.build(
        new_query=new,
        old_gallery=old,
        new_gallery=new,
        query_labels=labels,
        gallery_labels=labels,
        query_ids=np.arange(200),
        gallery_ids=np.arange(200),
    )
    return sample, (new @ new.T)[~np.eye(200, dtype=bool)]


def _refuse(data, message, **change):
    with pytest.raises(ValueError, match=message):
        MigrationSample.build(**{**data, **change})


def test_refused_samples(data):
    new, old = data["new_gallery"], data["old_gallery"]
    bad = new.copy()
    bad[4, 2] = np.nan
    zero = new.copy()
    zero[4] = 0
    _refuse(data, "new_gallery: expected 90 rows as old_gallery has, got 89", new_gallery=new[1:])
    _refuse(data, "new_gallery: expected 12 dims as new_query has, got 5", new_gallery=new[:, :5])
    _refuse(data, "old_query: expected 12 dims as old_gallery has", old_query=new[:QUERIES, :3])
    _refuse(data, "old_query: expected 23 rows as new_query has", old_query=old[:5])
    _refuse(data, "new_gallery: row 4 holds a NaN or infinite value", new_gallery=bad)
    _refuse(data, "new_gallery: row 4 has norm zero", new_gallery=zero)
    _refuse(data, "old_gallery: expected at least one row", old_gallery=old[:0])
    _refuse(data, "none of the 23 queries has a positive", query_labels=np.full(QUERIES, 99))
    _refuse(data, "query_labels: expected one value for each of the 23", query_labels=[1])
    _refuse(data, "query_ids and gallery_ids: expected both or neither", query_ids=None)


def test_refused_curves(data):
    sample = MigrationSample.build(**data)
    rows = np.arange(ROWS)
    for message, change in [
        ("every one of the 90 gallery rows once", {"orders": {"x": rows[1:]}}),
        ("every one of the 90 gallery rows once", {"orders": {"x": np.zeros(ROWS, int)}}),
        ("the name 'random' is taken", {"orders": {"random": rows}}),
        (r"fractions: expected numbers in \[0, 1\], got 1.5", {"fractions": [1.5]}),
        ("metrics: unknown metric 'mmr'; did you mean 'mrr'", {"metrics": ["mmr"]}),
        ("metrics: expected at least one", {"metrics": []}),
        ("serving: expected 'mixed' or 'merged', got 'both'", {"serving": "both"}),
        ("num_random: expected at least 2, got 1", {"num_random": 1}),
        ("num_bootstrap: expected at least 1, got 0", {"num_bootstrap": 0}),
        (r"confidence: expected a number in \(0, 1\), got 1.0", {"confidence": 1.0}),
    ]:
        with pytest.raises(ValueError, match=message):
            backfill_curve(**{"sample": sample, "orders": {"x": rows}, **change})
    lone = MigrationSample.build(**{**data, "old_query": None})
    with pytest.raises(ValueError, match="old_query: expected features of the queries"):
        backfill_curve(lone, {"x": rows}, serving=MERGED)
    narrow = {**data, "new_query": data["new_query"][:, :5], "new_gallery": np.ones((ROWS, 5))}
    with pytest.raises(ValueError, match="at least the 12 dims of old_gallery, got 5"):
        backfill_curve(MigrationSample.build(**narrow), {"x": rows}, serving=MIXED)
