# SPDX-License-Identifier: Apache-2.0
"""Evaluation refuses arguments, values and files that cannot be ranked."""

from __future__ import annotations

import numpy as np
import pytest

from fclearn.evaluation import evaluate_retrieval

BAD = [
    ({"metrics": ("map", "cmc@")}, "unknown metric 'cmc@'; did you mean 'cmc@1'"),
    ({"metrics": ("recal@10",)}, "unknown metric 'recal@10'; did you mean 'recall@10'"),
    ({"metrics": ("mAP50",)}, "unknown metric 'mAP50'; did you mean 'map@50'"),
    ({"metrics": ("cmc@0",)}, "unknown metric 'cmc@0'"),
    ({"metrics": ()}, "metrics: expected at least one"),
    ({"metric": "euclid"}, "metric: expected one of cosine, ip, l2, got 'euclid'"),
    ({"query_labels": [0]}, r"query_labels: expected one value for each of the 3 rows.*\[1\]"),
    ({"gallery_labels": [0, 1]}, "gallery_labels: expected one value for each of the 4"),
    ({"gallery_labels": [[0, 1]] * 2}, "expected one label per row on both sides, or several"),
    ({"query_labels": [9, 9, 9]}, "none of the 3 queries has a positive"),
    ({"exclude_self": True}, "exclude_self: expected query_ids and gallery_ids"),
    ({"query_groups": [0, 1, 2]}, "query_groups and gallery_groups: expected both or neither"),
    ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    ({"gallery_batch_size": -1}, "gallery_batch_size: expected at least 1, got -1"),
    ({"query": np.ones(3, np.float32)}, r"query: expected shape \[N, D\], got \[3\]"),
    ({"gallery": np.empty((0, 2), "f4"), "gallery_labels": []}, "gallery: expected at least"),
    ({"query": np.empty((0, 2), "f4"), "query_labels": []}, "query: expected at least one row"),
    ({"gallery": np.ones((4, 0), np.float32)}, "gallery: expected at least one dim"),
]  # fmt: skip


def small(**changes):
    return {
        "query": np.eye(3, 2, dtype=np.float32) + 1,
        "gallery": np.eye(4, 2, dtype=np.float32) + 1,
        "query_labels": [0, 1, 2],
        "gallery_labels": [0, 1, 2, 0],
        **changes,
    }


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(**small(**changes))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["query", "gallery"])
def test_values_that_are_not_finite(side, value):
    features = small()[side].copy()
    features[2, 1] = value
    with pytest.raises(ValueError, match=f"{side}: row 2 holds a NaN or infinite value"):
        evaluate_retrieval(**small(**{side: features}))


@pytest.mark.parametrize("side", ["query", "gallery"])
def test_rows_of_norm_zero(side):
    features = small()[side].copy()
    features[1] = 0
    with pytest.raises(ValueError, match=f"{side}: row 1 has norm zero"):
        evaluate_retrieval(**small(**{side: features}))
    for metric in ("ip", "l2"):
        evaluate_retrieval(**small(**{side: features}, metric=metric))
    names = {f"{one}_ids": [f"{one} {n}" for n in range(len(small()[one]))]
             for one in ("query", "gallery")}  # fmt: skip
    with pytest.raises(ValueError, match=rf"{side}: row 1 \(id '{side} 1'\) has norm zero"):
        evaluate_retrieval(**small(**{side: features}, **names))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": "map"}, "metrics: expected a sequence of names, got the string 'map'"),
        ({"query": np.ones((3, 2), np.int64)}, "query: expected floating numbers, got int64"),
        ({"query": [[1.0]]}, "query: expected a feature store, a path, a tensor or an array"),
        ({"query_labels": [0.0, 1.0, 2.0]}, "query_labels: expected integers or strings"),
        ({"query_labels": ["a", "b", "c"]}, "query_labels and gallery_labels: expected the same"),
    ],
)
def test_bad_types(changes, message):
    with pytest.raises(TypeError, match=message):
        evaluate_retrieval(**small(**changes))


def test_broken_files(tmp_path):
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("cut.npy", "pickled.npy", "missing.npy"):
        with pytest.raises(ValueError, match=f"{name}: expected a"):
            evaluate_retrieval(**small(gallery=tmp_path / name))
