# SPDX-License-Identifier: Apache-2.0
"""Retrieval metrics against their definitions, independence of blocks, the 2x2 report."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fclearn.evaluation import (
    compatibility_report,
    evaluate_retrieval,
    paired_test,
    render_table,
    top_hits,
)
from fclearn.evaluation import retrieval as retrieval_module
from fclearn.evaluation._bootstrap import bootstrap_means
from fclearn.evaluation._rows import InOrder, Rows, Scorer
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


@settings(max_examples=60, deadline=None)
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
        store = FeatureStore.write(tmp_path / "store", gallery, manifest, Fingerprint("old", 16))
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


def models(noise, num_rows=240, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(num_rows) % 24
    centres = np.random.default_rng(99).standard_normal((24, dim))
    return [
        (centres[labels] + noise * rng.standard_normal((num_rows, dim))).astype(np.float32)
        for _ in range(2)
    ]


LABELS = {"query_labels": np.arange(240) % 24, "gallery_labels": np.arange(240) % 24}


def make_report(cross=0.9, new=0.8, independent=0.8, **kwargs):
    old_query, old_gallery = models(1.5)
    new_query = models(cross, seed=1)[0]
    wide_query, wide_gallery = models(new, seed=2)
    return compatibility_report(
        old_query=old_query, old_gallery=old_gallery,
        new_query=np.concatenate([new_query, wide_query], axis=1),
        new_gallery=np.concatenate([0 * wide_gallery, wide_gallery], axis=1),
        independent_query=models(independent, dim=20, seed=3)[0],
        independent_gallery=models(independent, dim=20, seed=3)[1],
        **{"num_bootstrap": 200, **LABELS, **kwargs},
    )  # fmt: skip


def test_report_is_consistent_with_single_evaluations():
    report = make_report()
    old_query, old_gallery = models(1.5)
    single = evaluate_retrieval(old_query, old_gallery, **LABELS)
    assert report.matrix["old/old"] == dict(single)
    matrix = {key: row["map"] for key, row in report.matrix.items()}
    room = matrix["independent/independent"] - matrix["old/old"]
    assert report.update_gain == pytest.approx((matrix["new/old"] - matrix["old/old"]) / room)
    assert report.self_test_tax == pytest.approx(
        matrix["independent/independent"] - matrix["new/new"]
    )
    first = {key: values["cmc@1"] for key, values in report.per_query.items()}
    flips = np.mean((first["old/old"] == 1) & (first["new/old"] == 0))
    assert report.negative_flip_rate == flips
    assert report.metrics == ("map", "cmc@1", "cmc@5")
    for key, row in report.intervals.items():
        for name, (low, high) in row.items():
            value = {
                **report.matrix, **report.differences, "update_gain": report.update_gains,
                "self_test_tax": report.self_test_taxes, "negative_flip_rate": {"cmc@1": flips},
            }[key][name]  # fmt: skip
            assert low <= value <= high, (key, name)


def test_report_has_p_values():
    report = make_report()
    values = [report.per_query[entry]["map"] for entry in ("old/old", "new/old")]
    assert report.p_values["map"] == paired_test(*values, num_samples=200).p_value
    assert set(report.p_values) == set(report.metrics)
    assert make_report(cross=1.5).p_values["map"] > 0.01 > report.p_values["map"]


def test_report_is_strict_json_and_reproducible():
    text = json.dumps(make_report().to_dict(), allow_nan=False)
    assert text == json.dumps(make_report().to_dict(), allow_nan=False)
    assert make_report(seed=1).intervals != make_report().intervals
    assert json.loads(text)["matrix"]["new/old"].keys() == {"map", "cmc@1", "cmc@5"}


def test_metrics_always_hold_what_the_verdict_needs():
    assert make_report(metrics=("ndcg@10",)).metrics == ("map", "ndcg@10", "cmc@1")


@pytest.mark.parametrize(
    ("cross", "status", "start"),
    [
        (0.9, "compatible", "Upgrade without re-indexing is worthwhile: new queries"),
        (1.5, "unclear", "Not decided, no clear difference: new queries"),
        (4.0, "incompatible", "Not compatible, keep the old model for queries or re-index: new"),
    ],
)
def test_verdict_follows_the_interval(cross, status, start):
    report = make_report(cross=cross)
    assert report.verdict.status == status
    assert report.verdict.text.startswith(start)
    low, high = report.intervals["new/old - old/old"]["map"]
    assert {"compatible": low > 0, "unclear": low <= 0 <= high, "incompatible": high < 0}[status]


def test_verdict_names_a_worse_first_hit():
    """Same noise but for the best hit: rows are right on the whole and wrong at rank one."""
    old_query = np.array([[1.0, 0.2, 0.0]] * 30, np.float32)
    gallery = np.array([[1, 0, 0], [0, 1, 0], [0.3, 0.9, 0], [0, 0, 1]], np.float32)
    report = compatibility_report(
        old_query=old_query, old_gallery=gallery,
        new_query=np.array([[0.0, 0.95, 1.0]] * 30, np.float32),
        query_labels=[0] * 30, gallery_labels=[0, 0, 0, 1], num_bootstrap=50,
    )  # fmt: skip
    assert report.matrix["old/old"]["cmc@1"] == 1
    assert report.matrix["new/old"]["cmc@1"] == 0
    assert report.negative_flip_rate == 1
    assert report.verdict.status == "incompatible"


def test_gain_is_undefined_without_room():
    old_query, old_gallery = models(1.5)
    report = compatibility_report(
        old_query=old_query, old_gallery=old_gallery, new_query=models(0.9, seed=1)[0],
        independent_query=old_query, independent_gallery=old_gallery, num_bootstrap=50, **LABELS,
    )  # fmt: skip
    assert report.update_gain is None
    assert report.intervals["update_gain"]["map"] is None
    assert report.self_test_tax is None
    json.dumps(report.to_dict(), allow_nan=False)
    table = io.StringIO()
    Console(file=table, width=120).print(render_table(report))
    assert "update gain" in table.getvalue()
    assert "self-test tax" not in table.getvalue()


def test_gain_has_no_interval_when_its_denominator_may_be_zero():
    report = make_report(independent=1.95)
    assert report.update_gain is None or report.intervals["update_gain"]["map"] is None


def test_self_exclusion_reaches_every_entry():
    rows, _ = models(1.5)
    new, _ = models(0.9, seed=1)
    report = compatibility_report(
        old_query=rows, old_gallery=rows, new_query=new, new_gallery=new, exclude_self=True,
        num_bootstrap=20, **LABELS,
    )  # fmt: skip
    single = evaluate_retrieval(
        new, rows, exclude_self=True, query_ids=range(240), gallery_ids=range(240), **LABELS
    )
    assert report.matrix["new/old"] == dict(single)
    assert report.matrix["old/old"]["cmc@1"] < 1


def test_report_table():
    table = io.StringIO()
    Console(file=table, width=120).print(render_table(make_report()))
    for text in ("old/old", "new/old", "mAP", "CMC@1", "update gain", "self-test tax", "95%"):
        assert text in table.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bootstrap": 0}, "num_bootstrap: expected at least 1, got 0"),
        ({"confidence": 1.0}, r"confidence: expected a number in \(0, 1\), got 1.0"),
        ({"independent_gallery": None}, "independent_query and independent_gallery: expected both"),
        (
            {"new_query": np.ones((240, 3), np.float32)},
            r"new/old \(query/gallery\): query: expected",
        ),
        ({"metrics": ("top1",)}, "unknown metric 'top1'"),
    ],
)
def test_bad_reports(changes, message):
    rows, gallery = models(1.5)
    arguments = {
        "old_query": rows, "old_gallery": gallery, "new_query": rows, "independent_query": rows,
        "independent_gallery": gallery, **LABELS, **changes,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        compatibility_report(**arguments)


def test_bootstrap_of_a_mean_matches_its_standard_error():
    values = np.random.default_rng(0).standard_normal((400, 2))
    means = bootstrap_means(values, 4000, seed=0)
    assert means.shape == (4000, 2)
    np.testing.assert_allclose(means.std(axis=0), values.std(axis=0) / 20, rtol=0.05)
    np.testing.assert_allclose(means.mean(axis=0), values.mean(axis=0), atol=0.005)


def test_bootstrap_does_not_depend_on_its_chunks(monkeypatch):
    values = np.random.default_rng(0).standard_normal((30, 2))
    whole = bootstrap_means(values, 100, seed=0)
    monkeypatch.setattr("fclearn.evaluation._bootstrap._CHUNK_ELEMENTS", 70)
    np.testing.assert_allclose(bootstrap_means(values, 100, seed=0), whole, rtol=1e-12)
