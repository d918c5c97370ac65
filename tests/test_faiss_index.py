# SPDX-License-Identifier: Apache-2.0
"""What a faiss index is made of, and what it gives back."""

from __future__ import annotations

import numpy as np
import pytest

from fclearn._faiss_index import IndexParts
from support import run_apart

faiss = pytest.importorskip("faiss")
ROWS = np.random.default_rng(0).standard_normal((200, 16)).astype("f4")


def _index(key):
    index = faiss.index_factory(16, key)
    index.train(ROWS)
    index.add(ROWS)
    return index


@pytest.mark.parametrize(
    ("key", "codec", "is_whole"),
    [
        ("Flat", "IndexFlat", True),
        ("IVF4,Flat", "IndexIVFFlat", True),
        ("HNSW8", "IndexFlatL2", True),
        ("NSG8", "IndexFlat", True),
        ("HNSW8_SQfp16", "IndexScalarQuantizer", True),
        ("HNSW8_SQ8", "IndexScalarQuantizer", False),
        ("L2norm,SQ8", "IndexScalarQuantizer", False),
        ("PQ4x4", "IndexPQ", False),
        ("PQ4x4,RFlat", "IndexFlat", True),
        # Codes of two bytes a number, of which one comes back.
        ("SQ8,Refine(SQ8)", "IndexScalarQuantizer", False),
    ],
)
def test_what_keeps_the_vectors(key, codec, is_whole):
    index = _index(key)
    parts = IndexParts.of(index)
    assert (type(parts.codec).__name__, parts.is_whole) == (codec, is_whole)


@pytest.mark.parametrize(
    "key",
    [
        "Flat",
        "HNSW8",
        "NSG8",
        "HNSW8_SQ8",
        "SQ4",
        "PQ4x4",
        "IVF4,PQ4x4",
        "LSH",
        "RQ2x4",
        "SQ4,RFlat",
    ],
)
def test_rows_are_coded_as_they_were_when_added(key):
    index = _index(key)
    parts = IndexParts.of(index)
    numbers, vectors = parts.sample(50)
    assert len(numbers) == 50
    np.testing.assert_allclose(parts.coded(ROWS[numbers]), vectors, atol=1e-5)


def test_ids_around_ids():
    inner = faiss.IndexIDMap(faiss.IndexFlatL2(16))
    outer = faiss.IndexIDMap(inner)
    inner.add_with_ids(ROWS[:3], np.array([2, 0, 1]))
    faiss.copy_array_to_vector(np.array([70, 80, 90]), outer.id_map)
    assert IndexParts.of(outer).id_map.tolist() == [90, 70, 80]
    faiss.copy_array_to_vector(np.array([70, 80]), outer.id_map)
    with pytest.raises(ValueError, match="expected numbers below 2 within its ids, got 0 to 2"):
        IndexParts.of(outer)


READ = """
import sys
import faiss, numpy as np
from fclearn._faiss_index import IndexParts

path, key = sys.argv[1:]
rows = np.random.default_rng(0).standard_normal((200, 16)).astype("f4")
index = faiss.index_factory(16, key)
index.train(rows)
index.add(rows)
faiss.write_index(index, path)
numbers, vectors = IndexParts.of(index).sample(50)
for flags in (0, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY):
    read = faiss.read_index(path, flags)
    parts = IndexParts.of(read)
    again, same = parts.sample(50)
    assert numbers.tolist() == again.tolist()
    np.testing.assert_array_equal(same, vectors)
    np.testing.assert_allclose(parts.coded(rows[numbers]), vectors, atol=1e-5)
"""


@pytest.mark.parametrize("key", ["IVF4,PQ8x4fs", "IVF4,PQ8x4fsr", "IVF4,RQ4x4fs_Nrq2x4"])
def test_a_file_holds_the_rows_of_a_fast_scan(key, tmp_path):
    """In a process of its own, which faiss would end by a signal."""
    done = run_apart(READ, tmp_path / "g.index", key)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("key", ["PQ8x4fs_64", "IVF4,PQ8x4fs_64", "SQ8,Refine(PQ8x4fs_64)"])
def test_blocks_that_faiss_reads_in_another_order_give_nothing_back(key):
    index = _index(key)
    assert IndexParts.of(index).sample(50) is None


def test_vectors_that_are_not_finite():
    index = faiss.IndexIDMap(faiss.IndexFlatL2(16))
    rows = ROWS.copy()
    rows[30, 2] = np.nan
    rows[40] = np.inf
    index.add_with_ids(rows, np.arange(200) + 1000)
    with pytest.raises(ValueError, match=r"^live: .* finite vectors, got .* in vector 1030$"):
        IndexParts.of(index, "live").sample(200)


def test_ids_around_inverted_lists_of_which_some_were_removed():
    index = faiss.index_factory(16, "IDMap,IVF4,Flat")
    index.train(ROWS)
    index.add_with_ids(ROWS, np.arange(200))
    index.remove_ids(np.arange(50))
    with pytest.raises(ValueError, match=r"numbers below 150 within its ids, got \d+ to 1\d\d"):
        IndexParts.of(index).sample(150)
    inner = faiss.index_factory(16, "IVF4,Flat")
    inner.train(ROWS)
    outer = faiss.IndexIDMap(inner)
    inner.add_with_ids(ROWS[:2], np.array([-1, 0]))
    faiss.copy_array_to_vector(np.array([70, 80]), outer.id_map)
    with pytest.raises(ValueError, match="numbers below 2 within its ids, got -1 to 0"):
        IndexParts.of(outer).sample(2)
