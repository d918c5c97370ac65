# SPDX-License-Identifier: Apache-2.0
"""Orders of a backfill against their formulas, written out densely."""

from __future__ import annotations

import numpy as np
import pytest
from store_samples import unit

from fclearn.adapters import ForwardMap
from fclearn.backfill import ORDERS, backfill_order
from fclearn.graph import KnnGraph

ROWS, DIM, CLASSES = 60, 8, 5


@pytest.fixture(scope="module")
def gallery():
    rng = np.random.default_rng(0)
    labels = np.arange(ROWS) % CLASSES
    centres = rng.normal(size=(CLASSES, DIM))
    features = (centres[labels] + 0.7 * rng.normal(size=(ROWS, DIM))).astype(np.float32)
    return features, labels


@pytest.fixture(scope="module")
def forward_map(gallery):
    features, _ = gallery
    new = features[:, ::-1].copy()
    return ForwardMap.fit(old=features, new=new, width=8, epochs=2, uncertainty=True)


def _similarities(features, labels):
    means = np.stack([unit(features)[labels == c].mean(0) for c in range(CLASSES)])
    return unit(features) @ unit(means).T


def _priority(name, features, labels, forward_map):
    """By definition, one row at a time."""
    similar = _similarities(features, labels)
    if name == "uncertainty":
        return [1 - max(row) for row in similar]
    if name == "margin":
        return [sorted(row)[-2] - sorted(row)[-1] for row in similar]
    if name == "class-mean":
        return [1 - row[label] for row, label in zip(similar, labels, strict=True)]
    if name == "predicted-error":
        return forward_map.uncertainty(features).numpy()
    graph = KnnGraph.build(features, k=10)
    walk = np.zeros((ROWS, ROWS))
    weights = np.exp(graph.values.double().numpy() / 0.05)
    for row in range(ROWS):
        part = slice(int(graph.crow_indices[row]), int(graph.crow_indices[row + 1]))
        walk[row, graph.col_indices[part]] = weights[part] / weights[part].sum()
    start = np.full(ROWS, 1 / ROWS)
    return 0.15 * np.linalg.solve(np.eye(ROWS) - 0.85 * walk.T, start)


@pytest.mark.parametrize(
    "name", ["uncertainty", "margin", "class-mean", "centrality", "predicted-error"]
)
def test_priority_is_the_formula(gallery, forward_map, name):
    features, labels = gallery
    order = backfill_order(name, features, labels=labels, forward_map=forward_map)
    expected = np.asarray(_priority(name, features, labels, forward_map))
    assert order.priority == pytest.approx(expected, abs=2e-6)
    assert sorted(order.rows) == list(range(ROWS))
    assert (np.diff(order.priority[order.rows]) <= 0).all()


def test_traffic_puts_the_busiest_first_and_leaves_equal_ones_to_chance(gallery):
    features, _ = gallery
    counts = np.zeros(ROWS, dtype=int)
    counts[[7, 40]] = 3, 9
    order = backfill_order("traffic", features, traffic=counts, seed=1)
    assert order.rows[:2].tolist() == [40, 7]
    assert order.rows[2:].tolist() != sorted(order.rows[2:])
    assert not np.array_equal(
        order.rows, backfill_order("traffic", features, traffic=counts, seed=2).rows
    )


@pytest.mark.parametrize("name", list(ORDERS))
def test_orders_are_reproducible_and_read_files(gallery, forward_map, name, tmp_path):
    features, labels = gallery
    np.save(tmp_path / "rows.npy", features)
    given = {"labels": labels, "traffic": np.arange(ROWS), "forward_map": forward_map, "seed": 3}
    first = backfill_order(name, features, **given)
    again = backfill_order(name, tmp_path / "rows.npy", **given)
    assert np.array_equal(first.rows, again.rows)
    assert ORDERS[name].formula
    assert ORDERS[name].source


def test_labels_may_be_text(gallery):
    features, labels = gallery
    names = np.array(["zebra", "ant", "cow", "dog", "emu"])[labels]
    by_name = backfill_order("margin", features, labels=names)
    assert np.array_equal(by_name.rows, backfill_order("margin", features, labels=labels).rows)


def test_blocks_do_not_change_priorities(gallery, monkeypatch):
    features, labels = gallery
    whole = backfill_order("uncertainty", features, labels=labels)
    monkeypatch.setattr("fclearn.backfill._prototypes._BLOCK_ELEMENTS", 7 * DIM)
    cut = backfill_order("uncertainty", features, labels=labels)
    assert cut.priority == pytest.approx(whole.priority, abs=1e-12)


def test_a_gallery_of_one_row_has_one_order():
    assert backfill_order("centrality", np.ones((1, 3))).rows.tolist() == [0]


def _with(features, row, value):
    changed = features.copy()
    changed[row] = value
    return changed


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("margins", {}, r"order: unknown name 'margins'; did you mean 'margin'\?"),
        ("margin", {"labels": None}, "order 'margin' needs labels"),
        ("traffic", {"traffic": None}, "order 'traffic' needs traffic"),
        ("predicted-error", {}, "order 'predicted-error' needs forward_map"),
        (
            "margin",
            {"labels": np.zeros(3)},
            r"labels: expected one for each of the 60 rows, .*\[3\]",
        ),
        ("margin", {"labels": np.zeros(ROWS)}, "labels: expected at least 2 classes, got 1"),
        ("traffic", {"traffic": [1, 2]}, r"traffic: expected one number for each of the 60 rows"),
        (
            "traffic",
            {"traffic": [-1.0] * 2 + [0.0] * 58},
            "counts >= 0, got -1 in row 0 and 1 more",
        ),
        ("traffic", {"traffic": [np.nan] + [0.0] * 59}, "counts >= 0, got nan in row 0"),
        ("traffic", {"traffic": ["many"] * ROWS}, "traffic: expected numbers"),
        ("random", {"features": np.ones((0, 4))}, "features: expected at least one row"),
        ("random", {"features": np.nan}, "features: expected finite numbers, .* in row 5"),
        ("random", {"features": 0.0}, "features: row 5 has norm zero"),
    ],
)
def test_refused(gallery, name, change, message):
    features, labels = gallery
    given = {"labels": labels, "traffic": np.zeros(ROWS)} | change
    rows = given.pop("features", features)
    rows = _with(features, 5, rows) if np.isscalar(rows) else rows
    with pytest.raises(ValueError, match=message):
        backfill_order(name, rows, **given)
