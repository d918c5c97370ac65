# SPDX-License-Identifier: Apache-2.0
"""softmax_readout without a set of classes per row, on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import reference
from support import DTYPES, error, error_budget

OP = torch.ops.fcl.softmax_readout.default
BACKWARD = torch.ops.fcl.softmax_readout_backward.default

# (rows, dim, classes, sets): within a block of classes, over several of them, and over splits.
SAMPLES = [(5, 7, 3, 2), (130, 65, 600, 20), (64, 33, 9001, 3), (257, 16, 40, 6)]
SCALE = 12.0


def _sample(sample, dtype=torch.float64):
    rows, dim, classes, sets = sample
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(rows, dim, dtype=torch.float64, generator=generator), dim=1)
    w = F.normalize(torch.randn(classes, dim, dtype=torch.float64, generator=generator), dim=1)
    member = torch.rand(sets, classes, generator=generator) < 0.4
    member[0] = True
    member[1] = False
    crow = F.pad(member.sum(1).cumsum(0), (1, 0))
    col = member.nonzero()[:, 1]
    labels = torch.arange(rows) % (sets + 1) - 1
    left_out = torch.where((labels >= 0)[:, None], member[labels.clamp(min=0)], False)
    return x.to(dtype), w.to(dtype), labels, crow, col, left_out


def _by_definition(x, w, left_out):
    logits = (SCALE * x @ w.T).masked_fill(left_out, -math.inf)
    lse = torch.logsumexp(logits, 1)
    shifted = logits - torch.where(torch.isneginf(lse), 0.0, lse)[:, None]
    return lse, shifted.exp() @ w


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_sets_leave_the_sum(sample, dtype):
    x, w, labels, crow, col, left_out = _sample(sample, dtype)
    lse, mean = OP(x, w, None, labels, SCALE, True, exclude_crow=crow, exclude_col=col)
    exact = _by_definition(x.double(), w.double(), left_out)
    naive = _by_definition(x, w, left_out)
    everything = left_out.all(1)
    assert everything.any()
    assert (lse[everything] == -math.inf).all()
    assert not mean[everything].any()
    for results in zip((lse, mean), exact, naive, strict=True):
        mine, truth, plain = (t[~everything] for t in results)
        assert error(mine, truth) <= error_budget(plain, truth, dtype)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_gradients_without_the_sets(sample):
    x, w, labels, crow, col, left_out = _sample(sample)

    def gradients(function):
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        lse, mean = function(*leaves)
        counts = ~left_out.all(1)
        weights = torch.linspace(-1, 1, len(x), dtype=torch.float64)
        total = (weights * lse)[counts].sum() + (weights[:, None] * mean)[counts].square().sum()
        return torch.autograd.grad(total, leaves)

    ours = gradients(
        lambda x, w: OP(x, w, None, labels, SCALE, True, exclude_crow=crow, exclude_col=col)
    )
    # Rows that have nothing left are not asked for: torch's own gradient of them is NaN.
    kept = ~left_out.all(1)
    expected = gradients(lambda x, w: _of_rows(x, w, left_out, kept))
    for mine, truth in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-12)


def _of_rows(x, w, left_out, kept):
    lse, mean = _by_definition(x[kept], w, left_out[kept])
    place = kept.nonzero()[:, 0]
    return (
        x.new_zeros(len(x)).index_copy(0, place, lse),
        x.new_zeros(len(x), w.shape[1]).index_copy(0, place, mean),
    )


def test_a_set_of_one_class_is_that_class():
    x, w, *_ = _sample((70, 9, 50, 2))
    labels = torch.arange(70) % 51 - 1
    crow, col = torch.arange(51), torch.arange(50)
    sets = OP(x, w, None, labels, SCALE, True, exclude_crow=crow, exclude_col=col)
    for mine, other in zip(sets, OP(x, w, None, labels, SCALE, True), strict=True):
        assert torch.equal(mine, other)
    expected = reference.softmax_readout(x, w, scale=SCALE, exclude=labels)
    torch.testing.assert_close(sets[0], expected[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("labels", "crow", "col", "message"),
    [
        ([0, 2], [0, 1, 2], [0, 1], "expected labels below 2 sets, got 2 in row 1"),
        ([0, 1], [0, 3, 2], [0, 1], "exclude_crow to rise from 0 to 2, got 0 and 3 at 0"),
        ([0, 1], [0, -1, 2], [0, 1], "exclude_crow to rise from 0 to 2, got 0 and -1 at 0"),
        ([0, 0], [0, 2, 2], [1, 0], "rise from 0 to 4, got 0 after 1 in set 0"),
        ([0, 0], [0, 2, 2], [1, 1], "rise from 0 to 4, got 1 after 1 in set 0"),
        ([0, 0], [0, 2, 2], [1, 5], "rise from 0 to 4, got 5 after 1 in set 0"),
        ([0, 0], [0, 2, 2], [-1, 5], "rise from 0 to 4, got -1 after -1 in set 0"),
    ],
)
def test_sets_that_do_not_fit_are_refused(labels, crow, col, message):
    sets = [torch.tensor(values) for values in (labels, crow, col)]
    x, w = torch.eye(2, 3), torch.ones(5, 3)
    options = {"exclude_crow": sets[1], "exclude_col": sets[2]}
    with pytest.raises(RuntimeError, match=f"fcl::softmax_readout: .*{message}"):
        OP(x, w, None, sets[0], 1.0, True, **options)
    ones = torch.ones(2)
    with pytest.raises(RuntimeError, match=f"fcl::softmax_readout_backward: .*{message}"):
        BACKWARD(x, w, None, sets[0], ones, ones, None, 1.0, True, True, False, **options)
