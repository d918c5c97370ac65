# SPDX-License-Identifier: Apache-2.0
"""Which indexes an adapter may be put before: rows of unit length, as far as their codes tell."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest

from fclearn.adapters import Ridge, export
from fclearn.features import Fingerprint
from fclearn.features.norms import is_unit, row_norms

faiss = pytest.importorskip("faiss")

ROWS = np.random.default_rng(0).standard_normal((60, 8)).astype("f4")
UNIT = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)


def _fitted():
    return Ridge().fit(source=ROWS[:, ::-1].copy(), target=ROWS)


def _index(key, rows):
    index = faiss.index_factory(8, key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    return index


def _of_lengths(lengths):
    return UNIT * np.broadcast_to(np.asarray(lengths, dtype="f4"), 60)[:, None]


LENGTHS = {
    # factory key, whether rows are unit, inner products, metric of the target: whether it is taken
    "unit-ip": ("Flat", True, True, "cosine", True),
    "unit-l2": ("Flat", True, False, "cosine", True),
    "unit-half": ("IDMap,SQfp16", True, False, "cosine", True),
    "unit-codes": ("RR8,IVF2,PQ4x3", True, True, "cosine", True),
    "normalising": ("L2norm,Flat", False, False, "cosine", True),
    "ip-meant": ("Flat", False, True, "ip", True),
    "other-ip": ("Flat", False, True, "cosine", False),
    "other-l2": ("IVF2,Flat", False, False, "cosine", False),
    "other-l2-codes": ("PQ4x3", False, False, "l2", False),
    "ip-not-meant": ("Flat", False, False, "ip", False),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_rows_that_are_not_unit_length_are_refused(case):
    key, unit, inner, metric, taken = LENGTHS[case]
    adapter = _fitted()
    adapter.target = Fingerprint("old", 8, norm="none", metric=metric)
    rows = UNIT if unit else 10 * ROWS
    index = faiss.index_factory(8, key, faiss.METRIC_INNER_PRODUCT if inner else faiss.METRIC_L2)
    index.train(rows)
    if "IDMap" in key:
        index.add_with_ids(rows, np.arange(60))
    else:
        index.add(rows)
    if taken:
        coarse = case == "unit-codes"
        told = pytest.warns(UserWarning, match="too coarse") if coarse else contextlib.nullcontext()
        with told:
            assert export.wrap_index(adapter, index).ntotal == 60
    else:
        with pytest.raises(
            ValueError, match=r"index: expected rows of unit length, .* got lengths"
        ):
            export.wrap_index(adapter, index)


PRECISE = ["SQ8", "IVF2,SQ8", "HNSW4,SQ8", "PQ4x3,Refine(SQ8)", "HNSW4,Flat", "SQfp16"]


@pytest.mark.parametrize("key", PRECISE)
def test_lengths_are_told_by_every_code_that_keeps_them(key):
    adapter = _fitted()
    # A row of zeros has no direction, and is what stores take for normalised.
    unit = _of_lengths(np.arange(60) % 3 > 0)
    assert export.wrap_index(adapter, _index(key, unit)).ntotal == 60
    spread = _index(key, _of_lengths(np.linspace(0.55, 1.2, 60)))
    with pytest.raises(
        ValueError, match=r"expected rows of unit length.* lengths 0\.5\d+ to 1\.\d+"
    ):
        export.wrap_index(adapter, spread)


def test_unit_length_is_what_it_is_in_stores():
    adapter = _fitted()
    near = _of_lengths(1.015)
    assert not is_unit(row_norms(near)).any()
    for key in ("Flat", "IVF2,SQfp16", "HNSW4,Flat"):
        with pytest.raises(ValueError, match=r"expected rows of unit length.* 1\.015 to 1\.015"):
            export.wrap_index(adapter, _index(key, near))


@pytest.mark.parametrize("key", ["PQ4x3", "SQ4", "wide"])
def test_codes_too_coarse_to_tell_are_noted_with_what_was_measured(key, tmp_path):
    adapter = _fitted()
    rows = _of_lengths(np.linspace(0.55, 1.2, 60))
    index = _index("SQ8" if key == "wide" else key, rows)
    if key == "wide":  # trained on such rows, 8 bits are coarse, too
        index = faiss.index_factory(8, "SQ8", faiss.METRIC_INNER_PRODUCT)
        index.train(30 * rows)
        index.add(rows)
    told = rf"rows of {type(index).__name__} come back with lengths 0\.[456]\d* to 1\.\d+: .*coarse"
    with pytest.warns(UserWarning, match=f"index: the {told}") as warned:
        export.wrap_index(adapter, index)
    assert warned[0].filename == __file__
    faiss.write_index(index, str(tmp_path / "old"))
    said = export.export_index(adapter, tmp_path / "old", tmp_path / "new")
    assert re.match(f"the {told}", said)


def test_unit_rows_that_come_back_longer_are_taken():
    """RaBitQ gives unit rows back at a length near sqrt(pi / 2), from some dims on."""
    rows = np.random.default_rng(0).standard_normal((300, 256)).astype("f4")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = faiss.index_factory(256, "RaBitQ", faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    adapter = Ridge().fit(source=rows, target=rows)
    with pytest.warns(UserWarning, match="too coarse to tell"):
        export.wrap_index(adapter, index)


def test_an_index_that_gives_no_vectors_back_is_noted(tmp_path):
    adapter, rows = _fitted(), UNIT
    for name, key, note in (
        ("lsh", "LSH", "IndexLSH have unit length was not checked"),
        ("codes", "PQ4x3", "IndexPQ come back with lengths "),
        ("whitened", "PCAW8,Flat", "IndexFlatL2 have unit length was not checked"),
        ("flat", "Flat", None),
    ):
        index = faiss.index_factory(8, key)
        index.train(rows)
        index.add(rows)
        faiss.write_index(index, str(tmp_path / name))
        said = export.export_index(adapter, tmp_path / name, tmp_path / f"{name}-out")
        assert said == "" if note is None else note in said
    with pytest.raises(ValueError, match="index: expected inner products or L2"):
        export.wrap_index(adapter, faiss.IndexFlat(8, faiss.METRIC_L1))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(wrong):
    adapter, rows = _fitted(), np.full_like(UNIT, wrong)
    with pytest.raises(ValueError, match=r"index: expected finite vectors, got .* in vector 0"):
        export.wrap_index(adapter, _index("Flat", rows))
    rows = UNIT.copy()
    rows[-1, 0] = wrong
    with pytest.raises(ValueError, match=r"index: expected finite vectors, got .* in vector 59"):
        export.wrap_index(adapter, _index("SQfp16", rows))
