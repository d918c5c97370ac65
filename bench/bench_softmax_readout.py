# SPDX-License-Identifier: Apache-2.0
"""Loss and gradient to the embeddings against frozen prototypes: ours and what torch offers.

Run: ``pytest bench/bench_softmax_readout.py --shapes full``. Peers are parameters of one test, each
asserted to compute the same loss; ``extra_info`` has useful GFLOP/s (4 N D C) beside the speed of a
matrix product measured at the same moment.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fcl_ext

# (rows, dim, classes)
SMOKE = [(64, 32, 1000)]
FULL = [(1024, 256, 100_000), (1024, 512, 50_000), (256, 128, 1_000_000), (4096, 256, 10_000)]
SCALE = 30.0


def _ours(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return fcl_ext.compat_loss(x, w, y, scale=SCALE, normalize=False)


def _naive(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(SCALE * F.linear(x, w), y)


def _chunked(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    return F.linear_cross_entropy(SCALE * x, w, y)


def _attention(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    # softmax(x W^T) W is attention with K = V = W. It hides the log-sum-exp, so this computes the
    # gradient only, to which the loss adds nothing measurable: a peer for time, checked on that.
    mean = F.scaled_dot_product_attention(x[None], w[None], w[None], scale=SCALE)[0]
    return (SCALE * x * (mean.detach() - w[y])).sum() / len(x)


@pytest.mark.parametrize("peer", [_ours, _naive, _chunked, _attention], ids=lambda f: f.__name__)
def test_loss_and_gradient(benchmark, shape, peer, matmul_gflops):
    rows, dim, classes = shape
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(rows, dim, generator=generator), dim=1).requires_grad_()
    w = F.normalize(torch.randn(classes, dim, generator=generator), dim=1)
    y = torch.randint(0, classes, (rows,), generator=generator)

    def step() -> tuple[Tensor, Tensor]:
        loss = peer(x, w, y)
        return loss, torch.autograd.grad(loss, x)[0]

    benchmark.group = f"compat_loss fwd+grad cpu {rows}x{dim}x{classes}"
    loss, grad = benchmark.pedantic(step, rounds=8, warmup_rounds=1)
    few = slice(0, 8)
    leaf = x.detach()[few].double().requires_grad_()
    losses = F.cross_entropy(SCALE * leaf @ w.double().T, y[few], reduction="none")
    (expected,) = torch.autograd.grad(losses.sum() / rows, leaf)
    assert torch.allclose(grad[few].double(), expected, rtol=1e-3, atol=1e-7)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["useful_gflops"] = 4 * rows * dim * classes / seconds / 1e9
    benchmark.extra_info["matmul_gflops"] = matmul_gflops
    if peer is not _attention:
        full = reference_loss(x.detach(), w, y)
        assert abs(float(loss.detach()) - full) < 1e-3 * abs(full)


def reference_loss(x: Tensor, w: Tensor, y: Tensor) -> float:
    """The loss in blocks of rows, so that the check fits in memory at every shape."""
    total = 0.0
    for begin in range(0, len(x), 64):
        rows = slice(begin, begin + 64)
        total += float(F.cross_entropy(SCALE * x[rows] @ w.T, y[rows], reduction="sum"))
    return total / len(x)
