# SPDX-License-Identifier: Apache-2.0
"""Thresholds moved by their false-accept rate: by definition, and where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from fclearn.backfill import transfer_threshold_by_scores


def _by_definition(old, new, threshold):
    """The lowest new score that no larger share of new scores reaches, tried one by one."""
    allowed = sum(score >= threshold for score in old) * len(new) // len(old)
    tried = [*new, np.nextafter(max(new), np.inf)]
    return min(value for value in tried if sum(score >= value for score in new) <= allowed)


@pytest.mark.parametrize("seed", range(6))
def test_is_the_definition_also_with_ties(seed):
    rng = np.random.default_rng(seed)
    old = rng.integers(0, 20, 80) / 20
    new = rng.integers(0, 12, 67) / 12 if seed % 2 else rng.normal(size=67)
    found = transfer_threshold_by_scores(old, new, 0.7, num_bootstrap=10)
    assert found.new.threshold == _by_definition(old, new, 0.7)
    assert found.new.false_rate <= found.old.false_rate == np.mean(old >= 0.7)
    assert found.kept.false_rate == np.mean(new >= 0.7)


def test_a_known_change_of_scale_moves_the_threshold_with_it():
    old = np.random.default_rng(0).normal(size=10_000)
    found = transfer_threshold_by_scores(old, 0.25 * old + 0.5, 1.5)
    assert found.new.false_rate == found.old.false_rate
    assert found.interval[0] < 0.875 < found.interval[1]
    assert found.new.threshold == pytest.approx(0.875, abs=0.002)


def test_the_interval_is_that_of_resampling():
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=500), rng.normal(size=400) * 2
    draws = []
    for _ in range(4000):
        a, b = rng.choice(old, 500), np.sort(rng.choice(new, 400))
        draws.append(b[-max(1, (a >= 1).sum() * 400 // 500)])
    low, high = np.percentile(draws, [2.5, 97.5])
    found = transfer_threshold_by_scores(old, new, 1.0, num_bootstrap=4000)
    assert found.interval[0] == pytest.approx(low, abs=0.1)
    assert found.interval[1] == pytest.approx(high, abs=0.1)


def test_intervals_cover_the_true_threshold():
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        old, new = rng.normal(size=2000), 3 * rng.normal(size=2000) + 1
        low, high = transfer_threshold_by_scores(
            old, new, 1.5, num_bootstrap=400, seed=seed
        ).interval
        hits += low <= 5.5 <= high
    assert 180 <= hits <= 199  # 190 expected, standard deviation 3.1


def test_reproducible_and_ready_for_json():
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 300))
    first = transfer_threshold_by_scores(old.reshape(30, 10), new, 1.0, seed=4)
    assert first == transfer_threshold_by_scores(old, new, 1.0, seed=4)
    assert first.to_dict()["interval"] == list(first.interval)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 9.0}, "none of the 100 old scores reaches 9, .* below 0.01"),
        ({"threshold": np.nan}, "threshold: expected a finite number, got nan"),
        ({"new_scores": [0.1, 0.2]}, "at least 10 scores for a false-accept rate of 0.1, got 2"),
        ({"old_scores": []}, "old_scores: expected at least one score"),
        ({"new_scores": [0.1, np.nan]}, "new_scores: expected finite scores, got a NaN"),
        ({"new_scores": [0.1, -np.inf]}, "new_scores: expected finite scores"),
        ({"num_bootstrap": 0}, "num_bootstrap: expected at least 1, got 0"),
        ({"confidence": 1.0}, r"confidence: expected a number in \(0, 1\), got 1.0"),
    ],
)
def test_refused(change, message):
    scores = np.arange(100) / 100
    given = {"old_scores": scores, "new_scores": scores, "threshold": 0.9, **change}
    with pytest.raises(ValueError, match=message):
        transfer_threshold_by_scores(**given)


def test_scores_are_real_numbers():
    with pytest.raises(TypeError, match="new_scores: expected real numbers, got <U1"):
        transfer_threshold_by_scores([1.0, 2.0], ["a"], 1.0)
