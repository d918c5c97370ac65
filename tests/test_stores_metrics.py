# SPDX-License-Identifier: Apache-2.0
"""How rows are compared, from a store that serves to an evaluation and back: one set of names."""

from __future__ import annotations

import json

import numpy as np
import pytest
from opened_stores import opened_pull, opened_push
from store_samples import overwritten

from fclearn.features import METRICS, FeatureStore, Fingerprint
from fclearn.stores import open_store
from fclearn.stores.tags import make_tag
from served import features, need, serve

COUNT, DIM = 40, 8
NATIVE = {
    "faiss": {"cosine": 0, "ip": 0, "l2": 1},  # an index of inner products, of L2
    "qdrant": {"cosine": "Cosine", "ip": "Dot", "l2": "Euclid"},
    "milvus": {"cosine": "COSINE", "ip": "IP", "l2": "L2"},
}


def rows_of_many_norms(seed):
    """Rows that cosine, inner product and distance rank in three ways."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((COUNT, DIM)) * rng.uniform(0.3, 3, (COUNT, 1))
    return rows.astype(np.float32)


def fill(kind, folder, name, rows, metric):
    """A store of another's making, by its own client."""
    if kind == "faiss":
        import faiss

        index = faiss.IndexFlat(DIM, NATIVE[kind][metric])
        index.add(rows)
        faiss.write_index(index, f"{folder}/{name}.index")
        return f"faiss:{folder}/{name}.index"
    from qdrant_client import models

    with serve(kind, folder, None)._qdrant() as client:
        distance = models.Distance(NATIVE[kind][metric])
        client.create_collection(name, models.VectorParams(size=DIM, distance=distance))
        points = [models.PointStruct(id=n, vector=row) for n, row in enumerate(rows.tolist())]
        client.upsert(name, points)
    return f"qdrant:{folder}/qdrant?collection={name}"


def native(kind, served, name):
    """How the store's own client says that it compares."""
    if kind == "faiss":
        import faiss

        return faiss.read_index(f"{served.folder}/{name}.index").metric_type
    if kind == "qdrant":
        with served._qdrant() as client:
            return client.get_collection(name).config.params.vectors.distance.value
    with served._milvus() as client:
        (index,) = client.list_indexes(name)
        return client.describe_index(name, index)["metric_type"]


def mean_precision(fcl, query, gallery):
    """What ``fcl eval`` finds where each query is judged right for the row of its own number."""
    judged = gallery.with_suffix(".qrels")
    judged.write_text("".join(f"{n} 0 {n} 1\n" for n in range(COUNT)))
    code, result, error = fcl(
        "eval", "--query", query, "--gallery", gallery,
        "--qrels", judged, "--metrics", "map", "--json",
    )  # fmt: skip
    assert code == 0, error
    return result["map"]


@pytest.mark.parametrize("kind", ["faiss", "qdrant"])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_what_was_pulled_is_evaluated_as_it_is_served(kind, metric, fcl, tmp_path):
    need(kind)
    query, gallery = rows_of_many_norms(0), rows_of_many_norms(1)
    for name, rows in (("query", query), ("gallery", gallery)):
        url = fill(kind, tmp_path, name, rows, metric)
        assert fcl("pull", url, "--model", "m", "--out", tmp_path / f"{name}-rows")[0] == 0
    wide, far = query.astype(np.float64), gallery.astype(np.float64)
    scores = {
        "ip": wide @ far.T,
        "l2": -((wide[:, None] - far) ** 2).sum(2),
        "cosine": (wide @ far.T) / np.linalg.norm(far, axis=1),
    }
    expected = {
        name: np.mean(1 / (1 + (found > np.diag(found)[:, None]).sum(1)))
        for name, found in scores.items()
    }
    assert len({round(value, 3) for value in expected.values()}) == 3
    found = mean_precision(fcl, tmp_path / "query-rows", tmp_path / "gallery-rows")
    assert found == pytest.approx(expected[metric], abs=1e-9)


def test_inner_products_of_unit_rows_are_cosines(fcl, tmp_path):
    rows = rows_of_many_norms(0)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    url = fill("faiss", tmp_path, "units", units, "ip")
    assert fcl("pull", url, "--model", "m", "--out", tmp_path / "gallery")[0] == 0
    features(tmp_path / "query", units, metric="cosine", model="m")
    assert mean_precision(fcl, tmp_path / "query", tmp_path / "gallery") == 1


@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("metric", METRICS)
def test_features_of_each_metric_are_pushed(kind, metric, tmp_path):
    served = serve(kind, tmp_path, None)
    rows = rows_of_many_norms(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    store = features(tmp_path / "new", rows, metric=metric)
    opened_push(served.url("new"), store)
    assert native(kind, served, "new") == NATIVE[kind][metric]
    with open_store(served.url("new")) as opened:
        # Of unit rows, a faiss file says inner product.
        assert opened.info().metric == ("ip" if (kind, metric) == ("faiss", "cosine") else metric)
    back = opened_pull(served.url("new"), tmp_path / "back", model=None if kind != "faiss" else "m")
    if kind != "faiss":  # which cannot say what made its vectors
        assert back.fingerprint == store.fingerprint


def test_other_similarities_are_refused_by_name(fcl, tmp_path):
    need("qdrant")
    need("faiss")
    import faiss
    from qdrant_client import models

    index = faiss.IndexFlat(DIM, faiss.METRIC_L1)
    index.add(rows_of_many_norms(0))
    faiss.write_index(index, f"{tmp_path}/a.index")
    with serve("qdrant", tmp_path, None)._qdrant() as client:
        distance = models.Distance.MANHATTAN
        client.create_collection("a", models.VectorParams(size=DIM, distance=distance))
    for url, message in (
        (
            f"faiss:{tmp_path}/a.index",
            "one of METRIC_INNER_PRODUCT, METRIC_L2, found METRIC_L1",
        ),
        (f"qdrant:{tmp_path}/qdrant?collection=a", "one of Cosine, Dot, Euclid, found Manhattan"),
    ):
        code, _, error = fcl("pull", url, "--model", "m", "--out", tmp_path / "out")
        assert (code, error) == (
            2,
            f"fcl: error: store {url}: expected vectors compared by {message}\n",
        )


def test_names_of_before_are_refused_where_they_are_read(tmp_path):
    message = "fingerprint metric: expected one of cosine, ip, l2, got 'euclidean'"
    folder = features(tmp_path / "old", rows_of_many_norms(0), metric="l2").path
    file = folder / "fingerprint.json"
    file.write_text(file.read_text().replace('"metric": "l2"', '"metric": "euclidean"'))
    with pytest.raises(ValueError, match=rf"old/fingerprint\.json: {message}"):
        FeatureStore.open(folder)

    need("parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    tag = json.loads(make_tag(Fingerprint("m", 2), owned=True))
    tag["fclearn"]["fingerprint"]["metric"] = "euclidean"
    table = pa.table({"id": ["a"], "embedding": [[1.0, 2.0]]})
    pq.write_table(
        table.replace_schema_metadata({"fclearn": json.dumps(tag)}), tmp_path / "a.parquet"
    )
    with (
        open_store(f"parquet:{tmp_path}/a.parquet") as store,
        pytest.raises(ValueError, match=rf"a\.parquet: what it says of its vectors: {message}"),
    ):
        store.info()


@pytest.mark.parametrize("kind", ["faiss", "qdrant"])
def test_a_store_that_compares_otherwise_is_noted(kind, tmp_path):
    need(kind)
    rows = rows_of_many_norms(0)
    fingerprint = Fingerprint("new", DIM, norm="none", metric="ip")
    columns = {"id": [str(number) for number in range(COUNT)]}
    store = FeatureStore.write(tmp_path / "new", rows, columns, fingerprint)

    def notes(metric, name):
        url = fill(kind, tmp_path, name, rows, metric)
        done = opened_push(url, store, dry_run=True, replace=True)
        return [note for note in done.notes if "compares" in note]

    assert notes("ip", "same") == []
    assert notes("l2", "other") == [
        "the store compares by distance, these features by inner product, and they are not unit "
        "length: it finds others"
    ]


def unit_store(folder, rows, **changes):
    """A store whose fingerprint says that rows have unit length, which they may not have."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    columns = {"id": [str(number) for number in range(COUNT)]}
    path = FeatureStore.write(folder, units, columns, Fingerprint("new", DIM, **changes)).path
    return overwritten(path, rows)


@pytest.mark.parametrize("makes", [False, True], ids=["replaced", "made"])
def test_lengths_are_measured_before_cosines_become_inner_products(makes, tmp_path):
    need("faiss")
    rows = rows_of_many_norms(0)
    store = unit_store(tmp_path / "new", rows)
    name = "made" if makes else "live"
    fill("faiss", tmp_path, "live", rows, "ip")
    before = (tmp_path / "live.index").read_bytes()
    message = (
        r"new: expected rows of unit length, as the fingerprint's norm 'l2' says and a store that "
        r"compares by inner product needs, got other lengths in 40 of 40 rows: '0', .*; write the "
        r"features again, normalised or with norm 'none'$"
    )
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=message):
            opened_push(f"faiss:{tmp_path}/{name}.index", store, replace=not makes, dry_run=dry_run)
    assert (tmp_path / "live.index").read_bytes() == before
    assert not (tmp_path / "made.index").exists()
    # Only the rows that would be pushed count.
    units = rows / np.linalg.norm(rows[:1])
    few = unit_store(tmp_path / "few", units)
    url = f"faiss:{tmp_path}/{name}.index"
    assert opened_push(url, few, replace=not makes, ids=["0"]).rows == 1


def test_wrong_lengths_are_noted_where_they_change_no_ranking(tmp_path):
    need("faiss")
    rows = rows_of_many_norms(0)
    url = fill("faiss", tmp_path, "live", rows, "l2")
    store = unit_store(tmp_path / "new", rows, metric="l2")
    notes = opened_push(url, store, dry_run=True, replace=True).notes
    assert "the fingerprint says norm 'l2', but 40 of 40 rows are not of unit length" in notes
    assert not any("compares" in note for note in notes)


@pytest.mark.parametrize("kind", ["faiss", "qdrant"])
def test_unit_rows_need_no_note_whatever_the_fingerprint_says(kind, tmp_path):
    need(kind)
    rows = rows_of_many_norms(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    url = fill(kind, tmp_path, "live", rows, "l2")
    columns = {"id": [str(number) for number in range(COUNT)]}
    fingerprint = Fingerprint("new", DIM, norm="none")
    store = FeatureStore.write(tmp_path / "new", rows, columns, fingerprint)

    def notes(*zeros):
        found = overwritten(store.path, np.where(np.isin(range(COUNT), zeros)[:, None], 0, rows))
        done = opened_push(url, found, dry_run=True, replace=True)
        return [note for note in done.notes if "compares" in note]

    assert notes() == []
    # A row of zeros is equally far from all unit rows, and its cosine is not.
    assert len(notes(3)) == 1
