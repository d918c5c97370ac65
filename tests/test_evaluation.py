# SPDX-License-Identifier: Apache-2.0
"""Retrieval metrics against their definitions, to the bit, whatever the blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fclearn.evaluation import evaluate_retrieval, top_hits
from fclearn.evaluation import retrieval as retrieval_module
from fclearn.evaluation._rows import Rows, Scorer
from fclearn.evaluation.types import InOrder
from fclearn.features import FeatureStore, Fingerprint

METRICS = (
    "map", "map@3", "map@50", "map@r", "cmc@1", "cmc@5", "recall@1", "recall@10",
    "precision@5", "precision@500", "ndcg@1", "ndcg@10", "mrr",
)  # fmt: skip


def scores_by_definition(query, gallery, metric="cosine"):
    query, gallery = np.asarray(query, np.float64), np.asarray(gallery, np.float64)
    query = query[:, : gallery.shape[1]]
    if metric == "cosine":
        query = query / np.linalg.norm(query, axis=1, keepdims=True)
        gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    if metric == "l2":
        return -((query[:, None, :] - gallery[None]) ** 2).sum(2)
    return query @ gallery.T


def metrics_by_definition(scores, positive, excluded):
    """One query: walk down the ranked list."""
    order = sorted(
        (j for j in range(len(scores)) if not excluded[j]), key=lambda j: (-scores[j], j)
    )
    hits = [bool(positive[j]) for j in order]
    total = sum(hits)
    if total == 0:
        return None
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]

    def average_precision(k):
        return sum(p for p, hit in zip(precision[:k], hits[:k], strict=True) if hit) / min(k, total)

    def dcg(flags):
        return sum(flag / math.log2(i + 2) for i, flag in enumerate(flags))

    values = {
        "map": average_precision(len(hits)) * min(len(hits), total) / total,
        "map@r": average_precision(total),
        "mrr": 1 / (hits.index(True) + 1),
    }
    for name in METRICS:
        stem, _, k = name.partition("@")
        if not k.isdigit():
            continue
        k = int(k)
        values[name] = {
            "map": lambda k=k: average_precision(k),
            "cmc": lambda k=k: float(any(hits[:k])),
            "recall": lambda k=k: sum(hits[:k]) / total,
            "precision": lambda k=k: sum(hits[:k]) / k,
            "ndcg": lambda k=k: dcg(hits[:k]) / dcg([1] * min(k, total)),
        }[stem]()
    return values


def check(
    query, gallery, query_labels, gallery_labels, *, excluded=None, metric="cosine", **kwargs
):
    scores = scores_by_definition(query, gallery, metric)
    positive = np.asarray(query_labels)[:, None] == np.asarray(gallery_labels)[None]
    excluded = np.zeros_like(positive) if excluded is None else excluded
    expected = [metrics_by_definition(*row) for row in zip(scores, positive, excluded, strict=True)]
    result = evaluate_retrieval(
        query, gallery, query_labels=query_labels, gallery_labels=gallery_labels,
        metrics=METRICS, metric=metric, return_per_query=True, **kwargs,
    )  # fmt: skip
    assert result.num_skipped == sum(values is None for values in expected)
    assert result.num_queries == len(expected) - result.num_skipped
    for name in METRICS:
        wanted = [math.nan if values is None else values[name] for values in expected]
        np.testing.assert_allclose(result.per_query[name], wanted, rtol=1e-12, err_msg=name)
        assert result[name] == pytest.approx(np.nanmean(wanted), rel=1e-12)
    return result


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    labels, gallery_labels = rng.integers(0, 12, 40), rng.integers(0, 11, 300)
    centres = rng.standard_normal((12, 16))
    query = centres[labels] + 2 * rng.standard_normal((40, 16))
    gallery = centres[gallery_labels] + 2 * rng.standard_normal((300, 16))
    return query.astype(np.float32), gallery.astype(np.float32), labels, gallery_labels


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("blocks", [(256, 16384), (7, 64), (3, 11)])
def test_metrics_match_their_definitions(data, metric, blocks):
    result = check(*data, metric=metric, batch_size=blocks[0], gallery_batch_size=blocks[1])
    assert result.num_skipped > 0  # label 11 has no gallery row
    assert set(result) == set(METRICS)
    assert result.to_dict()["num_gallery"] == 300


def test_excluding_ids_and_groups(data):
    query, gallery, labels, gallery_labels = data
    rng = np.random.default_rng(0)
    ids = [f"image-{i}" for i in range(300)]
    query_ids = [ids[i] for i in rng.integers(0, 300, 40)]
    groups, gallery_groups = rng.integers(0, 5, 40), rng.integers(0, 5, 300)
    same = np.asarray(query_ids)[:, None] == np.asarray(ids)[None]
    check(
        query, gallery, labels, gallery_labels, excluded=same,
        exclude_self=True, query_ids=query_ids, gallery_ids=ids, gallery_batch_size=50,
    )  # fmt: skip
    check(
        query, gallery, labels, gallery_labels, gallery_batch_size=50, exclude_self=True,
        excluded=same | (groups[:, None] == gallery_groups[None]), query_ids=query_ids,
        gallery_ids=ids, query_groups=groups, gallery_groups=gallery_groups,
    )  # fmt: skip


def test_self_is_excluded_by_row_when_query_is_gallery(data):
    _, gallery, _, labels = data
    check(gallery, gallery, labels, labels, excluded=np.eye(300, dtype=bool), exclude_self=True)


@given(st.data())
def test_ties_are_broken_by_gallery_row(data):
    """Few distinct vectors: most scores are tied, within blocks and across them."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    num_query, num_gallery = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 40))
    query = rng.integers(1, 3, (num_query, 2)).astype(np.float32)
    gallery = rng.integers(1, 3, (num_gallery, 2)).astype(np.float32)
    labels, gallery_labels = rng.integers(0, 3, num_query), rng.integers(0, 2, num_gallery)
    labels[0] = gallery_labels[0]
    check(
        query, gallery, labels, gallery_labels, metric=data.draw(st.sampled_from(["ip", "l2"])),
        batch_size=data.draw(st.integers(1, 7)), gallery_batch_size=data.draw(st.integers(1, 50)),
    )  # fmt: skip


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_no_bit_depends_on_blocks_or_threads(metric):
    """Near-ties at the rounding error of a float32 product: where plain matmuls flip ranks."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((5, 67))
    labels, gallery_labels = rng.integers(0, 5, 50), rng.integers(0, 5, 2000)
    query = (centres[labels] + 1e-7 * rng.standard_normal((50, 67))).astype(np.float32)
    gallery = (centres[gallery_labels % 2] + 1e-7 * rng.standard_normal((2000, 67))).astype("f4")
    seen = set()
    threads = torch.get_num_threads()
    try:
        for count, blocks in ((1, (256, 16384)), (2, (33, 700)), (2, (1, 1999)), (1, (50, 17))):
            torch.set_num_threads(count)
            result = evaluate_retrieval(
                query, gallery, query_labels=labels, gallery_labels=gallery_labels, metrics=METRICS,
                metric=metric, batch_size=blocks[0], gallery_batch_size=blocks[1],
                return_per_query=True,
            )  # fmt: skip
            seen.add(tuple(result.per_query[name].tobytes() for name in METRICS))
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 1


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_scores_are_exact(metric):
    """The product of grid vectors equals the sum in exact arithmetic, rounded once."""
    rng = np.random.default_rng(5)
    query, gallery = rng.standard_normal((4, 301)) * 1e3, rng.standard_normal((6, 301)) * 7
    scorer = Scorer(Rows(query, "query"), Rows(gallery, "gallery"), metric)
    q, g = scorer.queries(slice(None)), scorer.gallery(slice(None))
    got = scorer.score(q, g).numpy()
    for i, j in np.ndindex(4, 6):
        terms = zip(q[i].tolist(), g[j].tolist(), strict=True)
        exact = [-((a - b) ** 2) if metric == "l2" else a * b for a, b in terms]
        assert got[i, j] == np.float32(math.fsum(exact))
    wanted = scores_by_definition(query, gallery, metric)
    slope = np.polyfit(got.ravel(), wanted.ravel(), 1)  # a positive scale and a shift rank the same
    if metric != "ip":  # inner products are scaled query by query
        assert slope[0] > 0
        np.testing.assert_allclose(np.polyval(slope, got), wanted, rtol=1e-5, atol=1e-5)


def test_wider_queries_are_cut_and_normalised_again(data):
    query, gallery, labels, gallery_labels = data
    wide = np.concatenate([query, 100 * np.ones((40, 5), np.float32)], axis=1)
    keyword = {"query_labels": labels, "gallery_labels": gallery_labels, "metrics": METRICS}
    assert dict(evaluate_retrieval(wide, gallery, **keyword)) == dict(
        evaluate_retrieval(query, gallery, **keyword)
    )
    with pytest.raises(ValueError, match=r"query: expected at least as many dims .* 21, got 16"):
        evaluate_retrieval(query, wide[:, :21], query_labels=labels, gallery_labels=labels)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_kind_of_features_gives_the_same(data, dtype, tmp_path):
    query, gallery, labels, gallery_labels = data
    query, gallery = query.astype(dtype), gallery.astype(dtype)
    np.save(tmp_path / "gallery.npy", gallery)
    swapped = gallery.astype(gallery.dtype.newbyteorder(">"))

    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    stores = []
    if dtype != "float64":  # stores hold at most float32
        manifest = {"id": [str(row) for row in range(300)]}
        fingerprint = Fingerprint("old", 16, norm="none")
        store = FeatureStore.write(tmp_path / "store", gallery, manifest, fingerprint)
        stores = [store, tmp_path / "store"]

    results = [
        dict(evaluate_retrieval(query, kind, query_labels=labels, gallery_labels=gallery_labels))
        for kind in (
            gallery, torch.from_numpy(gallery), mapped, swapped,
            gallery[::-1].copy()[::-1],
            tmp_path / "gallery.npy", str(tmp_path / "gallery.npy"), *stores,
        )
    ]  # fmt: skip
    assert all(result == results[0] for result in results)


def test_rows_in_another_order_are_read_where_they_are(data, tmp_path):
    query, gallery, labels, gallery_labels = data
    order = np.random.default_rng(0).permutation(300)
    np.save(tmp_path / "shuffled.npy", gallery[order])
    back = InOrder(tmp_path / "shuffled.npy", np.argsort(order))
    for metrics in (METRICS, ("map@10", "cmc@1")):
        keyword = {"query_labels": labels, "gallery_labels": gallery_labels, "metrics": metrics}
        assert dict(evaluate_retrieval(query, back, **keyword)) == dict(
            evaluate_retrieval(query, gallery, **keyword)
        )


@pytest.mark.needs_cuda
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_a_gpu_gives_the_same_bits(data, metric):
    query, gallery, labels, gallery_labels = data
    keyword = {"query_labels": labels, "gallery_labels": gallery_labels, "metric": metric}
    here = evaluate_retrieval(query, gallery, metrics=METRICS, **keyword)
    there = evaluate_retrieval(query, torch.from_numpy(gallery).cuda(), metrics=METRICS, **keyword)
    assert dict(here) == dict(there)


def test_bfloat16_tensors_and_labels_of_many_kinds(data):
    query, gallery, labels, gallery_labels = data
    as_tensor = torch.from_numpy(query).bfloat16().requires_grad_()
    result = evaluate_retrieval(
        as_tensor, gallery, query_labels=torch.from_numpy(labels),
        gallery_labels=list(map(int, gallery_labels)),
    )  # fmt: skip
    names = evaluate_retrieval(
        as_tensor, gallery, query_labels=[f"class {i}" for i in labels],
        gallery_labels=np.array([f"class {i}" for i in gallery_labels], dtype=object),
    )  # fmt: skip
    assert dict(result) == dict(names)


def test_memory_stays_within_a_block(tmp_path, monkeypatch):
    """A gallery on disk is read in blocks, never as a whole."""
    gallery = np.lib.format.open_memmap(tmp_path / "g.npy", "w+", np.float16, (5000, 4))
    gallery[:] = np.random.default_rng(0).standard_normal((5000, 4))
    sizes = []

    class Spy(Rows):
        def read(self, index, dim):
            block = super().read(index, dim)
            sizes.append(len(block))
            return block

        def check(self, dim, *, needs_norm):
            monkeypatch.setattr("fclearn.evaluation._rows._CHECK_ELEMENTS", 400)
            monkeypatch.setattr("fclearn.evaluation.grid._ELEMENTS", 400)
            return super().check(dim, needs_norm=needs_norm)

    monkeypatch.setattr(retrieval_module, "Rows", Spy)
    labels = np.arange(5000) % 3
    result = evaluate_retrieval(
        gallery[:20], tmp_path / "g.npy", query_labels=labels[:20], gallery_labels=labels,
        gallery_batch_size=128,
    )  # fmt: skip
    assert 0 < max(sizes) <= 128
    assert result.num_queries == 20


def test_many_pairs_are_split_without_changing_a_bit(data, monkeypatch):
    keyword = {"query_labels": data[2], "gallery_labels": data[3], "metrics": METRICS}
    whole = evaluate_retrieval(*data[:2], **keyword)
    monkeypatch.setattr("fclearn.evaluation._pairs._MAX_PAIRS", 40)
    assert dict(evaluate_retrieval(*data[:2], **keyword)) == dict(whole)


@pytest.mark.parametrize("block", [1, 13, 1000])
def test_top_hits_are_the_ranking(data, block):
    query, gallery = data[:2]
    gallery = np.concatenate([gallery, gallery[:50]])  # ties
    groups, gallery_groups = np.arange(40) % 3, np.arange(350) % 3
    hits = top_hits(
        query, gallery, 20, query_groups=groups, gallery_groups=gallery_groups,
        gallery_batch_size=block,
    )  # fmt: skip
    scores = scores_by_definition(query, gallery).astype(np.float32)
    for i in range(40):
        order = sorted(range(350), key=lambda j, i=i: (-scores[i, j], j))
        assert hits[i].tolist() == [j for j in order if gallery_groups[j] != groups[i]][:20]


def test_top_hits_of_a_small_gallery():
    rows = np.eye(3, dtype=np.float32)
    hits = top_hits(rows, rows, 3, exclude_self=True)
    assert hits.tolist() == [[1, 2, -1], [0, 2, -1], [0, 1, -1]]
    with pytest.raises(ValueError, match="k: expected at least 1 hit, got 0"):
        top_hits(rows, rows, 0)
