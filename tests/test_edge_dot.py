# SPDX-License-Identifier: Apache-2.0
"""edge_dot against gathered rows."""

from __future__ import annotations

import pytest
import torch
from graph_samples import random_csr

import fcl_ext  # noqa: F401  (loads the operators)
from support import DEVICES, DTYPES, error, error_budget, numbers_by_isa

OP = torch.ops.fcl.edge_dot.default

# (rows, columns, edges, dim, share of padding)
SAMPLES = [
    (0, 0, 0, 3, 0.0),
    (1, 1, 1, 1, 0.0),
    (4, 3, 0, 5, 0.0),
    (5, 7, 20, 0, 0.0),
    (30, 20, 100, 17, 0.2),
    (50, 50, 5000, 65, 0.0),
    (200, 300, 2000, 130, 1.0),
    (40, 60, 500, 257, 0.1),
]


def _inputs(sample, dtype, device, index=torch.int64):
    rows, columns, edges, dim, padding = sample
    crow, col = random_csr(rows, columns, edges, padding=padding, index=index, device=device)
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
    right = torch.randn(columns, dim, dtype=torch.float64, generator=generator)
    return crow, col, left.to(dtype).to(device), right.to(dtype).to(device)


def _by_definition(crow, col, left, right):
    row = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
    dots = (left[row] * right[col.long().clamp(min=0)]).sum(1)
    return dots.masked_fill(col < 0, 0.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_matches_definition(sample, index, dtype, device):
    crow, col, left, right = _inputs(sample, dtype, device, index)
    got = OP(crow, col, left, right)
    expected = _by_definition(crow, col, left.double(), right.double())
    naive = _by_definition(crow, col, left, right)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert error(got, expected) <= error_budget(naive, expected, dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_strided_inputs_and_non_finite_rows(device):
    crow, col, left, right = _inputs((30, 20, 100, 17, 0.2), torch.float32, device)
    expected = OP(crow, col, left, right)
    got = OP(crow, col, left.T.contiguous().T, torch.cat([right, right], 1)[:, :17])
    assert torch.equal(got, expected)
    right[3] = torch.inf
    got = OP(crow, col, left, right)
    assert not got[col == 3].isfinite().any()
    assert torch.equal(got[col != 3], expected[col != 3])


def test_does_not_depend_on_the_number_of_threads():
    inputs = _inputs((2000, 2000, 100_000, 33, 0.05), torch.float32, "cpu")
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(OP(*inputs))
    torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_and_no_gradient(requires_grad, device):
    crow, col, left, right = _inputs((5, 4, 12, 3, 0.1), torch.float32, device)
    left.requires_grad_(requires_grad)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OP, (crow, col, left, right), test_utils=tests)
    if requires_grad:
        with pytest.raises(RuntimeError, match="fcl::edge_dot: it has no gradient"):
            OP(crow, col, left, right).sum().backward()


BAD_CALLS = [
    (lambda c, e, x, y: (c, e, x[:-1], y), r"expected left of shape \[N, D\] = \[5, \*\], got"),
    (lambda c, e, x, y: (c, e, x, y[:, 1:]), r"expected right of shape \[M, D\] = \[\*, 3\], got"),
    (lambda c, e, x, y: (c, e, x, y.double()), "expected right of dtype"),
    (lambda c, e, x, y: (c, e, x.int(), y), "expected left of dtype float32"),
    (lambda c, e, x, y: (c.int(), e, x, y), "expected crow_indices of dtype"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments, message):
    inputs = _inputs((5, 4, 12, 3, 0.1), torch.float32, "cpu")
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments(*inputs))
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=message):
        OP(*arguments(*(mode.from_tensor(t) for t in inputs)))


def test_column_out_of_range_names_the_edge():
    crow, col, left, right = _inputs((5, 4, 12, 3, 0.0), torch.float32, "cpu")
    col[7] = 4
    with pytest.raises(RuntimeError, match=r"in \[0, 4\) or -1 \(padding\), got 4 at edge 7"):
        OP(crow, col, left, right)


_ISA_SCRIPT = """
import torch, fcl_ext
torch.manual_seed(0)
crow, col = torch.arange(0, 61, 3), torch.randint(-1, 20, (60,))
left, right = torch.randn(20, 37), torch.randn(20, 37)
dots = torch.ops.fcl.edge_dot(crow, col, left, right)
double = torch.ops.fcl.edge_dot(crow, col, left.double(), right.double())
assert torch.allclose(dots.double(), double, atol=1e-5)
print(fcl_ext._C.cpu_isa(), float(double.square().sum()))
"""


def test_every_isa_agrees():
    first, *others = numbers_by_isa(_ISA_SCRIPT)
    for other in others:
        assert other == pytest.approx(first, rel=1e-12)
