# SPDX-License-Identifier: Apache-2.0
"""csr_transpose against a stable sort by column."""

from __future__ import annotations

import pytest
import torch
from graph_samples import random_csr
from hypothesis import given
from hypothesis import strategies as st

import fcl_ext
import reference
from support import DEVICES

OP = torch.ops.fcl.csr_transpose.default

# (rows, columns, edges, share of padding)
SAMPLES = [
    (0, 0, 0, 0.0),
    (3, 0, 0, 0.0),
    (0, 4, 0, 0.0),
    (1, 1, 1, 0.0),
    (5, 5, 0, 0.0),
    (7, 3, 20, 0.3),
    (3, 9, 20, 1.0),
    (200, 300, 2000, 0.1),
]


def _by_definition(crow, col, num_columns):
    row = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
    bins = torch.where(col < 0, num_columns, col.long())
    order = torch.argsort(bins, stable=True)
    counts = torch.bincount(bins, minlength=num_columns + 1)[:num_columns]
    expected_crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    if num_columns > 0:
        expected_crow[-1] = len(col)
    expected_col = torch.where(col < 0, -1, row)[order].to(col.dtype)
    return expected_crow, expected_col, order


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_matches_definition(sample, index, device):
    rows, columns, edges, padding = sample
    crow, col = random_csr(rows, columns, edges, padding=padding, index=index, device=device)
    got = OP(crow, col, columns)
    for ours, expected in zip(got, _by_definition(crow, col, columns), strict=True):
        assert ours.dtype == expected.dtype
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_is_the_transpose_of_the_matrix(device):
    crow, col = random_csr(30, 20, 200, padding=0.2, device=device)
    values = torch.randn(200, dtype=torch.float64, device=device)
    crow_t, col_t, order = fcl_ext.csr_transpose(crow, col, 20)
    dense = reference.csr_to_dense(crow, col, values, 20)
    assert torch.equal(reference.csr_to_dense(crow_t, col_t, values[order], 30), dense.T)


@pytest.mark.parametrize("device", DEVICES)
def test_defaults_to_a_square_matrix_and_takes_strided_columns(device):
    crow, col = random_csr(10, 10, 40, device=device)
    wide = torch.stack([col, col], 1)[:, 0]
    assert not wide.is_contiguous()
    for a, b in zip(fcl_ext.csr_transpose(crow, wide), OP(crow, col, 10), strict=True):
        assert torch.equal(a, b)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 100), st.integers(0, 2**31))
def test_twice_is_the_matrix_with_sorted_rows(rows, columns, edges, seed):
    crow, col = random_csr(rows, columns, edges, seed=seed)
    crow_t, col_t, first = OP(crow, col, columns)
    crow_tt, col_tt, second = OP(crow_t, col_t, rows)
    assert torch.equal(crow_tt, crow)
    assert torch.equal(col_tt, col[first[second]])
    row = torch.repeat_interleave(torch.arange(rows), crow.diff())
    assert torch.equal(col_tt, col[torch.argsort(row * columns + col, stable=True)])


def test_does_not_depend_on_the_number_of_threads():
    crow, col = random_csr(5000, 3000, 300_000, padding=0.05, index=torch.int32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(OP(crow, col, 3000))
    torch.set_num_threads(before)
    for ours, expected in zip(results[0], _by_definition(crow, col, 3000), strict=True):
        assert torch.equal(ours, expected)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    crow, col = random_csr(6, 4, 15, padding=0.2, index=torch.int32, device=device)
    torch.library.opcheck(OP, (crow, col, 4))


BAD_CALLS = [
    (lambda crow, col: (crow.int(), col, 4), "expected crow_indices of dtype"),
    (lambda crow, col: (crow[None], col, 4), r"expected crow_indices of shape \[N \+ 1\]"),
    (lambda crow, col: (crow[:0], col, 4), r"expected crow_indices of shape \[N \+ 1\], got \[0\]"),
    (lambda crow, col: (crow, col.float(), 4), "expected col_indices of dtype int32 or int64"),
    (lambda crow, col: (crow, col[None], 4), r"expected col_indices of shape \[E\]"),
    (lambda crow, col: (crow, col, -1), "expected num_columns >= 0, got -1"),
]

BAD_ENTRIES = [
    (lambda crow, col: (crow, col[:-1], 4), "run from 0 to E = 9, got 0 to 10"),
    (lambda crow, col: (crow.flip(0), col, 4), "run from 0 to E = 10, got 10 to 0"),
    (
        lambda crow, col: (torch.tensor([0, 7, 5, 10]), col, 4),
        "never decrease, got 7 then 5 at row 1",
    ),
    (lambda crow, col: (crow, torch.full_like(col, 4), 4), r"in \[0, 4\) or -1 .* got 4 at edge 0"),
    (lambda crow, col: (crow, torch.full_like(col, -2), 4), "got -2 at edge 0"),
    (lambda crow, col: (crow, col, 0), "expected no edges in a matrix without columns, got 10"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS + BAD_ENTRIES)
def test_bad_arguments_are_named(arguments, message):
    crow, col = random_csr(3, 4, 10)
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments(crow, col))


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_fakes_refuse_what_kernels_refuse(arguments, message):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), pytest.raises(RuntimeError, match=message):
        OP(*arguments(torch.zeros(4, dtype=torch.int64), torch.zeros(10, dtype=torch.int64)))
