# SPDX-License-Identifier: Apache-2.0
"""Merged rankings and reranked shortlists, by their formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
from store_samples import unit

from fclearn.backfill import ScoreCalibration, merge_rankings, rerank_shortlist, two_stage_rerank


def _lists(seed, queries=7, sizes=(9, 5, 12), items=15):
    rng = np.random.default_rng(seed)
    lists = [np.stack([rng.permutation(items)[:size] for _ in range(queries)]) for size in sizes]
    lists[1][3, 2:] = -1  # a query with fewer hits
    return lists


def _merged(lists, worth, combine):
    """Ids and scores of one query, best first, equal ones by id."""
    fused = {}
    for at, ids in enumerate(lists):
        for place, item in enumerate(ids):
            if item >= 0:
                value = worth(at, place)
                fused[item] = combine(fused[item], value) if item in fused else value
    return sorted(fused.items(), key=lambda entry: (-entry[1], entry[0]))


@pytest.mark.parametrize("k", [0, 60])
@pytest.mark.parametrize("seed", range(3))
def test_reciprocal_ranks_by_hand(seed, k):
    lists = _lists(seed)
    ids, fused = merge_rankings(lists, k=k)
    for query in range(7):
        expected = _merged(
            [part[query] for part in lists],
            lambda _, place: 1 / (k + place + 1),
            lambda a, b: a + b,
        )
        count = len(expected)
        assert fused[query, :count] == pytest.approx([value for _, value in expected])
        # Sums of the same terms in another order may differ in the last bit, so ties are compared
        # as sets.
        for value in {round(value, 12) for _, value in expected}:
            mine = {
                i for i, v in zip(ids[query], fused[query], strict=True) if round(v, 12) == value
            }
            assert mine == {item for item, v in expected if round(v, 12) == value}
        assert (ids[query, count:] == -1).all()
        assert np.isneginf(fused[query, count:]).all()


def test_the_published_example_of_equal_ranks():
    # First in one list and second in the other, for both items: 1/61 + 1/62.
    ids, fused = merge_rankings([[[4, 2]], [[2, 4]]])
    assert ids.tolist() == [[2, 4]]
    assert fused[0] == pytest.approx([1 / 61 + 1 / 62] * 2)


def test_scores_keep_the_best_and_limit_cuts():
    lists = _lists(4)
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=part.shape) for part in lists]
    ids, fused = merge_rankings(lists, scores=scores, method="score", limit=4)
    for query in range(7):
        expected = _merged(
            [part[query] for part in lists],
            lambda at, place, query=query: scores[at][query, place],
            max,
        )[:4]
        assert ids[query].tolist() == [item for item, _ in expected]
        assert fused[query] == pytest.approx([value for _, value in expected])


def test_calibrated_halves_merge_into_the_ranking_of_all_rows():
    """Two indexes as they are served: each answers its top rows, and scores differ in scale."""
    rng = np.random.default_rng(6)
    truth = rng.normal(size=(20, 300))
    calibration = ScoreCalibration.fit(source=0.2 * truth + 5, target=truth)
    is_new = rng.random(300) < 0.3
    lists, scores = [], []
    for rows, values in ((is_new, truth), (~is_new, 0.2 * truth + 5)):
        order = np.argsort(-np.where(rows, values, -np.inf), axis=1)[:, :40]
        lists.append(order)
        scores.append(np.take_along_axis(values, order, 1))
    calibrated = [scores[0], calibration.transform(scores[1])]
    ids, _ = merge_rankings(lists, scores=calibrated, method="score", limit=25)
    assert np.array_equal(ids, np.argsort(-truth, axis=1)[:, :25])
    raw, _ = merge_rankings(lists, scores=scores, method="score", limit=25)
    assert not is_new[raw].any()  # nothing that was embedded anew is ever seen


def test_padding_alone_and_limits_beyond_the_hits():
    ids, fused = merge_rankings([[[-1, -1], [3, -1]]], limit=3)
    assert ids.tolist() == [[-1, -1], [3, -1]]
    assert np.isneginf(fused[0]).all()
    assert merge_rankings([np.empty((2, 0))])[0].shape == (2, 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rankings": []}, ValueError, "rankings: expected at least one"),
        ({"rankings": [[[0.5]]]}, TypeError, r"rankings\[0\]: expected integer ids, got float64"),
        ({"rankings": [[1, 2]]}, ValueError, r"rankings\[0\]: expected shape \[Q, K\].*\[2\]"),
        ({"rankings": [[[1]], [[1], [2]]]}, ValueError, r"rankings\[1\]: expected shape \[1, K\]"),
        (
            {"rankings": [[[1, 5, 5]]]},
            ValueError,
            "each id once per query, got 5 twice for query 0",
        ),
        ({"method": "borda"}, ValueError, "method: expected 'rrf' or 'score', got 'borda'"),
        ({"method": "score"}, ValueError, "scores: with method='score' scores are needed"),
        ({"scores": [[[1.0]]]}, ValueError, "scores: with method='rrf' scores are not used"),
        ({"method": "score", "scores": [[[1.0, 2.0]]]}, ValueError, "scores: expected the shapes"),
        ({"method": "score", "scores": [[[np.nan]]]}, ValueError, r"scores\[0\]: expected finite"),
        ({"k": -1}, ValueError, "k: expected at least 0, got -1"),
        ({"limit": 0}, ValueError, "limit: expected at least 1, got 0"),
    ],
)
def test_refused_merges(change, error, message):
    with pytest.raises(error, match=message):
        merge_rankings(**{"rankings": [[[7]]], **change})


@pytest.fixture(scope="module")
def spaces():
    rng = np.random.default_rng(2)
    names = {"old_gallery": (40, 6), "old_query": (9, 6), "new_gallery": (40, 8)}
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}
    found["new_query"] = rng.normal(size=(9, 8)).astype(np.float32)
    return found


@pytest.mark.parametrize("calibrated", [False, True])
def test_rerank_by_definition(spaces, calibrated):
    new_rows = np.random.default_rng(0).permutation(40)[:22]
    old = unit(spaces["old_query"]) @ unit(spaces["old_gallery"]).T
    new = unit(spaces["new_query"]) @ unit(spaces["new_gallery"]).T
    calibration = ScoreCalibration.fit(source=old, target=new) if calibrated else None
    found = two_stage_rerank(
        old_query=spaces["old_query"],
        old_gallery=spaces["old_gallery"],
        new_query=spaces["new_query"],
        new_gallery=spaces["new_gallery"][new_rows],
        new_rows=new_rows,
        k=12,
        calibration=calibration,
    )
    for query in range(9):
        top = sorted(range(40), key=lambda row, query=query: -old[query, row])[:12]
        if calibrated:
            moved = calibration.transform(old[query])
            worth = {r: new[query, r] if r in new_rows else moved[r] for r in top}
            expected = sorted(top, key=lambda row, worth=worth: -worth[row])
        else:
            fresh = iter(sorted((r for r in top if r in new_rows), key=lambda r: -new[query, r]))
            expected = [next(fresh) if row in new_rows else row for row in top]
        assert found[query].tolist() == expected


def test_all_new_rows_rerank_into_their_own_order(spaces):
    new = unit(spaces["new_query"]) @ unit(spaces["new_gallery"]).T
    found = two_stage_rerank(**spaces, new_rows=np.arange(40), k=40)
    assert np.array_equal(found, np.argsort(-new, axis=1))
    longer = two_stage_rerank(**spaces, new_rows=np.arange(40), k=50)
    assert np.array_equal(longer[:, :40], found)
    assert (longer[:, 40:] == -1).all()


def test_no_new_row_leaves_the_old_order(spaces):
    old = unit(spaces["old_query"]) @ unit(spaces["old_gallery"]).T
    given = {**spaces, "new_gallery": np.empty((0, 8), np.float32)}
    found = two_stage_rerank(**given, new_rows=[], k=40)
    assert np.array_equal(found, np.argsort(-old, axis=1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"new_rows": np.arange(39)}, ValueError, r"one for each of the 40 rows .*\[39\]"),
        ({"new_rows": np.arange(40) + 1}, ValueError, r"rows in \[0, 40\), got 1 to 40"),
        ({"new_rows": np.zeros(40, int)}, ValueError, "each row once, got 0 twice"),
        ({"new_rows": np.zeros(40)}, TypeError, "new_rows: expected integers, got float64"),
        ({"new_query": np.ones((9, 3))}, ValueError, "expected 8 dims as new_gallery has, got 3"),
        ({"new_query": np.ones((2, 8))}, ValueError, r"one row per old query \(9\), got 2"),
        ({"new_query": np.full((9, 8), np.nan)}, ValueError, "new_query: row 0 holds a NaN"),
        ({"new_gallery": np.full((40, 8), np.inf)}, ValueError, "new_gallery: row 0 holds a NaN"),
        ({"k": 0}, ValueError, "k: expected at least 1"),
    ],
)
def test_refused_reranks(spaces, change, error, message):
    with pytest.raises(error, match=message):
        two_stage_rerank(**{**spaces, "new_rows": np.arange(40), **change})


def test_shortlists_have_one_shape():
    with pytest.raises(ValueError, match=r"one shape \[Q, K\], got \[1, 2\], \[1, 1\], \[1, 2\]"):
        rerank_shortlist([[1, 2]], [[0.5]], [[0.1, 0.2]])
