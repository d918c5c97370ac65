# SPDX-License-Identifier: Apache-2.0
"""What queries would gain at the mean of what is right for them, by definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fclearn.evaluation import (
    ceiling_means,
    evaluate_retrieval,
    judged_oracle_gain,
    oracle_gain,
)
from fclearn.evaluation.intervals import bootstrap_means
from fclearn.probe.held import Held
from fclearn.probe.measure import Measure

ROWS, CLASSES = 24, 4
LABELS = np.repeat(np.arange(CLASSES), ROWS // CLASSES)


def _features(rows=ROWS, seed=0, dtype=np.float32):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, 5)).astype(dtype))


def _precision(query, label, features, seen):
    """Average precision of one query among some rows; NaN where none of them is right."""
    if not (LABELS[seen] == label).any():
        return np.nan
    result = evaluate_retrieval(
        query[None],
        features[torch.from_numpy(seen)],
        query_labels=[label],
        gallery_labels=LABELS[seen],
        metrics=("map",),
    )
    return result["map"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_items_stand_at_the_other_half_of_their_class(dtype):
    features = _features(dtype=dtype)
    gain = oracle_gain(features, LABELS, np.arange(ROWS), metrics=("map",), seed=3)
    unit = torch.nn.functional.normalize(features, dim=1)
    coin = np.random.default_rng(3).integers(0, 2, ROWS)
    expected = []
    for row, label in enumerate(LABELS):
        # One's own half, without oneself, is searched from the mean of the other half.
        same = np.equal(LABELS, label)
        seen = ~same | (coin == coin[row])
        seen[row] = False
        others = torch.from_numpy(same & (coin != coin[row]))
        ways = (unit[others].mean(0), unit[row])
        stood, own = (_precision(query, label, features, seen) for query in ways)
        expected.append(stood - own)
    assert gain.per_query["map"] == pytest.approx(np.nan_to_num(expected), abs=1e-6)
    assert gain.num_measured == np.isfinite(expected).sum() > 0


def test_queries_of_their_own_stand_at_a_half_and_search_the_other():
    features, queries, labels = _features(), _features(9, seed=1), np.arange(9) % CLASSES
    ids = np.where(np.arange(9) == 4, 7, -1)
    gain = oracle_gain(
        features, LABELS, np.arange(ROWS), query=queries, query_labels=labels, query_ids=ids,
        metrics=("map",), seed=5,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    coin, stood_at = rng.integers(0, 2, ROWS), rng.integers(0, 2, 9)
    unit = torch.nn.functional.normalize(features, dim=1)
    for row in range(9):
        stood = np.equal(LABELS, labels[row]) & (coin == stood_at[row])
        seen = ~stood & (np.arange(ROWS) != ids[row])
        ways = (unit[torch.from_numpy(stood)].mean(0), queries[row])
        at_mean, own = (_precision(query, labels[row], features, seen) for query in ways)
        assert gain.per_query["map"][row] == pytest.approx(at_mean - own, abs=1e-6)
    assert gain.num_measured == 9


@pytest.mark.parametrize("seed", range(4))
def test_classes_without_two_halves_gain_nothing(seed):
    """A class of one row has one half at most; a class that the gallery lacks has none."""
    labels = np.array([*[0] * 12, 1])
    gain = oracle_gain(
        _features(13), labels, np.arange(13), query=_features(3, seed=2),
        query_labels=np.array([0, 1, 5]), query_ids=np.full(3, -1), seed=seed,
    )  # fmt: skip
    assert gain.num_measured == 1
    assert gain.per_query["map"][1:].tolist() == gain.per_query["cmc@1"][1:].tolist() == [0, 0]


_QUERY = {
    "query": _features(2),
    "query_labels": np.array([0, 1]),
    "query_ids": np.array([0, 1]),
}


def test_the_ceiling_holds_means_to_one_and_not_single_queries():
    """The oracle of a probe: old/old and the mean gain, by definition, and so of each resample."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 6)
    centres = rng.standard_normal((20, 8))[labels]
    features = torch.from_numpy((centres + 0.5 * rng.standard_normal(centres.shape)).astype("f4"))
    ids, both = np.arange(len(labels)), {"old": features, "new": features}
    measure = Measure(
        Held(both, both, {"query_labels": labels, "gallery_labels": labels}, ids, ids), ["cmc@1"]
    )
    assert measure.add_oracle(seed=1)
    own, oracle = (
        {way.name: way for way in measure.ways(200, 0.9, seed=2)}[name]
        for name in ("old/old", "oracle/old")
    )
    given = {"query": features, "query_labels": labels, "query_ids": ids}
    gain = oracle_gain(features, labels, ids, **given, seed=1).per_query
    old = evaluate_retrieval(
        features, features, query_labels=labels, gallery_labels=labels, exclude_self=True,
        metrics=("map", "cmc@1"), return_per_query=True,
    ).per_query  # fmt: skip
    for name in ("map", "cmc@1"):
        values = old[name] + gain[name]
        assert values.max() > 1.1  # held to 1 one by one, they would have another mean
        assert oracle.metrics[name] == pytest.approx(min(values.mean(), 1), abs=1e-12)
        assert oracle.gain[name] == pytest.approx(oracle.metrics[name] - own.metrics[name])
        draws = bootstrap_means(values[:, None], 200, seed=2)[:, 0].clip(max=1)
        assert oracle.intervals[name] == pytest.approx(np.percentile(draws, [5, 95]), abs=1e-12)


def test_the_ceiling_is_at_most_one():
    old, gain = np.array([[0.2, 0.9], [0.4, 1.0]]), np.array([[0.1, 0.3], [-0.2, 0.0]])
    assert ceiling_means(old, gain) == pytest.approx(np.array([[0.3, 1.0], [0.2, 1.0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[
            (
                {name: _QUERY[name] for name in names},
                r"query, query_labels, query_ids: expected all three or none, got "
                f"{' and '.join(names)} alone",
            )
            for names in (["query"], ["query", "query_labels"], ["query_labels", "query_ids"])
        ],
        ({"labels": LABELS[1:]}, r"labels: expected one value for each of the 24 rows of features"),
        ({"ids": np.arange(3)}, r"ids: expected one value .* got shape \[3\]"),
        ({**_QUERY, "query_ids": np.arange(3)}, "query_ids: .* each of the 2 rows of query, got"),
        ({"labels": LABELS - 1}, "labels: expected classes from 0 on, got -1"),
        ({"metrics": ["nap"]}, "metrics: unknown metric 'nap'"),
    ],
)
def test_refused(change, message):
    given = {"features": _features(), "labels": LABELS, "ids": np.arange(ROWS), **change}
    with pytest.raises(ValueError, match=message):
        oracle_gain(**given)


def test_labels_are_integers():
    with pytest.raises(TypeError, match="labels: expected integers, got float64"):
        oracle_gain(_features(), LABELS.astype(float), np.arange(ROWS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positives": [[0, 1]]}, "positives: expected a list .* each of the 2 queries, got 1"),
        ({"positives": [[0, ROWS], [1]]}, r"positives: expected rows in \[0, 24\), got 0 to 24"),
        ({"grades": [[1.0], [1.0]]}, "grades: expected one for each of the 2 positives of query 0"),
        ({"query_ids": np.arange(3)}, "query_ids: .* each of the 2 rows of query"),
        ({"ids": np.arange(3)}, "ids: .* each of the 24 rows of features"),
    ],
)
def test_refused_judgements(change, message):
    given = {
        "features": _features(), "positives": [[0, 1], [2, 3]], "ids": np.arange(ROWS),
        "query": _features(2), "query_ids": np.array([-1, -1]), **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        judged_oracle_gain(**given)
