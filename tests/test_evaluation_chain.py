# SPDX-License-Identifier: Apache-2.0
"""The matrix of a chain of models and its summaries, against their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from noisy_models import models

from fclearn.evaluation import chain_report, evaluate_retrieval


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
