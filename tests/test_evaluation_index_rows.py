# SPDX-License-Identifier: Apache-2.0
"""An index and the store of its rows: by ids, in any order, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fclearn.adapters import Ridge, export
from fclearn.evaluation import IndexedGallery, evaluate_retrieval
from fclearn.features import FeatureStore, Fingerprint
from fclearn.stores import open_store, push

faiss = pytest.importorskip("faiss")

ROWS, DIM = 300, 16
METRICS = ["map@20", "cmc@1"]
_rng = np.random.default_rng(3)
LABELS = _rng.integers(0, 12, ROWS)
CENTRES = _rng.standard_normal((12, DIM))
FEATURES = (CENTRES[LABELS] + 0.5 * _rng.standard_normal((ROWS, DIM))).astype("f4")
UNIT = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
ORDER = _rng.permutation(ROWS)
NUMBERS = np.arange(ROWS) * 7 + 1000
KEYS = [
    "Flat",
    "HNSW8",
    "NSG8",
    "HNSW8_SQ8",
    "SQfp16",
    "SQ8",
    "SQ4",
    "IVF4,Flat",
    "PQ4x4",
    "IVF4,PQ4x4",
    "RR16,IVF4,PQ8x4",
    "PCAR16,SQ8",
    "L2norm,Flat",
    "L2norm,SQfp16",
    "L2norm,SQ8",
    "LSH",
]


@pytest.fixture
def store(tmp_path):
    """Make a store of the rows in some order, with some ids; by default as in `FEATURES`."""

    def make(order=None, ids=None, **more):
        order = np.arange(ROWS) if order is None else order
        ids = [f"item {row}" for row in range(ROWS)] if ids is None else ids
        return FeatureStore.write(
            tmp_path / "gallery",
            FEATURES[order],
            {"id": [str(ids[row]) for row in order], "label": LABELS[order]},
            Fingerprint("old", DIM, norm="none", **more),
        )

    return make


def _index(key, ids=None, rows=UNIT, metric=faiss.METRIC_INNER_PRODUCT):
    metric = faiss.METRIC_L2 if key == "LSH" else metric
    index = faiss.index_factory(rows.shape[1], key, metric)
    index.train(rows)
    if ids is None:
        index.add(rows)
    else:
        index.add_with_ids(rows, ids)
    return index


def _same_as_exact(live, gallery):
    named = {"query_labels": LABELS[:60], "gallery_labels": gallery.labels, "metrics": METRICS}
    through = evaluate_retrieval(FEATURES[:60], live, **named)
    exact = evaluate_retrieval(FEATURES[:60], gallery, **named)
    assert dict(through) == pytest.approx(dict(exact), abs=1e-3)


@pytest.mark.parametrize("key", ["IDMap,Flat", "IDMap2,HNSW8", "IVF4,Flat", "IDMap,IVF4,Flat"])
@pytest.mark.parametrize("numbers", [NUMBERS, np.argsort(ORDER)], ids=["beyond", "permuted"])
def test_numbers_of_an_index_are_ids_of_the_gallery(store, key, numbers):
    gallery = store(ORDER, numbers)
    index = _index(key, numbers)
    search = {"efSearch": 300} if "HNSW" in key else {"nprobe": 4} if "IVF" in key else {}
    live = IndexedGallery(index, gallery=gallery, parameters=search)
    assert (live.maps_queries, live.note) == (False, "")
    _same_as_exact(live, gallery)


def test_numbers_that_are_no_ids_are_rows(store):
    gallery = store(ORDER)
    row_of = np.argsort(ORDER)
    _same_as_exact(IndexedGallery(_index("IDMap,Flat", row_of), gallery=gallery), gallery)
    # Ids that look like rows, of a store that was put into another order before it was indexed.
    shuffled = store(ORDER, np.arange(ROWS))
    _same_as_exact(IndexedGallery(_index("Flat", rows=UNIT[ORDER]), gallery=shuffled), shuffled)
    _same_as_exact(IndexedGallery(_index("Flat"), gallery=shuffled), shuffled)


def test_ids_beside_the_index(store):
    names = [f"item {row}" for row in range(ROWS)]
    gallery = store(ORDER)
    for index in (_index("Flat"), _index("IDMap,Flat", NUMBERS)):
        _same_as_exact(IndexedGallery(index, gallery=gallery, ids=names), gallery)
    numbers = np.argsort(ORDER)
    by_number = [names[row] for row in ORDER]
    _same_as_exact(
        IndexedGallery(_index("IVF4,Flat", numbers), gallery=gallery, ids=by_number,
                       parameters={"nprobe": 4}), gallery)  # fmt: skip
    with pytest.raises(ValueError, match="expected an id for each of 300 rows, got 299 ids"):
        IndexedGallery(_index("Flat"), gallery=gallery, ids=names[1:])
    with pytest.raises(ValueError, match="expected an id for each of 300 rows that have an order"):
        IndexedGallery(_index("IVF4,Flat", NUMBERS), gallery=gallery, ids=names)
    with pytest.raises(ValueError, match="got 1 others: 'who'"):
        IndexedGallery(_index("Flat"), gallery=gallery, ids=["who", *names[1:]])
    with pytest.raises(ValueError, match="expected each id once, got repeats: 'item 1'"):
        IndexedGallery(_index("Flat"), gallery=gallery, ids=[names[1], *names[1:]])
    with pytest.raises(ValueError, match=r"by their ids, found .* that are those of the store"):
        IndexedGallery(_index("Flat"), gallery=gallery, ids=names[::-1])


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_another_order_is_refused_and_the_own_is_not(store, key, metric):
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index = _index(key, rows=FEATURES if metric == "l2" else UNIT, metric=kind)
    live = IndexedGallery(index, gallery=store(metric=metric))
    assert (live.maps_queries, live.note) == (False, "")
    with pytest.raises(ValueError, match=r"index: expected the rows of .* in their order, found"):
        IndexedGallery(index, gallery=store(ORDER, metric=metric))


@pytest.mark.parametrize("key", KEYS)
def test_a_row_that_was_taken_out_is_noticed(store, key):
    order = [*range(150), *range(151, ROWS), 150]
    with pytest.raises(ValueError, match="in their order"):
        IndexedGallery(_index(key), gallery=store(np.array(order)))


@pytest.mark.parametrize("key", KEYS)
def test_a_shuffled_part_is_noticed(store, key):
    order = np.arange(ROWS)
    order[:120] = np.random.default_rng(0).permutation(120)
    with pytest.raises(ValueError, match="in their order"):
        IndexedGallery(_index(key), gallery=store(order))


@pytest.mark.parametrize("key", ["Flat", "HNSW8", "SQ8", "SQ4", "PQ4x4"])
def test_a_row_taken_out_of_a_gallery_sorted_by_class_is_noticed(store, key):
    # Each row from the middle on is another of its class: the others are far from both.
    by_class = np.argsort(LABELS, kind="stable")
    index = _index(key, rows=UNIT[by_class])
    assert IndexedGallery(index, gallery=store(by_class)).note == ""
    with pytest.raises(ValueError, match="in their order"):
        IndexedGallery(index, gallery=store(np.r_[by_class[:150], by_class[151:], by_class[150]]))


@pytest.mark.parametrize("key", ["PQ4x4", "PQ1x4", "IVF4,PQ4x4", "RQ4x4", "SQ4", "LSH"])
def test_codes_that_tell_classes_alone_are_in_their_order(tmp_path, key):
    # Two classes, each narrow: half of a class is nearer to a code than the row it is of.
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((2, DIM))[np.arange(ROWS) % 2]
    rows = (rows + 0.1 * rng.standard_normal(rows.shape)).astype("f4")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = _index(key, rows=rows)
    rounded = torch.from_numpy(rows).bfloat16().float().numpy()
    gallery = FeatureStore.write(
        tmp_path / "two",
        rounded,
        {"id": [f"item {row}" for row in range(ROWS)]},
        Fingerprint("old", DIM, norm="none"),
    )
    assert IndexedGallery(index, gallery=gallery).note == ""


@pytest.mark.parametrize("key", ["Flat", "SQ8", "PQ4x4"])
def test_rows_of_other_lengths_are_the_rows(store, key):
    assert IndexedGallery(_index(key, rows=3 * FEATURES), gallery=store()).note == ""


def test_an_index_that_is_no_codec_is_looked_at(store, monkeypatch):
    def refuse(*_):
        raise RuntimeError("not implemented")

    index = _index("PQ4x4")
    monkeypatch.setattr(faiss.IndexPQ, "sa_encode", refuse)
    assert IndexedGallery(index, gallery=store()).note == ""
    with pytest.raises(ValueError, match="in their order"):
        IndexedGallery(index, gallery=store(ORDER))


def test_some_rows_embedded_anew_are_still_the_rows(store):
    rows = UNIT.copy()
    rows[::4] += 0.05 * np.random.default_rng(0).standard_normal(rows[::4].shape)
    assert IndexedGallery(_index("Flat", rows=rows), gallery=store()).note == ""


@pytest.mark.parametrize("spread", [0.0, 5e-4])
def test_copies_in_a_gallery_are_no_other_order(tmp_path, spread):
    same = np.repeat(UNIT[:2], 50, axis=0)
    same += spread * np.random.default_rng(0).standard_normal(same.shape).astype("f4")
    gallery = FeatureStore.write(
        tmp_path / "same", same, {"id": [str(row) for row in range(100)]}, Fingerprint("old", DIM)
    )
    index = _index("SQbf16", rows=same)
    assert IndexedGallery(index, gallery=gallery).num_rows == 100


def test_numbers_that_are_neither_ids_nor_rows(store):
    index = _index("IDMap,Flat", np.argsort(ORDER))
    with pytest.raises(ValueError, match="in their order, found vectors"):
        IndexedGallery(index, gallery=store())
    with pytest.raises(ValueError, match="by their ids, found vectors"):
        IndexedGallery(_index("IDMap,Flat", NUMBERS), gallery=store(ids=NUMBERS[::-1]))


def test_what_gives_no_vectors_back_is_noted(store):
    shards = faiss.IndexShards(DIM)
    shards.add_shard(_index("Flat"))
    live = IndexedGallery(shards, gallery=store())
    assert (
        live.note
        == "index: IndexShards gives no vectors back, the order of its rows was not checked"
    )
    # It gives others than it holds.
    live = IndexedGallery(_index("IVF4,RaBitQfs"), gallery=store())
    assert live.note.startswith("index: IndexIVFRaBitQFastScan gives no vectors back")
    live = IndexedGallery(_index("PQ8x4fs_64"), gallery=store())
    assert live.note.startswith("index: IndexPQFastScan gives no vectors back")


@pytest.mark.parametrize("key", ["Flat", "HNSW8"])
def test_vectors_that_are_not_finite_are_named(store, key, tmp_path):
    rows = UNIT.copy()
    rows[0, 1] = np.nan
    path = tmp_path / "live.faiss"
    faiss.write_index(_index(key, rows=rows), str(path))
    with pytest.raises(ValueError, match=r"live\.faiss: expected finite vectors, .* in vector 0$"):
        IndexedGallery.open(path, gallery=store())


def test_what_faiss_does_not_search_is_refused(store):
    index = _index("Residual4,PQ8x4", metric=faiss.METRIC_L2)
    live = IndexedGallery(index, gallery=store())
    with pytest.raises(ValueError, match=r"be searched, got Index2Layer: .*not implemented"):
        evaluate_retrieval(
            UNIT[:5],
            live,
            query_labels=LABELS[:5],
            gallery_labels=LABELS,
            metrics=METRICS,
        )


def test_ids_that_do_not_match(store):
    index = _index("IDMap,Flat", NUMBERS)
    with pytest.raises(ValueError, match=r"as 'item 0', .* found '1000', .*--index-ids FILE"):
        IndexedGallery(index, gallery=store())
    again = np.r_[NUMBERS[:-1], NUMBERS[0]]
    with pytest.raises(ValueError, match="expected each id once, got repeats: 1000"):
        IndexedGallery(_index("IDMap,Flat", again), gallery=store(ids=NUMBERS))
    with pytest.raises(ValueError, match=r"expected the 300 x 16 rows of .*, found 300 x 8"):
        IndexedGallery(_index("Flat", rows=UNIT[:, :8].copy()), gallery=store())
    wide = np.tile(UNIT, 2)
    with pytest.raises(ValueError, match=r"expected the 300 x 16 rows of .*, found 300 x 32"):
        IndexedGallery(_index("PCAR8,Flat", rows=wide), gallery=store())
    with pytest.raises(ValueError, match="ids: expected a gallery"):
        IndexedGallery(index, ids=["a"])
    with pytest.raises(ValueError, match="rows_of_ids and gallery: expected one"):
        IndexedGallery(index, gallery=store(), rows_of_ids={1000: 0})


@pytest.mark.parametrize("dim", [24, DIM])
@pytest.mark.parametrize("key", ["Flat", "IDMap,Flat", "RR16,SQ8"])
def test_an_index_behind_an_adapter(store, dim, key, tmp_path):
    turn = np.random.default_rng(5).standard_normal((DIM, dim)).astype("f4")
    new = FEATURES @ turn
    adapter = Ridge().fit(source=new, target=FEATURES)
    gallery = store()
    index = _index(key, np.arange(ROWS) if "IDMap" in key else None)
    faiss.write_index(export.wrap_index(adapter, index), str(tmp_path / "for-new"))
    live = IndexedGallery.open(tmp_path / "for-new", gallery=gallery)
    assert (live.dim, live.maps_queries, live.note) == (dim, True, "")
    named = {"query_labels": LABELS[:60], "gallery_labels": LABELS, "metrics": METRICS}
    through = evaluate_retrieval(new[:60], live, **named)
    mapped = evaluate_retrieval(adapter.transform(new[:60]).numpy(), gallery, **named)
    assert dict(through) == pytest.approx(dict(mapped), abs=0.02)


@pytest.mark.filterwarnings("ignore:index. the rows of IndexPQ come back with lengths")
@pytest.mark.parametrize("key", ["Flat", "SQ8", "PQ4x4"])
def test_an_adapter_that_moves_little_maps_queries(store, key):
    turn, _ = np.linalg.qr(
        np.eye(DIM) + 0.02 * np.random.default_rng(5).standard_normal((DIM, DIM))
    )
    turn = (turn * np.sign(np.diag(turn))).astype("f4")
    adapter = Ridge().fit(source=FEATURES @ turn, target=FEATURES)
    live = IndexedGallery(export.wrap_index(adapter, _index(key)), gallery=store())
    assert (live.maps_queries, live.note) == (True, "")


@pytest.mark.parametrize("with_file", [False, True])
def test_what_push_writes(store, fcl, with_file, tmp_path):
    live, ids = tmp_path / "live.faiss", tmp_path / "live.txt"
    names = store(ids=None if with_file else NUMBERS).ids  # pushed in another order
    gallery = store(ORDER, None if with_file else NUMBERS)
    with open_store(f"faiss:{live}" + (f"?ids={ids}" if with_file else "")) as opened:
        push(gallery, opened, ids=names, journal=tmp_path / "journal")
    both = ["eval", "--query", gallery.path, "--gallery", gallery.path, "--exclude-self", "--json"]
    both += ["--metrics", "map@20,cmc@1", "--num-bootstrap", 10]
    index = ["--index", live, *(["--index-ids", ids] if with_file else [])]
    # Inner products of rows that are not unit length: by definition, with queries that are.
    scores = UNIT[ORDER] @ FEATURES[ORDER].T
    np.fill_diagonal(scores, -np.inf)
    first = LABELS[ORDER][scores.argmax(axis=1)] == LABELS[ORDER]
    code, result, error = fcl(*both, *index)
    assert (code, error.count("error")) == (0, 0)
    assert result["cmc@1"] == pytest.approx(first.mean(), abs=0.01)
    if with_file:
        code, _, error = fcl(*both, *index[:2])
        assert code == 2
        assert "in their order, found vectors that are nearer to other rows" in error
        assert "--index-ids FILE" in error
        code, _, error = fcl(*both, *index[2:])
        assert code == 2
        assert "--index-ids: expected --index" in error


def test_an_adapted_index_by_the_command(store, fcl, tmp_path):
    new = FEATURES @ np.random.default_rng(5).standard_normal((DIM, 24)).astype("f4")
    gallery = store()
    query = FeatureStore.write(
        tmp_path / "new", new[:60], {"id": gallery.ids[:60], "label": LABELS[:60]},
        Fingerprint("new", 24, norm="none"))  # fmt: skip
    adapter = Ridge().fit(source=new, target=FEATURES)
    faiss.write_index(export.wrap_index(adapter, _index("Flat")), str(tmp_path / "for-new"))
    rest = ["--index", tmp_path / "for-new", "--num-bootstrap", 10, "--json"]
    pair = ["eval", "--query", query.path, "--gallery", gallery.path, "--across"]
    code, result, _ = fcl(*pair, *rest, "--metrics", "cmc@1")
    assert code == 0
    assert result["cmc@1"] > 0.9
    for models in (
        ["--query", gallery.path, "--gallery", gallery.path],
        ["--old-query", gallery.path, "--new-query", gallery.path],
    ):
        code, _, error = fcl("eval", *models, *rest)
        assert code == 2
        assert "maps queries of another model into the space of" in error


@pytest.mark.parametrize("seed", range(5))
def test_a_transform_that_moves_nothing_is_no_adapter(fcl, seed, tmp_path):
    rows = np.random.default_rng(seed).standard_normal((1000, 32)).astype("f4")
    gallery = FeatureStore.write(
        tmp_path / "g",
        rows,
        {"id": [f"item {row}" for row in range(1000)], "label": np.arange(1000) % 10},
        Fingerprint("old", 32, norm="none"),
    )
    faiss.write_index(_index("L2norm,SQfp16", rows=rows), str(tmp_path / "live"))
    code, _, error = fcl(
        "eval", "--query", gallery.path, "--gallery", gallery.path, "--exclude-self",
        "--index", tmp_path / "live", "--metrics", "cmc@1", "--num-bootstrap", 10)  # fmt: skip
    assert (code, error.count("error")) == (0, 0)


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
def test_refining_lists_in_which_faiss_finds_no_row_are_refused(metric):
    index = _index("SQ8,Refine(IVF4,Flat)", metric=metric)
    with pytest.raises(ValueError, match="got IndexRefine by IndexIVFFlat, in which faiss finds"):
        IndexedGallery(index)


def test_refining_lists_with_a_table_of_rows_are_searched(store):
    index = faiss.index_factory(DIM, "SQ8,Refine(IVF4,Flat)")
    lists = faiss.downcast_index(faiss.downcast_index(index).refine_index)
    lists.make_direct_map()
    index.train(UNIT)
    index.add(UNIT)
    gallery = store(metric="l2")
    found = evaluate_retrieval(
        UNIT[:5],
        IndexedGallery(index, gallery=gallery),
        query_labels=LABELS[:5],
        gallery_labels=LABELS,
        metrics=["cmc@1"],
    )
    assert found["cmc@1"] == 1
