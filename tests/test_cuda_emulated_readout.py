# SPDX-License-Identifier: Apache-2.0
"""softmax_readout's CUDA kernels on the host, by every path (see test_cuda_emulation.py)."""

from __future__ import annotations

import ctypes

import pytest
import test_softmax_readout
import torch

from support import DTYPES, error

# Every path with the dtypes it has kernels for.
CASES = [("simt", dtype) for dtype in DTYPES] + [("mma", dtype) for dtype in DTYPES[1:]]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{str(case[1])[6:]}")
def case(request, monkeypatch):
    path, _ = request.param
    monkeypatch.setenv("FCL_CUDA_PATH", path)
    return request.param


@pytest.fixture(autouse=True, params=["ascending", "descending"])
def operators(request, emulation, monkeypatch):
    """Threads run in ascending or descending order between barriers."""
    emulation.emulation_reverse(int(request.param == "descending"))
    operators = torch.ops.fcl_emulated
    monkeypatch.setattr(test_softmax_readout, "OP", operators.softmax_readout.default)
    return operators


# Shapes of the operator's own tests that have more in them than blocks to wait for, and others that
# reach several tiles, splits, flushes and panels of columns.
READOUTS = [
    *test_softmax_readout.SAMPLES[:3],
    (70, 17, 401, 300, 20.0),
    (257, 16, 40, 16, 10.0),
    (33, 96, 400, None, 30.0),
    (130, 136, 200, None, 12.0),
]
# More columns than a block sums: weights are stored.
WIDE = [(30, 270, 80, None, 9.0), (300, 260, 140, None, 9.0), (20, 16, 840, 260, 9.0)]
BACKWARDS = [*READOUTS, (0, 3, 4, 2, 1.0), *WIDE]


@pytest.mark.parametrize("sample", [*READOUTS, *WIDE], ids=str)
def test_readout(sample, case):
    test_softmax_readout.test_matches_definition(sample, case[1], "cpu")


@pytest.mark.parametrize("sample", READOUTS[2:], ids=str)
def test_readout_excludes_classes(sample, operators, case):
    x, w, v, scale = test_softmax_readout._inputs(sample, case[1], "cpu")
    exclude = torch.arange(len(x)) % (len(w) + 1) - 1
    got = operators.softmax_readout(x, w, v, exclude, scale, True)
    exact = [None if t is None else t.double() for t in (x, w, v)]
    expected = test_softmax_readout.reference.softmax_readout(*exact, scale=scale, exclude=exclude)
    for mine, truth in zip(got, expected, strict=True):
        assert error(mine, truth) < _tolerance(*case)


def test_readout_without_mean_and_of_one_class(operators, case):
    x, w, _, scale = test_softmax_readout._inputs(READOUTS[3], case[1], "cpu")
    lse, mean = operators.softmax_readout(x, w, None, None, scale, False)
    expected, _ = torch.ops.fcl.softmax_readout(x.double(), w.double(), None, None, scale, False)
    assert error(lse, expected) < 5e-6
    assert mean.shape == (0, 17)
    # The only class excluded: an empty set.
    lse, mean = operators.softmax_readout(x, w[:1], None, torch.arange(len(x)) % 2 - 1, scale, True)
    assert (lse[1::2] == -torch.inf).all()
    assert not mean[1::2].any()
    assert lse[::2].isfinite().all()


@pytest.mark.parametrize("through_mean", [False, True])
@pytest.mark.parametrize("sample", BACKWARDS, ids=str)
def test_readout_backward(sample, through_mean, operators, case):
    """Against the CPU operator in float64, which its own tests hold to the definition."""
    dtype = case[1]
    x, w, v, scale = test_softmax_readout._inputs(sample, dtype, "cpu")
    exclude = torch.arange(len(x)) % (len(w) + 1) - 1
    generator = torch.Generator().manual_seed(3)
    exact = [None if t is None else t.double() for t in (x, w, v)]
    lse, mean = torch.ops.fcl.softmax_readout(*exact, exclude, scale, True)
    coefficient = torch.randn(len(x), dtype=torch.float64, generator=generator)
    grad_mean = torch.randn(mean.shape, dtype=torch.float64, generator=generator)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32

    def backward(namespace, tensors, dtype):
        terms = [lse.to(dtype), coefficient.to(dtype)]
        terms.append(grad_mean.to(dtype) if through_mean else None)
        return namespace.softmax_readout_backward(
            *tensors, exclude, *terms, scale, True, True, True
        )

    ours = backward(operators, (x, w, v), accumulate)
    expected = backward(torch.ops.fcl, exact, torch.float64)
    for mine, truth in zip(ours, expected, strict=True):
        assert mine.shape == truth.shape
        assert mine.dtype == accumulate
        assert error(mine, truth) < _tolerance(*case)


def test_gradient_where_all_logits_are_far_below_zero(operators, case):
    """Classes past the last one, which tiles are filled up with, would have infinite weights."""
    x, w = torch.full((3, 1), -20.0, dtype=case[1]), torch.ones((5, 1), dtype=case[1])
    accumulate = torch.float64 if case[1] == torch.float64 else torch.float32
    lse = torch.full((3,), torch.tensor(5.0).log() - 200, dtype=accumulate)
    ones = torch.ones(3, dtype=accumulate)
    terms = (lse, ones, ones[:, None], 10.0, True, True, False)
    grad_x, grad_w, _ = operators.softmax_readout_backward(x, w, None, None, *terms)
    # dz = (1 + 1) / 5, and 1 / 5 more of the mean's gradient for each row.
    tolerance = 1e-4 + _tolerance(*case)
    torch.testing.assert_close(grad_x, torch.full_like(grad_x, 20), rtol=tolerance, atol=0)
    torch.testing.assert_close(
        grad_w, torch.full_like(grad_w, -3 * 80 + 3 / 5), rtol=tolerance, atol=0
    )


def test_large_and_non_finite_logits(operators, case):
    """A row with a bad number is bad alone, and infinite logits stay what they are."""
    path, dtype = case
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]], dtype=dtype)
    w = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=dtype)
    lse, mean = operators.softmax_readout(x, w, None, None, 50.0, True)
    torch.testing.assert_close(lse, torch.full((2,), 50000.0, dtype=accumulate))
    torch.testing.assert_close(mean, w[:2].to(accumulate), rtol=_tolerance(path, dtype), atol=0)
    x[0, 0] = torch.nan
    lse, mean = operators.softmax_readout(x, w, None, None, 50.0, True)
    assert lse[0].isnan()
    assert mean[0].isnan().all()
    torch.testing.assert_close(lse[1], torch.tensor(50000.0, dtype=accumulate))
    x[0, 0] = torch.inf
    for classes in (w, w[:2, :1], -w[:1, :1]):  # with inf * 0 = NaN among the logits, and without
        some = x[:, : classes.shape[1]]
        lse, mean = operators.softmax_readout(some, classes, None, None, 1.0, True)
        expected = torch.logsumexp(some.to(accumulate) @ classes.to(accumulate).T, 1)
        torch.testing.assert_close(lse, expected, equal_nan=True)
        assert mean[1].isfinite().all()


def test_unknown_path_is_an_error(operators, monkeypatch):
    monkeypatch.setenv("FCL_CUDA_PATH", "warp")
    eye = torch.eye(3)
    with pytest.raises(RuntimeError, match=r"expected FCL_CUDA_PATH to be one of .*simt, got warp"):
        operators.softmax_readout(eye, eye, None, None, 1.0, True)


class Problem(ctypes.Structure):
    """ReadoutProblem of csrc/ops/cuda/softmax_readout_kernels.h."""

    _fields_ = (
        ("dtype", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("embeddings", "prototypes", "values", "exclude")),
        *((name, ctypes.c_int64) for name in ("num_rows", "dim", "num_classes", "value_dim")),
        ("scale", ctypes.c_double),
        ("inverse_norms", ctypes.c_void_p),
    )


class Backward(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("logsumexp", "coefficient", "grad_mean"))


@pytest.mark.parametrize("value_dim", [None, 20])
def test_unit_prototypes(value_dim, emulation, case):
    """inverse_norms: prototypes that count at unit length, and their gradients."""
    path, dtype = case
    x, w, v, scale = test_softmax_readout._inputs((90, 33, 300, value_dim, 9.0), dtype, "cpu")
    w = (w * torch.linspace(0.5, 2, 300)[:, None]).to(dtype)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    norms = (1 / w.double().norm(dim=1)).to(accumulate)
    problem = Problem(
        [torch.float32, torch.float64, torch.bfloat16, torch.float16].index(dtype),
        *(t.data_ptr() for t in (x, w, w if v is None else v)),
        *(None, 90, 33, 300, value_dim or 33, scale, norms.data_ptr()),
    )
    lse, mean = torch.empty(90, dtype=accumulate), torch.empty(90, value_dim or 33).to(accumulate)
    emulation.emulation_readout(ctypes.byref(problem), *map(_pointer, (lse, mean)))

    leaves = [None if t is None else t.double().requires_grad_() for t in (x, w, v)]
    unit = torch.nn.functional.normalize(leaves[1], dim=1)
    exact = test_softmax_readout.reference.softmax_readout(leaves[0], unit, leaves[2], scale=scale)
    tolerance = _tolerance(path, dtype)
    for mine, expected in zip((lse, mean), exact, strict=True):
        assert error(mine, expected.detach()) < tolerance

    grad_lse = torch.linspace(-1, 1, 90, dtype=torch.float64)
    grad_mean = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5)).double()
    truth = torch.autograd.grad(
        ((grad_lse * exact[0]).sum() + (grad_mean * exact[1]).sum()),
        [t for t in leaves if t is not None],
    )
    coefficient = grad_lse - (grad_mean * exact[1].detach()).sum(1)
    terms = [t.detach().to(accumulate) for t in (exact[0], coefficient, grad_mean)]
    backward = Backward(*(t.data_ptr() for t in terms))
    grads = [torch.zeros(t.shape, dtype=accumulate) for t in truth]

    def launch(which, accumulates, out):
        emulation.emulation_readout_backward(
            ctypes.byref(problem), ctypes.byref(backward), which, accumulates, _pointer(out)
        )

    launch(0, False, grads[0])
    launch(1, False, grads[1])
    launch(2, v is None, grads[-1])
    emulation.emulation_readout_unscale(ctypes.byref(problem), _pointer(grads[1]))
    for mine, expected in zip(grads, truth, strict=True):
        assert error(mine, expected) < 3 * tolerance


def _pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def _tolerance(path, dtype):
    """Rounding of sums in the accumulation type; tensor cores take weights in the inputs' type."""
    if dtype == torch.float64:
        return 1e-13
    half = path != "simt" and dtype != torch.float32
    return torch.finfo(dtype).eps if half else 5e-6
