# SPDX-License-Identifier: Apache-2.0
"""What a faiss index is made of, and what it gives back."""

from __future__ import annotations

import numpy as np
import pytest

from fclearn._faiss_index import IndexParts

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
