# SPDX-License-Identifier: Apache-2.0
"""The search for the first ranks agrees to the last bit with ranking the whole gallery."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fclearn.evaluation import _topk, _ways, evaluate_retrieval
from fclearn.evaluation._rows import Scorer

FIRST = ("map@5", "map@40", "map@r", "cmc@1", "recall@10", "precision@7", "precision@r", "ndcg@10",
         "mrr@3")  # fmt: skip


def both(query, gallery, **options):
    """Metrics by the search, and by ranking everything, which asking for map brings about."""
    options = {"return_per_query": True, **options}
    fast = evaluate_retrieval(query, gallery, metrics=FIRST, **options)
    full = evaluate_retrieval(query, gallery, metrics=("map", *FIRST), **options)
    assert (fast.num_queries, fast.num_skipped) == (full.num_queries, full.num_skipped)
    for name in FIRST:
        assert fast.per_query[name].tobytes() == full.per_query[name].tobytes(), name
    return fast


def rows(num_query, num_gallery, dim, seed=0, classes=12):
    rng = np.random.default_rng(seed)
    labels, gallery_labels = (
        rng.integers(0, classes, num_query),
        rng.integers(0, classes, num_gallery),
    )
    centres = rng.standard_normal((classes, dim))
    query = centres[labels] + 2 * rng.standard_normal((num_query, dim))
    gallery = centres[gallery_labels] + 2 * rng.standard_normal((num_gallery, dim))
    named = {"query_labels": labels, "gallery_labels": gallery_labels}
    return query.astype(np.float32), gallery.astype(np.float32), named


@pytest.fixture
def full_rankings(monkeypatch):
    """How many queries were sent to the ranking of the whole gallery."""
    sent = []
    original = _ways.positive_ranks

    def spy(scorer, relevance, excluded, queries, *sizes):
        sent.append(len(queries))
        return original(scorer, relevance, excluded, queries, *sizes)

    monkeypatch.setattr(_ways, "positive_ranks", spy)
    return sent


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_same_bits(metric, dtype, full_rankings, monkeypatch):
    monkeypatch.setattr(_topk, "_BLOCK_ELEMENTS", 20 * 700)  # several blocks of both sides
    monkeypatch.setattr(_topk, "_PROPOSED", 25 * 200)
    query, gallery, labels = rows(60, 3000, 20)
    both(query.astype(dtype), gallery.astype(dtype), metric=metric, **labels)
    assert full_rankings == [0, 60]  # nothing was left to the ranking of everything


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-5])
def test_near_ties(metric, noise):
    """Where float32 cannot tell rows apart, or all of them are equal."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((5, 67))
    labels, gallery_labels = rng.integers(0, 5, 50), rng.integers(0, 5, 2000)
    query = centres[labels] + noise * rng.standard_normal((50, 67))
    gallery = centres[gallery_labels % 2] + noise * rng.standard_normal((2000, 67))
    both(query, gallery, metric=metric, query_labels=labels, gallery_labels=gallery_labels)


def test_queries_it_cannot_decide_are_ranked_in_full(full_rankings):
    gallery = np.repeat(np.eye(3, dtype=np.float32), 500, axis=0)
    labels = np.arange(1500) % 7
    both(gallery[:30], gallery, query_labels=labels[:30], gallery_labels=labels)
    assert full_rankings == [30, 30]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_ties_of_few_distinct_vectors(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    num_query, num_gallery = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 200))
    query = rng.integers(1, 4, (num_query, 3)).astype(np.float32)
    gallery = rng.integers(1, 4, (num_gallery, 3)).astype(np.float32)
    labels, gallery_labels = rng.integers(0, 3, num_query), rng.integers(0, 2, num_gallery)
    labels[0] = gallery_labels[0]
    options = {"query_labels": labels, "gallery_labels": gallery_labels}
    if data.draw(st.booleans()):
        options["junk"] = [rng.choice(num_gallery, min(num_gallery, 3)) for _ in range(num_query)]
        if not (np.delete(gallery_labels, options["junk"][0]) == labels[0]).any():
            return
    both(query, gallery, metric=data.draw(st.sampled_from(["cosine", "ip", "l2"])), **options)


def test_exclusions(full_rankings):
    query, gallery, labels = rows(80, 2500, 16)
    rng = np.random.default_rng(5)
    ids = [f"row {i}" for i in range(2500)]
    result = both(
        query, gallery, **labels, exclude_self=True, gallery_ids=ids,
        query_ids=[ids[i] for i in rng.integers(0, 2500, 80)],
        query_groups=rng.integers(0, 50, 80), gallery_groups=rng.integers(0, 50, 2500),
        junk=[rng.integers(0, 2500, rng.integers(0, 30)) for _ in range(80)],
    )  # fmt: skip
    assert result.num_queries == 80
    assert full_rankings == [0, 80]


def test_small_galleries_are_ranked_to_their_end():
    query, gallery, labels = rows(9, 4, 3, classes=2)
    both(query, gallery, **labels)
    both(query, gallery, **labels, junk=[[0, 1]] + [[]] * 8)


def test_wider_queries_are_cut():
    query, gallery, labels = rows(30, 500, 16)
    wide = np.concatenate([query, 100 * np.ones((30, 5), np.float32)], axis=1)
    assert dict(both(wide, gallery, **labels)) == dict(both(query, gallery, **labels))


def test_deep_metrics_rank_everything(full_rankings):
    query, gallery, labels = rows(5, 3000, 4, classes=2)
    evaluate_retrieval(query, gallery, metrics=["recall@2049"], **labels)
    evaluate_retrieval(query, gallery, metrics=["recall@2048"], **labels)
    assert full_rankings == [5, 0]


def test_files_larger_than_a_block(tmp_path, monkeypatch):
    query, gallery, labels = rows(20, 5000, 8)
    np.save(tmp_path / "gallery.npy", gallery)
    expected = both(query, gallery, **labels)
    monkeypatch.setattr(_topk, "_BLOCK_ELEMENTS", 8 * 300)
    assert dict(both(query, tmp_path / "gallery.npy", **labels)) == dict(expected)


@pytest.fixture
def copied(monkeypatch):
    """Rows of the gallery that were copied for the search, block by block."""
    sizes = []
    original = Scorer.narrow

    def spy(scorer, side, index):
        if side == "gallery":
            sizes.append(len(original(scorer, side, index)))
        return original(scorer, side, index)

    monkeypatch.setattr(Scorer, "narrow", spy)
    return sizes


def test_float32_rows_are_searched_where_they_lie(tmp_path, copied, monkeypatch):
    monkeypatch.setattr(_topk, "_BLOCK_ELEMENTS", 8 * 300)  # 2400 rows at once: three blocks
    query, gallery, labels = rows(20, 5000, 8)
    np.save(tmp_path / "gallery.npy", gallery)
    expected = dict(both(query, gallery, **labels))
    assert dict(both(query, tmp_path / "gallery.npy", **labels)) == expected
    frozen = gallery.copy()
    frozen.flags.writeable = False
    assert dict(both(query, frozen, **labels)) == expected
    assert copied == []
    # Rows that do not lie one behind the other, or in another byte order, are copied.
    for other in (np.asfortranarray(gallery), gallery.astype(">f4"), gallery.astype(np.float64)):
        assert dict(both(query, other, **labels)) == expected
        assert sum(copied) == 5000
        copied.clear()


@pytest.mark.parametrize("shape", [(50, 1), (1, 8)])
def test_reversed_axes_of_length_one(shape):
    """numpy calls such rows contiguous, and their strides are negative."""
    _, gallery, labels = rows(50, 50, 8)
    gallery = np.abs(gallery[: shape[0], : shape[1]]).copy()
    labels = {"query_labels": labels["gallery_labels"], "gallery_labels": labels["gallery_labels"]}
    labels = {name: np.asarray(values)[: shape[0]] for name, values in labels.items()}
    turned = np.lib.stride_tricks.as_strided(
        gallery,
        strides=[-s if n == 1 else s for n, s in zip(shape, gallery.strides, strict=True)],
    )
    assert turned.flags.c_contiguous
    assert min(turned.strides) < 0
    options = {**labels, "metrics": ("cmc@1",)}
    expected = evaluate_retrieval(gallery, gallery, **options).means
    assert evaluate_retrieval(turned, turned, **options).means == expected


@pytest.mark.parametrize("size", [1e-30, 1e-44, 1e25])
def test_rows_whose_squares_leave_the_range_of_float32(size):
    """Their norms are taken in double, so they are neither zero nor infinite."""
    query, gallery, labels = rows(20, 500, 8)
    # A row of one entry: it keeps its direction, however few digits a denormal number has.
    gallery[::3] = np.float32(size) * np.eye(8, dtype=np.float32)[np.arange(167) % 8]
    both(query, gallery, **labels)
    gallery[301, 2] = np.nan
    with pytest.raises(ValueError, match="gallery: row 301 holds a NaN or infinite value"):
        both(query, gallery, **labels)
