# SPDX-License-Identifier: Apache-2.0
"""Thresholds, chains of models, slices and paired tests, against their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fclearn.backfill import transfer_threshold_by_scores
from fclearn.evaluation import (
    _pair_scores,
    _thresholds,
    chain_report,
    evaluate_identification,
    evaluate_retrieval,
    evaluate_verification,
    paired_test,
    transfer_threshold_by_labels,
    worst_slices,
)
from fclearn.evaluation import identification as identification_module
from fclearn.evaluation.intervals import times_drawn


def models(noise, num_rows, dim=10, seed=0, classes=8):
    labels = np.random.default_rng(50 + num_rows).integers(0, classes, num_rows)
    centres = np.random.default_rng(99).standard_normal((classes, dim))
    noises = np.random.default_rng(seed).standard_normal((num_rows, dim))
    return (centres[labels] + noise * noises).astype(np.float32), labels


def scores_of(query, gallery, metric="cosine"):
    query, gallery = np.asarray(query, np.float64), np.asarray(gallery, np.float64)
    if metric == "cosine":
        query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    if metric == "l2":
        return -((query[:, None] - gallery) ** 2).sum(2)
    return query @ gallery.T


RATES = (1e-9, 1e-3, 0.01, 0.1, 0.5, 0.999)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_verification_by_definition(metric):
    query, labels = models(1.5, 70)
    gallery, gallery_labels = models(1.5, 90, seed=1)
    scores = scores_of(query, gallery, metric)
    genuine = labels[:, None] == gallery_labels
    result = evaluate_verification(
        query, gallery, query_labels=labels, gallery_labels=gallery_labels,
        false_accept_rates=RATES, metric=metric,
    )  # fmt: skip
    assert (result.num_genuine, result.num_impostor) == (genuine.sum(), (~genuine).sum())
    impostors = np.sort(scores[~genuine])[::-1]
    for rate, point in zip(RATES, result.points, strict=True):
        limit = impostors[int(rate * len(impostors))]  # the best that must not pass
        assert point.threshold == pytest.approx(limit, rel=1e-5)
        assert point.false_rate == int(rate * len(impostors)) / len(impostors)
        assert point.true_rate == (scores[genuine] > limit).mean()
        assert point.is_resolved == (rate * len(impostors) >= 1)
        assert (scores[~genuine] >= point.threshold).mean() == pytest.approx(
            point.false_rate, abs=2e-4
        )
    json.dumps(result.to_dict(), allow_nan=False)


def tar_of(scores, genuine, times, rate):
    """TAR of queries repeated as a resample has them, from its definition."""
    rows = np.repeat(np.arange(len(scores)), times)
    scores, genuine = scores[rows], genuine[rows]
    impostors = np.sort(scores[~genuine])[::-1]
    return (scores[genuine] > impostors[int(rate * len(impostors))]).mean()


@pytest.mark.parametrize("kind", ["plain", "ties", "few share labels"])
def test_verification_intervals_by_definition(kind, monkeypatch):
    """Resamples written out, with the same draws; across blocks of rows and of resamples."""
    monkeypatch.setattr(_pair_scores, "_BATCH", 13)
    monkeypatch.setattr(_pair_scores, "_GALLERY_BATCH", 17)
    monkeypatch.setattr(_thresholds, "_ROWS", 7)
    query, labels = models(1.5, 70)
    gallery, gallery_labels = models(1.5, 90, seed=1)
    if kind == "ties":
        query, gallery = np.sign(query), np.sign(gallery)  # inner products: few whole numbers
    if kind == "few share labels":
        labels = np.where(np.arange(70) < 60, labels + 100, labels)
    metric = "ip" if kind == "ties" else "cosine"
    scores = scores_of(query, gallery, metric).astype(np.float32)
    genuine = labels[:, None] == gallery_labels
    times = times_drawn(genuine.any(axis=1), 40, seed=3)
    if kind == "few share labels":
        assert (times[:, :60].sum(axis=1) == 60).all()
    result = evaluate_verification(
        query, gallery, query_labels=labels, gallery_labels=gallery_labels,
        false_accept_rates=RATES, metric=metric, num_bootstrap=40, confidence=0.8, seed=3,
    )  # fmt: skip
    assert result.confidence == 0.8
    for rate, point in zip(RATES, result.points, strict=True):
        wanted = [tar_of(scores, genuine, drawn, rate) for drawn in times]
        np.testing.assert_allclose(point.interval, np.percentile(wanted, [10, 90]), rtol=1e-12)


def test_identification_intervals_by_definition():
    query, labels = models(1.2, 80)
    gallery, gallery_labels = models(1.2, 90, seed=1)
    gallery, gallery_labels = gallery[gallery_labels < 5], gallery_labels[gallery_labels < 5]
    scores = scores_of(query, gallery)
    best, right = scores.max(1), gallery_labels[scores.argmax(1)] == labels
    mated = labels < 5
    rates = (0.001, 0.1, 0.4)
    result = evaluate_identification(
        query, gallery, query_labels=labels, gallery_labels=gallery_labels,
        false_positive_rates=rates, num_bootstrap=60, confidence=0.9, seed=5,
    )  # fmt: skip
    times = times_drawn(mated, 60, seed=5)
    for rate, point in zip(rates, result.points, strict=True):
        wanted = []
        for drawn in times:
            rows = np.repeat(np.arange(80), drawn)
            known, strangers = rows[mated[rows]], np.sort(best[rows[~mated[rows]]])[::-1]
            assert (len(known), len(strangers)) == (mated.sum(), (~mated).sum())
            limit = strangers[int(rate * len(strangers))]
            wanted.append((right & (best > limit))[known].mean())
        np.testing.assert_allclose(point.interval, np.percentile(wanted, [5, 95]), rtol=1e-12)


def decided(num_queries, seed, num_bootstrap=100):
    """Verification and identification of fresh queries against one gallery."""
    rng = np.random.default_rng(seed)
    gallery, gallery_labels = models(1.2, 100, seed=1)
    known = gallery_labels < 5
    labels = rng.integers(0, 8, num_queries)
    centres = np.random.default_rng(99).standard_normal((8, 10))
    query = (centres[labels] + 1.2 * rng.standard_normal((num_queries, 10))).astype(np.float32)
    given = {
        "query_labels": labels, "gallery_labels": gallery_labels[known],
        "num_bootstrap": num_bootstrap,
    }  # fmt: skip
    pairs = evaluate_verification(query, gallery[known], false_accept_rates=[0.05], **given)
    found = evaluate_identification(query, gallery[known], false_positive_rates=[0.2], **given)
    return pairs.points[0], found.points[0]


def test_intervals_of_decisions_hold_the_truth_and_narrow():
    """Over fresh queries: most intervals hold what very many queries have."""
    truth = [point.true_rate for point in decided(20000, seed=1, num_bootstrap=1)]
    few, many = ([decided(size, seed) for seed in range(2, 22)] for size in (40, 640))
    for at, rate in enumerate(truth):
        widths = []
        for runs in (few, many):
            points = [run[at] for run in runs]
            assert all(p.interval[0] <= p.true_rate <= p.interval[1] for p in points)
            # Of 20 intervals at 95 %, fewer than 16 hold it three times in a thousand.
            assert sum(p.interval[0] <= rate <= p.interval[1] for p in points) >= 16
            widths.append(np.mean([p.interval[1] - p.interval[0] for p in points]))
        # Sixteen times the queries: a quarter of the width.
        assert 3 < widths[0] / widths[1] < 5.5


def test_tied_impostors_are_let_in_together_or_not_at_all():
    query = np.array([[1.0, 0.0]])
    gallery = np.array([[1.0, 0.0], [3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [0.0, 1.0], [1.0, 0.1]])
    result = evaluate_verification(
        query, gallery, query_labels=[0], gallery_labels=[0, 1, 1, 1, 1, 2],
        false_accept_rates=[0.3, 0.5, 0.7, 0.8],
    )  # fmt: skip
    assert [point.false_rate for point in result.points] == [0.2, 0.2, 0.2, 0.8]
    negative = evaluate_verification(
        -query, gallery, query_labels=[0], gallery_labels=[0, 1, 1, 1, 1, 2],
        false_accept_rates=[0.3],
    )  # fmt: skip
    assert negative.points[0].false_rate == 0.2  # cosine 0 alone, written -0


def test_verification_leaves_out_a_row_with_itself():
    rows, labels = models(1.0, 40)
    result = evaluate_verification(
        rows, rows, query_labels=labels, gallery_labels=labels, exclude_self=True
    )
    genuine = (labels[:, None] == labels) & ~np.eye(40, dtype=bool)
    assert result.num_genuine == genuine.sum()
    assert result.num_genuine + result.num_impostor == 40 * 39


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_identification_by_definition(metric, monkeypatch):
    monkeypatch.setattr(identification_module, "_BATCH", 7)
    monkeypatch.setattr(identification_module, "_GALLERY_BATCH", 11)
    query, labels = models(1.2, 80)
    gallery, gallery_labels = models(1.2, 90, seed=1)
    known = gallery_labels < 5
    gallery, gallery_labels = gallery[known], gallery_labels[known]
    scores = scores_of(query, gallery, metric)
    mated = labels < 5
    best, top = scores.max(1), scores.argmax(1)
    right = gallery_labels[top] == labels
    rates = (0.01, 0.1, 0.4)
    result = evaluate_identification(
        query, gallery, query_labels=labels, gallery_labels=gallery_labels,
        false_positive_rates=rates, metric=metric,
    )  # fmt: skip
    assert (result.num_mated, result.num_unmated) == (mated.sum(), (~mated).sum())
    strangers = np.sort(best[~mated])[::-1]
    for rate, point in zip(rates, result.points, strict=True):
        limit = strangers[int(rate * len(strangers))]
        assert point.threshold == pytest.approx(limit, rel=1e-5)
        assert point.true_rate == (right & (best > limit))[mated].mean()
        assert point.false_rate == (best > limit)[~mated].mean()
        assert point.is_resolved == (rate * len(strangers) >= 1)


def test_identification_without_itself():
    """A row that is alone with its label becomes a stranger once it is left out."""
    rows = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    result = evaluate_identification(
        rows, rows, query_labels=[0, 0, 1], gallery_labels=[0, 0, 1], exclude_self=True
    )
    assert (result.num_mated, result.num_unmated) == (2, 1)
    assert result.points[0].true_rate == 1.0


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_threshold_that_keeps_the_old_rate(scale):
    """Inner products of a model three times as long: everything passes the old threshold."""
    old, labels = models(1.5, 60)
    gallery, gallery_labels = models(1.5, 80, seed=1)
    new, new_gallery = 3 * old, scale * gallery
    impostor = labels[:, None] != gallery_labels
    before, after = scores_of(old, gallery, "ip"), scores_of(new, new_gallery, "ip")
    threshold = float(np.quantile(before[impostor], 0.98))
    moved = transfer_threshold_by_labels(
        threshold, old_query=old, old_gallery=gallery, new_query=new, new_gallery=new_gallery,
        query_labels=labels, gallery_labels=gallery_labels, metric="ip",
    )  # fmt: skip
    assert moved.old.false_rate == (before >= threshold)[impostor].mean()
    assert moved.kept.false_rate == (after >= threshold)[impostor].mean() > moved.old.false_rate
    assert moved.kept.true_rate == (after >= threshold)[~impostor].mean()
    assert moved.new.false_rate == moved.old.false_rate
    # The lowest threshold of that rate; the old one stood somewhere above it.
    limit = np.sort(after[impostor])[::-1][(before >= threshold)[impostor].sum()]
    assert moved.new.true_rate == (after > limit)[~impostor].mean() >= moved.old.true_rate
    assert (after >= moved.new.threshold)[impostor].mean() == moved.old.false_rate
    assert (moved.num_old, moved.num_new) == (impostor.sum(), impostor.sum())
    assert moved.is_resolved
    assert json.loads(json.dumps(moved.to_dict()))["new"]["threshold"] == moved.new.threshold


def test_labels_and_scores_of_impostors_move_a_threshold_alike():
    """One between the same two scores, with the same rates."""
    old, labels = models(1.5, 60)
    new, _ = models(1.0, 60, seed=3)
    given = {"query_labels": labels, "gallery_labels": labels, "exclude_self": True}
    impostor = labels[:, None] != labels
    before, after = (scores_of(rows, rows, "cosine")[impostor] for rows in (old, new))
    threshold = float(np.quantile(before, 0.97))
    one = transfer_threshold_by_labels(
        threshold, old_query=old, old_gallery=old, new_query=new, new_gallery=new, **given
    )
    other = transfer_threshold_by_scores(before, after, threshold, num_bootstrap=10)
    assert (one.num_old, one.num_new) == (other.num_old, other.num_new)
    for name in ("old", "kept", "new"):
        assert getattr(one, name).false_rate == getattr(other, name).false_rate
    assert one.new.threshold <= other.new.threshold
    assert not ((after >= one.new.threshold) & (after < other.new.threshold)).any()
    assert (one.interval, other.new.true_rate) == (None, None)


@pytest.mark.parametrize(("threshold", "rate"), [(-2.0, 1.0), (2.0, 0.0)])
def test_thresholds_that_let_in_all_or_none(threshold, rate):
    old, labels = models(1.5, 30)
    new, _ = models(1.0, 30, seed=3)
    moved = transfer_threshold_by_labels(
        threshold, old_query=old, old_gallery=old, new_query=new, new_gallery=new,
        query_labels=labels, gallery_labels=labels, exclude_self=True,
    )  # fmt: skip
    assert moved.old.false_rate == moved.new.false_rate == rate
    assert (moved.new.threshold == -np.inf) == (rate == 1.0)
    assert moved.is_resolved == (rate == 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: evaluate_verification(r, r, query_labels=[0, 1], gallery_labels=[0, 1],
                                         false_accept_rates=[0.1, 1.0]),
         r"false_accept_rates: expected rates in \(0, 1\), got 1.0"),
        (lambda r: evaluate_verification(r, r, query_labels=[0, 1], gallery_labels=[0, 1],
                                         false_accept_rates=[]),
         "false_accept_rates: expected at least one rate"),
        (lambda r: evaluate_verification(r, r, query_labels=[0, 0], gallery_labels=[0, 0]),
         "expected pairs of one label and pairs of two, got 4 and 0"),
        (lambda r: evaluate_verification(r, r[:0], query_labels=[0, 0], gallery_labels=[]),
         "gallery: expected at least one row"),
        (lambda r: evaluate_verification(r, r, query_labels=[0, 1], gallery_labels=[0, 1],
                                         num_bootstrap=0),
         "num_bootstrap: expected at least 1, got 0"),
        (lambda r: evaluate_identification(r, r, query_labels=[0, 1], gallery_labels=[0, 1],
                                           confidence=95),
         r"confidence: expected a number in \(0, 1\), got 95"),
        (lambda r: evaluate_identification(r, r, query_labels=[0, 1], gallery_labels=[0, 1]),
         "expected queries with and without their label in the gallery, got 2 and 0"),
        (lambda r: evaluate_identification(r, r[:0], query_labels=[0, 1], gallery_labels=[]),
         "gallery: expected at least one row"),
        (lambda r: transfer_threshold_by_labels(
            float("nan"), old_query=r, old_gallery=r, new_query=r, new_gallery=r,
            query_labels=[0, 1], gallery_labels=[0, 1]),
         "threshold: expected a number, got NaN"),
    ],
)  # fmt: skip
def test_bad_decisions(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.eye(2, 3) + 0.5)


def chain(noises=(1.5, 1.2, 0.8), **options):
    sides = [
        [models(noise, size, dim=10, seed=seed + size)[0] for seed, noise in enumerate(noises)]
        for size in (60, 120)
    ]
    labels = {"query_labels": models(0, 60)[1], "gallery_labels": models(0, 120)[1]}
    return chain_report(*sides, **labels, num_bootstrap=200, **options), sides, labels


def test_chain_by_definition():
    report, (queries, galleries), labels = chain()
    size = 3
    matrix = np.full((size, size), np.nan)
    for i in range(size):
        for j in range(i + 1):
            matrix[i, j] = evaluate_retrieval(queries[i], galleries[j], **labels)["map"]
    np.testing.assert_array_equal(report.matrix, matrix)
    pairs = [(i, j) for i in range(size) for j in range(i)]
    assert report.average_compatibility == np.mean([matrix[i, j] > matrix[j, j] for i, j in pairs])
    lower = [matrix[i, j] for i in range(size) for j in range(i + 1)]
    assert report.average_accuracy == pytest.approx(np.mean(lower))
    assert report.backward_compatibility == pytest.approx(
        np.mean([matrix[2, i] - matrix[i, i] for i in range(2)])
    )
    assert report.forward_compatibility == pytest.approx(
        np.mean([matrix[i, i - 1] - matrix[i, i] for i in (1, 2)])
    )
    numbers = report.numbers()
    assert numbers["3/1"] == matrix[2, 0]
    for name, (low, high) in report.intervals.items():
        assert low <= numbers[name] <= high, name
    printed = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert printed["matrix"][0] == [matrix[0, 0], None, None]


def test_a_tie_is_not_compatible():
    rows, labels = models(1.0, 40)
    report = chain_report(
        [rows] * 2, [rows] * 2, query_labels=labels, gallery_labels=labels, names=["a", "b"],
        exclude_self=True, metric_name="cmc@1",
    )  # fmt: skip
    assert report.average_compatibility == 0.0
    assert report.backward_compatibility == report.forward_compatibility == 0.0
    assert report.metric_name == "cmc@1"
    assert set(report.per_query) == {"a/a", "b/a", "b/b"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": 1}, "queries: expected those of at least two models, got 1"),
        ({"galleries": 1}, "galleries: expected one for each of the 2 models, got 1"),
        ({"names": ["a", "a"]}, "names: expected 2 distinct ones, got 'a', 'a'"),
        ({"metric_name": "nap"}, "1/1: metrics: unknown metric 'nap'"),
        ({"num_bootstrap": 0}, "num_bootstrap: expected at least 1, got 0"),
        ({"confidence": 1.0}, r"confidence: expected a number in \(0, 1\), got 1.0"),
        (
            {"exclude_self": True, "copies": True},
            "exclude_self: expected query_ids and gallery_ids",
        ),
    ],
)
def test_bad_chains(changes, message):
    rows, labels = models(1.0, 20)
    changes = dict(changes)
    queries = [rows] * changes.pop("queries", 2)
    galleries = [rows.copy() if changes.pop("copies", False) else rows, rows]
    galleries = galleries[: changes.pop("galleries", 2)]
    with pytest.raises(ValueError, match=message):
        chain_report(queries, galleries, query_labels=labels, gallery_labels=labels, **changes)


def test_a_chain_whose_dims_shrink_names_the_entry():
    rows, labels = models(1.0, 20)
    with pytest.raises(ValueError, match=r"v2/v1: query: expected at least as many dims"):
        chain_report([rows, rows[:, :4]], [rows, rows[:, :4]], query_labels=labels,
                     gallery_labels=labels, names=["v1", "v2"])  # fmt: skip


def test_worst_slices_by_definition():
    rng = np.random.default_rng(0)
    names = rng.choice(["apple", "fig", "kiwi", "lime"], 60)
    values, baseline = rng.random(60), rng.random(60)
    values[::7] = np.nan
    counted = ~np.isnan(values)
    means = {name: values[counted & (names == name)].mean() for name in set(names)}
    found = worst_slices(values, names, n=3)
    assert [one.name for one in found] == sorted(means, key=means.get)[:3]
    for one in found:
        assert one.mean == pytest.approx(means[one.name])
        assert one.num_queries == (counted & (names == one.name)).sum()
        assert one.change is None
        assert one.interval[0] <= one.mean <= one.interval[1]
    losses = {n: (values - baseline)[counted & (names == n)].mean() for n in set(names)}
    lost = worst_slices(values, names, baseline=baseline)
    assert [one.name for one in lost] == sorted(losses, key=losses.get)
    assert [one.change for one in lost] == pytest.approx(sorted(losses.values()))
    assert worst_slices(np.array([0.5, 0.1]), [3, 4], min_queries=2) == []
    single = worst_slices(np.array([0.5, 0.1]), [3, 4])[0]
    assert (single.name, single.interval, single.to_dict()["num_queries"]) == ("4", None, 1)
    with pytest.raises(ValueError, match="slices: expected one for each of the 2 values"):
        worst_slices(np.array([0.5, 0.1]), [3])
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        worst_slices(np.array([0.5]), [3], n=0)


def test_paired_tests():
    rng = np.random.default_rng(0)
    first = rng.random(300)
    first[:10] = np.nan
    second = first + rng.normal(0.02, 0.05, 300)
    better = paired_test(first, second, num_samples=2000)
    assert better.p_value == pytest.approx(1 / 2001)
    assert better.num_queries == 290
    assert better.difference == pytest.approx(np.nanmean(second - first))
    assert better.interval[0] < better.difference < better.interval[1]
    assert better.num_better + better.num_worse == 290
    back = paired_test(second, first, num_samples=2000)
    assert (back.difference, back.p_value) == (-better.difference, better.p_value)
    same = paired_test(first, first)
    assert (same.p_value, same.difference, same.num_better, same.num_worse) == (1.0, 0.0, 0, 0)


def test_the_paired_test_is_wrong_as_often_as_it_says():
    rng = np.random.default_rng(1)
    values = [
        paired_test(*rng.random((2, 50)), num_samples=300, seed=seed).p_value for seed in range(200)
    ]
    assert 0.05 < np.mean(np.array(values) < 0.1) < 0.16


def test_bad_paired_tests():
    for first, second, message in (
        ([0.1], [0.1, 0.2], r"expected one value per query in both, got shapes \[1\] and \[2\]"),
        ([np.nan], [0.1], "expected a query with a value in both, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_test(np.array(first), np.array(second))
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        paired_test(np.zeros(2), np.ones(2), num_samples=0)


def test_intervals_of_a_result():
    rows, labels = models(1.3, 100)
    named = {"query_labels": labels, "gallery_labels": labels, "exclude_self": True}
    result = evaluate_retrieval(
        rows, rows, metrics=["map", "cmc@1"], return_per_query=True, **named
    )
    intervals = result.intervals(num_bootstrap=500)
    for name, (low, high) in intervals.items():
        spread = 1.96 * np.nanstd(result.per_query[name]) / np.sqrt(result.num_queries)
        assert low == pytest.approx(result[name] - spread, abs=0.03)
        assert high == pytest.approx(result[name] + spread, abs=0.03)
    assert result.intervals(num_bootstrap=500) == intervals
    with pytest.raises(ValueError, match="intervals: expected return_per_query=True"):
        evaluate_retrieval(rows, rows, **named).intervals()
