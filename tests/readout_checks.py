# SPDX-License-Identifier: Apache-2.0
"""Checks of softmax_readout's CUDA kernels, path by path: on the host by emulation, on a GPU.

``ops`` is where the operators are (``torch.ops.fcl`` or the emulated ones), ``device`` where their
tensors live; truth is computed on the CPU in float64.
"""

from __future__ import annotations

import test_softmax_readout
import torch

import reference
from support import DTYPES, error, error_budget

# Every path with the dtypes it has kernels for; others take another path's.
CASES = [
    *(("simt", dtype) for dtype in DTYPES),
    *(("mma", dtype) for dtype in DTYPES[1:]),
    *(("sm90", dtype) for dtype in DTYPES[2:]),
]


def case_name(case):
    return f"{case[0]}-{str(case[1])[6:]}"


def accumulated(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def tolerance(path, dtype):
    """Rounding of sums in the accumulation type; tensor cores take weights in the inputs' type."""
    if dtype == torch.float64:
        return 1e-13
    half = path != "simt" and dtype != torch.float32
    return torch.finfo(dtype).eps if half else 5e-6


def _inputs(sample, dtype, device):
    """Tensors for the operator, and the same in float64 on the CPU."""
    *tensors, scale = test_softmax_readout._inputs(sample, dtype, "cpu")
    exact = [None if t is None else t.double() for t in tensors]
    return [None if t is None else t.to(device) for t in tensors], exact, scale


def _assert_close(got, exact, bound):
    got = got.cpu()
    assert got.shape == exact.shape
    assert error(got, exact.detach()) < bound


def check_definition(ops, sample, case, device="cpu"):
    """No worse than plain torch in the same dtype."""
    tensors, exact, scale = _inputs(sample, case[1], device)
    got = ops.softmax_readout(*tensors, None, scale, True)
    expected = reference.softmax_readout(*exact, scale=scale)
    naive = reference.softmax_readout(
        *(None if t is None else t.cpu() for t in tensors), scale=scale
    )
    for mine, truth, plain in zip(got, expected, naive, strict=True):
        assert mine.dtype == accumulated(case[1])
        assert error(mine.cpu(), truth) <= error_budget(plain, truth, case[1])


def check_excluded_classes(ops, sample, case, device="cpu"):
    tensors, exact, scale = _inputs(sample, case[1], device)
    exclude = torch.arange(len(exact[0])) % (len(exact[1]) + 1) - 1
    got = ops.softmax_readout(*tensors, exclude.to(device), scale, True)
    expected = reference.softmax_readout(*exact, scale=scale, exclude=exclude)
    for mine, truth in zip(got, expected, strict=True):
        _assert_close(mine, truth, tolerance(*case))


def check_without_mean_and_of_one_class(ops, case, device="cpu"):
    tensors, exact, scale = _inputs((70, 17, 401, None, 20.0), case[1], device)
    lse, mean = ops.softmax_readout(*tensors, None, scale, False)
    expected, _ = reference.softmax_readout(*exact, scale=scale)
    _assert_close(lse, expected, tolerance("simt", case[1]))
    assert mean.shape == (0, 17)
    # The only class excluded: an empty set.
    x, w, _ = tensors
    exclude = torch.arange(70, device=device) % 2 - 1
    lse, mean = ops.softmax_readout(x, w[:1], None, exclude, scale, True)
    assert (lse[1::2] == -torch.inf).all()
    assert not mean[1::2].any()
    assert lse[::2].isfinite().all()


def check_backward(ops, sample, case, through_mean, device="cpu"):
    """Against the CPU operator in float64, which its own tests hold to the definition."""
    tensors, exact, scale = _inputs(sample, case[1], device)
    exclude = torch.arange(len(exact[0])) % (len(exact[1]) + 1) - 1
    generator = torch.Generator().manual_seed(3)
    lse, mean = torch.ops.fcl.softmax_readout(*exact, exclude, scale, True)
    coefficient = torch.randn(len(lse), dtype=torch.float64, generator=generator)
    grad_mean = torch.randn(mean.shape, dtype=torch.float64, generator=generator)
    terms = [lse, coefficient, grad_mean if through_mean else None]

    def backward(ops, tensors, exclude, terms):
        return ops.softmax_readout_backward(*tensors, exclude, *terms, scale, True, True, True)

    dtype = accumulated(case[1])
    on_device = [None if t is None else t.to(dtype).to(device) for t in terms]
    got = backward(ops, tensors, exclude.to(device), on_device)
    expected = backward(torch.ops.fcl, exact, exclude, terms)
    for mine, truth in zip(got, expected, strict=True):
        assert mine.dtype == dtype
        _assert_close(mine, truth, tolerance(*case))


def check_unit_prototypes(ops, value_dim, case, device="cpu", dim=33):
    """normalize: prototypes that count at unit length, one of them zero, and their gradients."""
    (x, w, v), _, scale = _inputs((90, dim, 300, value_dim, 9.0), case[1], "cpu")
    w = (w * torch.linspace(0.5, 2, 300)[:, None]).to(case[1])
    w[7] = 0
    tensors = [None if t is None else t.to(device) for t in (x, w, v)]
    leaves = [None if t is None else t.double().clone().requires_grad_() for t in (x, w, v)]
    unit = torch.nn.functional.normalize(leaves[1], dim=1)
    exact = reference.softmax_readout(leaves[0], unit, leaves[2], scale=scale)
    got = ops.softmax_readout(*tensors, None, scale, True, True)
    for mine, truth in zip(got, exact, strict=True):
        _assert_close(mine, truth, tolerance(*case))

    grad_lse = torch.linspace(-1, 1, 90, dtype=torch.float64)
    grad_mean = torch.randn(exact[1].shape, generator=torch.Generator().manual_seed(5)).double()
    total = (grad_lse * exact[0]).sum() + (grad_mean * exact[1]).sum()
    truth = torch.autograd.grad(total, [t for t in leaves if t is not None])
    coefficient = grad_lse - (grad_mean * exact[1].detach()).sum(1)
    terms = [t.detach().to(accumulated(case[1])).to(device) for t in (exact[0], coefficient)]
    terms.append(grad_mean.to(terms[0]))
    grads = ops.softmax_readout_backward(*tensors, None, *terms, scale, True, True, True, True)
    for mine, expected in zip(grads, truth, strict=False):  # no values: their gradient is empty
        # The zero row's gradient is 1e12 times the others'.
        keep = torch.arange(len(expected)) != (7 if len(expected) == 300 else -1)
        _assert_close(mine.cpu()[keep], expected[keep], 3 * tolerance(*case))


def check_far_negative_logits(ops, case, device="cpu"):
    """Classes past the last one, which tiles are filled up with, would have infinite weights."""
    dtype = accumulated(case[1])
    x = torch.full((3, 1), -20.0, dtype=case[1], device=device)
    w = torch.ones((5, 1), dtype=case[1], device=device)
    ones = torch.ones(3, dtype=dtype, device=device)
    terms = (ones * (torch.tensor(5.0).log().item() - 200), ones, ones[:, None])
    grad_x, grad_w, _ = ops.softmax_readout_backward(
        x, w, None, None, *terms, 10.0, True, True, False
    )
    # dz = (1 + 1) / 5, and 1 / 5 more of the mean's gradient for each row.
    bound = 1e-4 + tolerance(*case)
    torch.testing.assert_close(grad_x, torch.full_like(grad_x, 20), rtol=bound, atol=0)
    torch.testing.assert_close(grad_w, torch.full_like(grad_w, -3 * 80 + 3 / 5), rtol=bound, atol=0)


def check_large_and_non_finite_logits(ops, case, device="cpu"):
    """A row with a bad number is bad alone, and infinite logits stay what they are."""
    path, dtype = case
    x = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]], dtype=dtype, device=device)
    w = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=dtype, device=device)
    lse, mean = ops.softmax_readout(x, w, None, None, 50.0, True)
    large = torch.full_like(lse, 50000)
    torch.testing.assert_close(lse, large)
    torch.testing.assert_close(mean, w[:2].to(mean), rtol=tolerance(path, dtype), atol=0)
    x[0, 0] = torch.nan
    lse, mean = ops.softmax_readout(x, w, None, None, 50.0, True)
    assert lse[0].isnan()
    assert mean[0].isnan().all()
    torch.testing.assert_close(lse[1], large[1])
    x[0, 0] = torch.inf
    for classes in (w, w[:2, :1], -w[:1, :1]):  # with inf * 0 = NaN among the logits, and without
        some = x[:, : classes.shape[1]]
        lse, mean = ops.softmax_readout(some, classes, None, None, 1.0, True)
        expected = torch.logsumexp(some.to(lse.dtype) @ classes.to(lse.dtype).T, 1)
        torch.testing.assert_close(lse, expected, equal_nan=True)
        assert mean[1].isfinite().all()


def check_unaligned_rows(ops, case, device="cpu"):
    """Rows that 16-byte copies could take, but not from where they are."""
    (x, w, _), _, scale = _inputs((70, 72, 300, None, 9.0), case[1], device)

    def moved(tensor):
        buffer = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device=device)
        return buffer[1:].view_as(tensor).copy_(tensor)

    def run(x, w):
        lse, mean = ops.softmax_readout(x, w, None, None, scale, True)
        grads = ops.softmax_readout_backward(
            x, w, None, None, lse, lse, mean, scale, True, True, False
        )
        return lse, mean, *grads[:2]

    for mine, other in zip(run(moved(x), moved(w)), run(x, w), strict=True):
        if case[0] == "sm90":  # another path's kernels take such rows
            assert error(mine, other) < tolerance(*case)
        else:
            assert torch.equal(mine, other)
