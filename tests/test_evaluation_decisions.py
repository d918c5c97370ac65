# SPDX-License-Identifier: Apache-2.0
"""Verification, identification and thresholds, against their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from noisy_models import models

from fclearn.backfill import transfer_threshold_by_scores
from fclearn.evaluation import (
    _pair_scores,
    _thresholds,
    evaluate_identification,
    evaluate_verification,
    transfer_threshold_by_labels,
)
from fclearn.evaluation import identification as identification_module
from fclearn.evaluation.intervals import times_drawn


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
