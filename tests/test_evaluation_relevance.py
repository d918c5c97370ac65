# SPDX-License-Identifier: Apache-2.0
"""Sets of labels, judgements, junk and index files, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fclearn.evaluation import (
    METRIC_NAMES,
    IndexedGallery,
    Qrels,
    evaluate_retrieval,
    revisited_protocol,
)
from fclearn.evaluation.keys import Keys
from fclearn.evaluation.relevance import SameLabel

ALL = tuple(name.replace("@k", "@9") for name in METRIC_NAMES)
SHALLOW = tuple(name for name in ALL if "@" in name)


def by_definition(order, grades, total, ideal):
    """Every metric of one query: walk down the ranked rows, whose grades are given."""
    gains = [grades.get(row, 0.0) for row in order]
    hits = [gain > 0 for gain in gains]
    ranks = [rank for rank, hit in enumerate(hits, 1) if hit]
    discount = [1 / math.log2(rank + 1) for rank in range(1, max(len(order), total) + 1)]
    ideal = sorted(ideal, reverse=True)

    def precision(k):
        return sum(hits[:k]) / k

    def average(k):
        return sum(precision(rank) for rank in ranks if rank <= k) / min(total, k)

    def ndcg(k):
        gain = sum(g * d for g, d in zip(gains[:k], discount, strict=False))
        return gain / sum(g * d for g, d in zip(ideal[:k], discount, strict=False))

    everything = max(len(order), total)
    first = ranks[0] if ranks else math.inf
    return {
        "map": average(everything), "map@9": average(9), "map@r": average(total),
        "map_trapezoid": sum(
            ((j / (rank - 1) if rank > 1 else 1.0) + (j + 1) / rank) / 2
            for j, rank in enumerate(ranks)
        ) / total,
        "cmc@9": float(any(hits[:9])), "recall@9": sum(hits[:9]) / total,
        "precision@9": precision(9), "precision@r": precision(total), "ndcg": ndcg(everything),
        "ndcg@9": ndcg(9), "mrr": 1 / first, "mrr@9": 1 / first if first <= 9 else 0.0,
    }  # fmt: skip


def check(query, gallery, right, *, absent=None, junk=None, gallery_rows=None, **options):
    """``right[i]``: grade of each right gallery row; ``absent[i]``: grades of missing ones."""
    scores = query @ gallery.T
    absent, junk = absent or [[]] * len(query), junk or [[]] * len(query)
    wanted = []
    for i, grades in enumerate(right):
        kept = {row: grade for row, grade in grades.items() if row not in junk[i]}
        order = [row for row in np.argsort(-scores[i], kind="stable") if row not in junk[i]]
        ideal = [*kept.values(), *absent[i]]
        wanted.append(by_definition(order, kept, len(ideal), ideal) if ideal else None)
    target = gallery if gallery_rows is None else gallery_rows
    for names in (SHALLOW,) if isinstance(target, IndexedGallery) else (ALL, SHALLOW):
        result = evaluate_retrieval(
            query, target, metrics=names, metric="ip", return_per_query=True, **options
        )
        assert result.num_skipped == sum(values is None for values in wanted)
        for name in names:
            expected = [math.nan if values is None else values[name] for values in wanted]
            np.testing.assert_allclose(result.per_query[name], expected, rtol=1e-12, err_msg=name)
    return result


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(2)
    return [rng.standard_normal((n, 8)).astype(np.float32) for n in (25, 200)]


def label_sets(seed, size, labels=9):
    rng = np.random.default_rng(seed)
    return [
        sorted(rng.choice(labels, rng.integers(0, 4), replace=False).tolist()) for _ in range(size)
    ]


def test_sets_of_labels(rows):
    query, gallery = rows
    mine, theirs = label_sets(0, 25), label_sets(1, 200, labels=8)
    positives = [
        {row: len(shared) for row, other in enumerate(theirs) if (shared := set(one) & set(other))}
        for one in mine
    ]
    first = check(query, gallery, positives, query_labels=mine, gallery_labels=theirs)
    words = [[{f"label {i}" for i in one} for one in side] for side in (mine, theirs)]
    tables = [np.array([[i in one for i in range(9)] for one in side]) for side in (mine, theirs)]
    for sides in (words, tables, [torch.from_numpy(table) for table in tables]):
        again = evaluate_retrieval(
            query, gallery, query_labels=sides[0], gallery_labels=sides[1], metrics=SHALLOW,
            metric="ip",
        )  # fmt: skip
        assert dict(again) == dict(first)


def test_positives_and_junk_by_row(rows):
    query, gallery = rows
    rng = np.random.default_rng(3)
    right = [rng.choice(200, 12, replace=False).tolist() for _ in query[:-1]] + [[]]
    # Junk wins over right.
    junk = [rng.choice(200, 30, replace=False).tolist() for _ in query]
    grades = [dict.fromkeys(each, 1.0) for each in right]
    check(query, gallery, grades, positives=right)
    worth = [rng.integers(1, 4, len(each)).astype(float).tolist() for each in right]
    graded = [dict(zip(*pair, strict=True)) for pair in zip(right, worth, strict=True)]
    check(query, gallery, graded, positives=right, grades=worth)
    result = evaluate_retrieval(
        query, gallery, positives=right, junk=junk, metrics=ALL, metric="ip", return_per_query=True
    )
    for i, each in enumerate(right[:-1]):
        kept = dict.fromkeys(set(each) - set(junk[i]), 1.0)
        order = [row for row in np.argsort(-(query[i] @ gallery.T)) if row not in junk[i]]
        expected = by_definition(order, kept, len(kept), list(kept.values()))
        for name in ALL:
            assert result.per_query[name][i] == pytest.approx(expected[name], rel=1e-12)


def test_judgements(rows, tmp_path):
    query, gallery = rows
    rng = np.random.default_rng(4)
    lines, positives, absent = [], [], []
    for i in range(24):  # the last query has none
        judged = rng.choice(200, 15, replace=False)
        grades = rng.integers(-1, 4, 15)
        grades[0] = 2
        lines += [f"q{i} 0 d{row} {grade}" for row, grade in zip(judged, grades, strict=True)]
        positives.append({row: float(g) for row, g in zip(judged, grades, strict=True) if g > 0})
        absent.append([3.0] * (i % 3))
        lines += [f"q{i}\t0  elsewhere-{n} 3" for n in range(i % 3)]
    lines += ["unknown-query 0 d3 1", ""]
    (tmp_path / "qrels.txt").write_text("\n".join(lines))
    ids = {"query_ids": [f"q{i}" for i in range(25)], "gallery_ids": [f"d{i}" for i in range(200)]}
    for qrels in (
        tmp_path / "qrels.txt",
        str(tmp_path / "qrels.txt"),
        Qrels.read(tmp_path / "qrels.txt"),
    ):
        result = check(query, gallery, [*positives, {}], absent=[*absent, []], qrels=qrels, **ids)
        assert result.num_missing == sum(i % 3 for i in range(24))
        assert result.to_dict()["num_missing"] == result.num_missing


def test_a_byte_order_mark_is_no_part_of_a_query_id(tmp_path):
    path = tmp_path / "qrels.txt"
    path.write_text("q1 0 d1 1\nq2 0 d2 2\n", encoding="utf-8-sig")
    assert Qrels.read(path).grades == {"q1": {"d1": 1}, "q2": {"d2": 2}}


def test_a_query_whose_positives_are_all_missing_counts_as_nothing_found(rows):
    query, gallery = rows
    result = evaluate_retrieval(
        query[:2], gallery[:3], qrels=Qrels({"0": {"a": 1}, "1": {"x": 1, "a": 0}}), metrics=ALL,
        query_ids=["0", "1"], gallery_ids=["a", "b", "c"], return_per_query=True,
    )  # fmt: skip
    assert result.num_queries == 2
    assert all(result.per_query[name][1] == 0 for name in ALL)


def test_missing_positives_count_in_how_deep_r_is():
    """One of three relevant documents is there, at rank 2: R-precision is 1 / 3."""
    gallery = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    for metrics in (("precision@r", "map@r"), ("precision@r", "map@r", "map")):
        result = evaluate_retrieval(
            gallery[:1], gallery, qrels=Qrels({"q": {"b": 1, "x": 1, "y": 1}}), query_ids=["q"],
            gallery_ids=["a", "b", "c"], metrics=metrics,
        )  # fmt: skip
        assert result["precision@r"] == pytest.approx(1 / 3)
        assert result["map@r"] == pytest.approx(1 / 6)


def test_revisited_protocols(rows):
    query, gallery = rows
    rng = np.random.default_rng(6)
    truth = []
    for _ in query:
        easy, hard, junk = np.split(rng.choice(200, 30, replace=False), [10, 18])
        truth.append({"easy": easy.tolist(), "hard": hard.tolist(), "junk": junk.tolist()})
    for difficulty, right in {
        "easy": ["easy"],
        "medium": ["easy", "hard"],
        "hard": ["hard"],
    }.items():
        arguments = revisited_protocol(truth, difficulty)
        wanted = [dict.fromkeys((r for n in right for r in one[n]), 1.0) for one in truth]
        junk = [[r for n in one if n not in right for r in one[n]] for one in truth]
        assert [sorted(a) for a in arguments["junk"]] == [sorted(j) for j in junk]
        scores = query @ gallery.T
        result = evaluate_retrieval(
            query, gallery, **arguments, metrics=["map_trapezoid"], metric="ip"
        )
        expected = [
            by_definition(
                [row for row in np.argsort(-scores[i]) if row not in junk[i]], kept, len(kept),
                list(kept.values()),
            )["map_trapezoid"]
            for i, kept in enumerate(wanted)
        ]  # fmt: skip
        assert result["map_trapezoid"] == pytest.approx(np.mean(expected), rel=1e-12)
    with pytest.raises(ValueError, match="difficulty: expected 'easy', 'medium', 'hard', got 'x'"):
        revisited_protocol(truth, "x")
    with pytest.raises(ValueError, match="for query 1, missing hard"):
        revisited_protocol([truth[0], {"easy": [], "junk": []}], "easy")


class TestIndex:
    @pytest.fixture
    def faiss(self):
        return pytest.importorskip("faiss")

    @pytest.fixture
    def labels(self):
        rng = np.random.default_rng(8)
        return {"query_labels": rng.integers(0, 9, 25), "gallery_labels": rng.integers(0, 9, 200)}

    @pytest.mark.parametrize("kind", ["flat-ip", "flat-l2", "mapped", "ids"])
    def test_a_flat_index_gives_the_exact_result(self, faiss, rows, labels, kind, tmp_path):
        query, gallery = rows
        unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
        index = faiss.IndexFlatL2(8) if kind == "flat-l2" else faiss.IndexFlatIP(8)
        options = {}
        if kind == "ids":
            index = faiss.IndexIDMap(index)
            index.add_with_ids(unit, np.arange(200) * 7 + 1000)
            options = {"rows_of_ids": {row * 7 + 1000: row for row in range(200)}}
        else:
            index.add(unit)
        if kind == "mapped":
            faiss.write_index(index, str(tmp_path / "flat.faiss"))
            gallery_index = IndexedGallery.open(tmp_path / "flat.faiss")
        else:
            gallery_index = IndexedGallery(index, **options)
        wide = np.concatenate([query, np.ones((25, 3), np.float32)], axis=1)
        junk = [[i, i + 1] for i in range(25)]
        for more in ({}, {"junk": junk}):
            got = evaluate_retrieval(wide, gallery_index, metrics=SHALLOW, **labels, **more)
            assert dict(got) == dict(
                evaluate_retrieval(query, gallery, metrics=SHALLOW, **labels, **more)
            )

    @pytest.mark.parametrize("key", ["IVF4,PQ4x4np", "HNSW8", "OPQ4,IVF4,PQ4x4"])
    def test_approximate_indexes_from_a_file(self, faiss, key, tmp_path):
        rng = np.random.default_rng(1)
        centres = rng.standard_normal((20, 16))
        labels = np.arange(1200) % 20
        features = (centres[labels] + 0.3 * rng.standard_normal((1200, 16))).astype("f4")
        index = faiss.index_factory(16, key, faiss.METRIC_INNER_PRODUCT)
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        index.train(unit)
        index.add(unit)
        faiss.write_index(index, str(tmp_path / "approximate.faiss"))
        search = {"efSearch": 64} if "HNSW" in key else {"nprobe": 2}
        opened = IndexedGallery.open(tmp_path / "approximate.faiss", parameters=search)
        named = {"query_labels": labels[:100], "gallery_labels": labels}
        through = evaluate_retrieval(
            features[:100], opened, metrics=["cmc@1", "map@10", "recall@20"], **named
        )
        # By definition: the index's own lists, looked at one by one.
        own = faiss.read_index(str(tmp_path / "approximate.faiss"))
        faiss.ParameterSpace().set_index_parameter(own, *next(iter(search.items())))
        lists = own.search(unit[:100], 20)[1]
        hits = (labels[lists] == labels[:100, None]) & (lists >= 0)
        assert through["cmc@1"] == hits[:, 0].mean()
        assert through["recall@20"] == pytest.approx(hits.sum(1).mean() / 60, rel=1e-12)
        precision = hits[:, :10].cumsum(1) / np.arange(1, 11)
        assert through["map@10"] == pytest.approx((precision * hits[:, :10]).mean(), rel=1e-12)

    def test_refusals(self, faiss, rows, labels, tmp_path):
        query, gallery = rows
        index = faiss.IndexFlatIP(8)
        with pytest.raises(ValueError, match="index: expected at least one vector"):
            IndexedGallery(index)
        index.add(gallery)
        opened = IndexedGallery(index)
        with pytest.raises(ValueError, match=r"metrics: map, mrr would need all ranks.*map@100"):
            evaluate_retrieval(query, opened, metrics=["map", "cmc@1", "mrr"], **labels)
        with pytest.raises(
            ValueError, match=r"query: expected at least as many dims as .* 8, got 5"
        ):
            evaluate_retrieval(query[:, :5], opened, metrics=["cmc@1"], **labels)
        with pytest.raises(ValueError, match=r"metric: expected 'ip' or 'cosine' .* got 'l2'"):
            evaluate_retrieval(query, opened, metrics=["cmc@1"], metric="l2", **labels)
        with pytest.raises(
            ValueError, match="gallery_labels: expected one value for each of the 200"
        ):
            evaluate_retrieval(query, opened, metrics=["cmc@1"], query_labels=[0] * 25,
                               gallery_labels=[1, 2])  # fmt: skip
        with pytest.raises(ValueError, match="IndexFlatIP has no search parameter 'nprobe' = 3"):
            IndexedGallery(index, parameters={"nprobe": 3})
        with pytest.raises(
            TypeError, match=r"index: expected a faiss.Index of floats, got ndarray"
        ):
            IndexedGallery(gallery)
        renamed = faiss.IndexIDMap(faiss.IndexFlatIP(8))
        renamed.add_with_ids(gallery, np.arange(200) + 50)
        with pytest.raises(ValueError, match=r"index: returned the id 2.., which is no row"):
            evaluate_retrieval(query, IndexedGallery(renamed), metrics=["cmc@200"], **labels)
        (tmp_path / "broken.faiss").write_bytes(b"IxFI" + b"\x01" * 9)
        for name in ("broken.faiss", "none.faiss"):
            with pytest.raises(ValueError, match=f"{name}: expected a faiss index file"):
                IndexedGallery.open(tmp_path / name)


BAD = [
    ({}, "expected exactly one of the three"),
    ({"query_labels": [0] * 3}, "query_labels and gallery_labels: expected both"),
    ({"positives": [[0]] * 3, "query_labels": [0] * 3}, "expected exactly one of the three"),
    ({"positives": [[0]] * 2}, "positives: expected a list of gallery rows for each of the 3"),
    ({"positives": [[0], [4], []]}, r"positives: expected rows in \[0, 4\), got 4 to 4"),
    ({"positives": [[0], [], [-1]]}, r"positives: expected rows in \[0, 4\), got -1"),
    ({"grades": [[1]] * 3, "query_labels": [0] * 3}, "grades: expected positives, which they are"),
    ({"positives": [[0]] * 3, "grades": [[1]] * 2}, "grades: expected a list for each of the 3"),
    (
        {"positives": [[0], [1, 2], []], "grades": [[1], [1], []]},
        r"grades: expected one for each of the 2 positives of query 1, got shape \[1\]",
    ),
    (
        {"positives": [[0, 0], [], []], "grades": [[1, 2], [], []]},
        "positives: expected each row once, got repeats for query 0",
    ),
    (
        {"positives": [[0], [1], []], "grades": [[1], [0], []]},
        r"grades: expected numbers above 0, got \[0\] for query 1",
    ),
    ({"positives": [[], [], []]}, "none of the 3 queries has a positive"),
    ({"qrels": Qrels({"a": {"x": 1}})}, "qrels: expected query_ids and gallery_ids"),
    (
        {"qrels": Qrels({"a": {"x": 1}}), "query_ids": list("aba"), "gallery_ids": list("wxyz")},
        "query_ids: expected distinct ids, got 'a' in rows 0 and 2",
    ),
    (
        {"qrels": Qrels({"a": {"x": 1}}), "query_ids": list("abc"), "gallery_ids": list("wxyx")},
        "gallery_ids: expected distinct ids, got 'x' in rows 1 and 3",
    ),
    (
        {"qrels": Qrels({"q": {"x": 1}}), "query_ids": list("abc"), "gallery_ids": list("wxyz")},
        "query_ids: expected ids of the qrels, as 'q', got 'a' and others: none of 1 is here",
    ),
    (
        {"qrels": Qrels({"a": {"k": 1}}), "query_ids": list("abc"), "gallery_ids": list("wxyz")},
        "gallery_ids: expected ids of the qrels, got 'w' and others: none of 1 relevant",
    ),
    (
        {"query_labels": [[1]] * 3, "gallery_labels": [[1]] * 3},
        "gallery_labels: expected labels for each of the 4 rows of gallery, got 3",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_relevance(arguments, message):
    query, gallery = np.eye(3, 2, dtype="f4") + 1, np.eye(4, 2, dtype="f4") + 1
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(query, gallery, **arguments)


def test_row_numbers_must_be_integers():
    rows = np.ones((2, 2), np.float32)
    with pytest.raises(TypeError, match="junk: expected row numbers, got float64 for query 1"):
        evaluate_retrieval(rows, rows, query_labels=[0, 0], gallery_labels=[0, 0], junk=[[], [0.5]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q 0 d\n", "line 1: expected 'query-id iteration document-id grade', got 3 columns"),
        ("q 0 d 1\nq 0 e high\n", "line 2: expected an integer grade, got 'high'"),
        ("q 0 d 1\n\nq 1 d 0\n", "line 3: 'd' is judged twice for query 'q'"),
        ("\n", "expected judgements, found none"),
        (b"\xff\xfe\x00", "expected a text file in UTF-8"),
    ],
)
def test_bad_qrels_files(tmp_path, text, message):
    path = tmp_path / "qrels"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        Qrels.read(path)
    with pytest.raises(FileNotFoundError):
        Qrels.read(tmp_path / "none")


@pytest.mark.parametrize("top", [11, 2**16 - 1, 2**16, 2**63 - 1])
@pytest.mark.parametrize("bottom", [0, -1, -(2**62)])
def test_labels_of_any_size_are_found_row_by_row(bottom, top):
    rng = np.random.default_rng(0)
    gallery = rng.choice(np.array([bottom, 0, 5, top - 1, top]), 400)
    relevance = SameLabel(Keys(gallery[:9], gallery))
    for query in range(9):
        rows, grades = relevance.positives(query)
        assert rows.tolist() == np.flatnonzero(gallery == gallery[query]).tolist()
        assert grades is None
