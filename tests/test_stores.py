# SPDX-License-Identifier: Apache-2.0
"""Real stores: read, write beside, replace, resume, roll back; each as its own client sees it."""

from __future__ import annotations

import numpy as np
import pytest
from opened_stores import COUNT, opened_pull, opened_push, opened_rollback
from store_samples import overwritten

from fclearn.features import FeatureStore, Fingerprint
from fclearn.stores import open_store, push
from fclearn.stores.base import StoreConnectionError
from fclearn.stores.pull import _column, _Partial
from served import KINDS, ROWS, features, numbered, same, serve, vectors


@pytest.fixture(params=KINDS)
def served(request, tmp_path, postgres):
    return serve(request.param, tmp_path, postgres)


def test_pull_reads_every_row_once(served, tmp_path):
    old = vectors(COUNT)
    url = served.fill(old)
    payload = () if served.kind == "faiss" else ("label",)
    pulled = opened_pull(url, tmp_path / "out", payload=payload)
    order = [int(name) for name in pulled.ids]
    assert sorted(order) == list(range(COUNT))
    np.testing.assert_allclose(pulled.features, old[order], atol=2e-7)
    assert (pulled.fingerprint.model, pulled.fingerprint.norm) == ("old", "l2")
    if payload:
        assert pulled.labels.tolist() == order
    assert not (tmp_path / "out.pull").exists()


def test_info_says_what_is_there(served):
    with open_store(served.fill(vectors(5))) as store:
        info = store.info()
    assert (info.count, info.dim, info.dtype) == (5, 8, "float32")
    assert info.fingerprint is None
    assert not info.owned
    assert info.normalises == (served.kind == "qdrant")


def test_a_pull_that_stops_goes_on(served, tmp_path, monkeypatch):
    old = vectors(COUNT)
    url = served.fill(old)
    read = []
    add = _Partial.add

    def stopping(self, batch, *args, **options):
        if len(read) == 3:
            self._files[0].write(b"half a row")  # as a kill between rows and record leaves it
            raise KeyboardInterrupt
        read.append(batch.ids)
        add(self, batch, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_Partial, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            opened_pull(url, tmp_path / "out")
    first = [name for ids in read for name in ids]
    read.clear()
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(
            _Partial, "add", lambda self, b, *a, **k: (seen.extend(b.ids), add(self, b, *a, **k))
        )
        pulled = opened_pull(url, tmp_path / "out")
    assert not set(first) & set(seen)
    assert pulled.ids == first + seen
    np.testing.assert_allclose(pulled.features, old[[int(n) for n in pulled.ids]], atol=2e-7)


def test_push_makes_something_new_beside_the_old(served, tmp_path):
    old, new = vectors(COUNT), vectors(COUNT, 12, seed=1)
    served.fill(old)
    store = features(tmp_path / "new", new, label=list(range(COUNT)))
    before = served.dump()
    result = opened_push(served.url("v2"), store)
    assert (result.rows, result.inserted, result.replaced) == (COUNT, COUNT, 0)
    assert same(served.dump("v2"), numbered(new))
    again = served.dump()
    assert same(again, numbered(old))
    assert {n: p for n, (_, p) in again.items()} == {n: p for n, (_, p) in before.items()}
    # What it wrote says what made it, and comes back.
    model = "new" if served.kind == "faiss" else None
    pulled = opened_pull(served.url("v2"), tmp_path / "back", model=model)
    order = [int(name) for name in pulled.ids]
    np.testing.assert_allclose(pulled.features, new[order], atol=2e-7)
    if served.kind != "faiss":
        assert pulled.fingerprint == store.fingerprint
    # And is gone by one command, twice the same.
    undone = opened_rollback(result, served.url("v2"))
    assert undone.removed == COUNT
    assert served.dump("v2") is None
    assert same(served.dump(), numbered(old))
    assert opened_rollback(result, served.url("v2")).removed == 0


def test_push_twice_is_push_once(served, tmp_path):
    served.fill(vectors(COUNT))
    store = features(tmp_path / "new", vectors(COUNT, 12, seed=1))
    first = opened_push(served.url("v2"), store)
    second = opened_push(served.url("v2"), store)
    assert not first.already_done
    assert second.already_done
    assert second.journal == first.journal


def test_old_vectors_are_replaced_only_when_asked(served, tmp_path):
    old, new = vectors(COUNT), vectors(COUNT, seed=1)
    url = served.fill(old)
    store = features(tmp_path / "new", new)
    with pytest.raises(ValueError, match=r"replac"):
        opened_push(url, store)
    assert same(served.dump(), numbered(old))
    assert not list(tmp_path.glob("new.push-*"))
    chosen = ["20", "3", "7", "11", "0"]
    result = opened_push(url, store, replace=True, ids=chosen)
    assert (result.rows, result.inserted, result.replaced) == (5, 0, 5)
    expected = {**numbered(old), **{name: new[int(name)] for name in chosen}}
    assert same(served.dump(), expected)
    if served.kind != "faiss":
        assert served.dump()["3"][1] == {"label": 3}
    undone = opened_rollback(result, url)
    assert undone.restored == 5
    assert same(served.dump(), numbered(old))


def test_a_dry_run_writes_nothing(served, tmp_path):
    url = served.fill(vectors(COUNT))
    store = features(tmp_path / "new", vectors(COUNT, seed=1))
    before = served.dump()
    result = opened_push(url, store, replace=True, dry_run=True)
    assert (result.rows, result.replaced, result.dry_run) == (COUNT, COUNT, True)
    result = opened_push(served.url("v2"), store, dry_run=True)
    assert (result.inserted, result.dry_run) == (COUNT, True)
    assert same(served.dump(), {n: v for n, (v, _) in before.items()})
    assert served.dump("v2") is None
    assert sorted(path.name for path in tmp_path.glob("new*")) == ["new"]


def test_rollback_spares_what_others_wrote(served, tmp_path):
    old, new, other = vectors(COUNT), vectors(COUNT, seed=1), vectors(COUNT, seed=2)
    url = served.fill(old)
    first = opened_push(url, features(tmp_path / "new", new), replace=True)
    later = opened_push(url, features(tmp_path / "later", other, "later"), replace=True, ids=["4"])
    expected = {**numbered(new), "4": other[4]}
    with pytest.raises(ValueError, match=r"changed after the push"):
        opened_rollback(first, url)
    assert same(served.dump(), expected)
    dry = opened_rollback(first, url, force=True, dry_run=True)
    assert dry.restored == COUNT
    assert same(served.dump(), expected)
    opened_rollback(later, url)
    opened_rollback(first, url)
    assert same(served.dump(), numbered(old))


def test_rollback_can_be_forced(served, tmp_path):
    old = vectors(COUNT)
    url = served.fill(old)
    first = opened_push(url, features(tmp_path / "a", vectors(COUNT, seed=1)), replace=True)
    opened_push(url, features(tmp_path / "b", vectors(COUNT, seed=2)), replace=True, ids=["4"])
    opened_rollback(first, url, force=True)
    assert same(served.dump(), numbered(old))


@pytest.mark.parametrize("kind", ROWS)
def test_pushes_in_steps_fill_one_target(kind, tmp_path, postgres):
    served = serve(kind, tmp_path, postgres)
    served.fill(vectors(COUNT))
    new = vectors(COUNT, 12, seed=1)
    store = features(tmp_path / "new", new)
    ids = [str(number) for number in range(COUNT)]
    url = served.url("v2")
    one = opened_push(url, store, ids=ids[:10])
    with pytest.raises(ValueError, match=r"has vectors of 1 of 2 ids already: '9'"):
        opened_push(url, store, ids=["9", "10"])
    two = opened_push(url, store, ids=ids[10:])
    assert one.journal != two.journal
    assert same(served.dump("v2"), numbered(new))
    # The first push made it, but the rows of the second stay.
    opened_rollback(one, url)
    left = {name: row for name, (row, _) in served.dump("v2").items() if row is not None}
    assert sorted(left) == sorted(ids[10:])
    other = features(tmp_path / "other", vectors(COUNT, 12, seed=3), "another")
    with pytest.raises(ValueError, match="refusing to mix features: model 'another' and 'new'"):
        opened_push(url, other, ids=ids[:10])


@pytest.mark.parametrize("kind", ["qdrant", "milvus"])
def test_an_empty_collection_of_others_is_filled(kind, tmp_path):
    """Made with settings of their own, an index for example, and then filled in two steps."""
    served = serve(kind, tmp_path, None)
    url = served.fill(vectors(0))
    rows = vectors(COUNT)
    store = features(tmp_path / "new", rows)
    first = opened_push(url, store, ids=["1", "2"])
    second = opened_push(url, store, ids=["3"])
    assert same(served.dump(), {name: rows[int(name)] for name in ("1", "2", "3")})
    for result in (first, second):
        opened_rollback(result, url)
    assert served.dump() == {}
    opened_push(url, features(tmp_path / "other", rows, "other"), ids=["1"])
    with open_store(url) as opened:
        assert opened.info().fingerprint.model == "other"


@pytest.mark.parametrize("kind", ["parquet", *ROWS])
def test_a_mixed_store_says_so(kind, tmp_path, postgres):
    served = serve(kind, tmp_path, postgres)
    served.fill(vectors(COUNT))
    url = served.url("v2")
    opened_push(url, features(tmp_path / "a", vectors(COUNT, seed=1), "a"))
    result = opened_push(
        url, features(tmp_path / "b", vectors(COUNT, seed=2), "b"), ids=["3"], replace=True
    )
    with open_store(url) as store:
        assert store.info().fingerprint.model == "a + b"
    opened_rollback(result, url)
    with open_store(url) as store:
        assert store.info().fingerprint == Fingerprint("a", 8)


@pytest.mark.parametrize("kind", ROWS)
def test_a_connection_that_drops_is_taken_up_again(kind, tmp_path, postgres, monkeypatch):
    """Before and after each write by turns the connection fails; all rows arrive, once."""
    served = serve(kind, tmp_path, postgres)
    old, new = vectors(COUNT), vectors(COUNT, seed=1)
    url = served.fill(old)
    monkeypatch.setattr("fclearn.stores.opening._WAITS", (0.0, 0.0, 0.0))
    with open_store(url) as store:
        update, calls = store.update, []

        def failing(*arguments):
            calls.append(1)
            if len(calls) % 4 == 1:
                raise StoreConnectionError("gone before")
            update(*arguments)
            if len(calls) % 4 == 2:
                raise StoreConnectionError("gone after")

        monkeypatch.setattr(store, "update", failing)
        push(features(tmp_path / "new", new), store, replace=True, batch_size=4)
    assert len(calls) > 7
    assert same(served.dump(), numbered(new))


def test_an_empty_or_missing_store(served, tmp_path):
    with pytest.raises(ValueError, match=r"no such|nothing"):
        opened_pull(served.url("old"), tmp_path / "out")
    assert not any(tmp_path.iterdir())  # looking made nothing
    url = served.fill(vectors(0))
    with pytest.raises(ValueError, match="expected at least one vector, found none"):
        opened_pull(url, tmp_path / "out")
    with pytest.raises(ValueError, match="lacks 2 of 2 ids"):
        opened_push(url, features(tmp_path / "new", vectors(2)), replace=True)
    assert not (tmp_path / "out").exists()


def test_other_widths_are_named(served, tmp_path):
    url = served.fill(vectors(COUNT))
    store = features(tmp_path / "new", vectors(COUNT, 12, seed=1))
    with pytest.raises(ValueError, match="expected features of 8 numbers, as it holds, got 12"):
        opened_push(url, store, replace=True)


def test_unknown_ids_are_named(served, tmp_path):
    url = served.fill(vectors(COUNT))
    ids = [str(number) for number in range(3, COUNT + 3)]
    store = features(tmp_path / "new", vectors(COUNT, seed=1), ids=ids)
    with pytest.raises(ValueError, match=r"lacks 3 of 25 ids: '25', '26', '27'"):
        opened_push(url, store, replace=True)
    with pytest.raises(ValueError, match=r"no features for 1 of 2 ids: 'x'"):
        opened_push(url, store, replace=True, ids=["3", "x"])
    with pytest.raises(ValueError, match=r"each id once, got '3' again"):
        opened_push(url, store, replace=True, ids=["3", "4", "3"])
    with pytest.raises(ValueError, match="at least one row to push"):
        opened_push(url, store, replace=True, ids=[])


def test_rows_with_nan_are_named(served, tmp_path):
    url = served.fill(vectors(COUNT))
    rows = vectors(COUNT, seed=1)
    path = features(tmp_path / "new", rows).path
    rows[4, 2] = np.nan
    store = overwritten(path, rows)
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 rows: '4'"):
        opened_push(url, store, replace=True)
    result = opened_push(url, store, replace=True, ids=["3", "5"])
    assert result.rows == 2


@pytest.mark.parametrize("kind", ["faiss", "parquet", "milvus"])
def test_nan_in_a_store_is_named_or_left_out(kind, tmp_path):
    served = serve(kind, tmp_path, None)
    rows = vectors(COUNT)
    rows[7, 1], rows[9, 0] = np.nan, np.inf
    url = served.fill(rows)
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 rows: '7'"):
        opened_pull(url, tmp_path / "out", batch_size=8)
    pulled = opened_pull(url, tmp_path / "other", drop_invalid=True)
    assert sorted(map(int, pulled.ids)) == [n for n in range(COUNT) if n not in {7, 9}]


def test_a_pull_replaces_nothing(served, tmp_path):
    url = served.fill(vectors(COUNT))
    there = features(tmp_path / "out", vectors(3))
    with pytest.raises(ValueError, match="expected nothing there"):
        opened_pull(url, tmp_path / "out")
    assert FeatureStore.open(tmp_path / "out").ids == there.ids
    with pytest.raises(ValueError, match="give a model, --model NAME"):
        opened_pull(url, tmp_path / "new", model=None)
    with pytest.raises(ValueError, match="columns beside ids, which are read anyway, got 'id'"):
        opened_pull(url, tmp_path / "new", payload=["id"])
    assert not (tmp_path / "new").exists()


def test_cells_of_a_pulled_manifest():
    several = [["a", "b"], None, {"x": 1}]
    assert _column("tags", several) == {"tags": ['["a", "b"]', "", '{"x": 1}']}
    assert _column("hits", [3, None, 0.5, True]) == {"hits": ["3", "", "0.5", "True"]}
    labels = [*several, "a|b||", 7, ["x", None, ["y"], 8]]
    listed = [["a", "b"], [], ['{"x": 1}'], ["a", "b"], ["7"], ["x", '["y"]', "8"]]
    assert _column("labels", labels) == {"labels": listed}
    assert _column("label", [3, None, 0])["label"].tolist() == [3, -1, 0]
    assert _column("group", [7, None, -2, None])["group"].tolist() == [7, 8, -2, 9]
    assert _column("group", ["b", None, "a", "b"])["group"].tolist() == [1, 2, 0, 1]
    assert _column("group", [None, None])["group"].tolist() == [0, 1]
    named = _column("label", ["dog", None, "cat"])
    assert named["label"].tolist() == [1, -1, 0]
    assert named["class_name"] == ["dog", "", "cat"]


def test_numbers_beyond_64_bits_are_names():
    largest = (1 << 63) - 1
    assert _column("label", [largest, None, -largest - 1]).keys() == {"label"}
    named = _column("label", [largest + 1, None, 3])
    assert named["label"].tolist() == [1, -1, 0]
    assert named["class_name"] == [str(largest + 1), "", "3"]
    assert _column("group", [largest + 1, 7, largest + 1])["group"].tolist() == [1, 0, 1]
    # A row without a group gets a number of its own, for which there must be room.
    for full in (largest, largest - 1):
        groups = _column("group", [full, None, 5, None])["group"]
        assert len(set(groups.tolist())) == 4
    assert _column("group", [largest - 1, None])["group"].tolist() == [largest - 1, largest]
    assert _column("group", [largest, -5])["group"].tolist() == [largest, -5]


def test_a_half_written_feature_store_is_no_source(tmp_path):
    half = features(tmp_path / "whole", vectors(3)).path
    (half / "manifest.csv").unlink()
    with pytest.raises(ValueError, match=r"expected either manifest\.csv or manifest\.parquet"):
        FeatureStore.open(half)
