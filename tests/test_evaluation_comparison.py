# SPDX-License-Identifier: Apache-2.0
"""Worst slices, paired tests and intervals of results, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from noisy_models import models

from fclearn.evaluation import evaluate_retrieval, paired_test, worst_slices


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
