# SPDX-License-Identifier: Apache-2.0
"""compat_loss, loss and gradient: ours and what torch offers, interleaved.

Run: ``pytest bench/bench_softmax_readout.py --shapes full``. Peers are parameters of one test, each
asserted to compute the same; ``extra_info`` has the ratio of its time to ours in the same round,
the fraction of the vector units' peak at that moment (useful operations only: 4 N D C, or 6 N D C
with a gradient to the prototypes), and the extra memory.
"""

from __future__ import annotations

import functools
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fcl_ext
from interleave import run_interleaved

# (rows, dim, classes)
SMOKE = [(64, 32, 1000)]
FULL = [
    (1024, 256, 100_000),
    (1024, 512, 50_000),
    (256, 128, 1_000_000),
    (64, 512, 1_000_000),
    (4096, 256, 10_000),
]
# A first try on a small problem: what counts is the overhead of a call.
SMALL = [(64, 64, 100), (64, 256, 100), (64, 128, 300), (64, 64, 1000), (64, 256, 1000)]
SCALE = 30.0


def ours(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """The fused operator."""
    return fcl_ext.compat_loss(x, w, y, scale=SCALE, normalize=False)


def naive(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """What everyone writes."""
    return F.cross_entropy(SCALE * F.linear(x, w), y)


def chunked(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Torch >= 2.13's chunked loss, at the best of its batch chunk sizes (see tuned_chunk)."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=tuned_chunk(x, w, y))
    return F.linear_cross_entropy(SCALE * x, w, y, options=options)


def attention(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """softmax(x W^T) W is attention with K = V = W: the gradient's half of the loss.

    It hides the log-sum-exp, so only its gradient is right; the loss would add nothing measurable.
    """
    # Four dims: with three, torch takes its unfused path, which is half as fast.
    mean = F.scaled_dot_product_attention(x[None, None], w[None, None], w[None, None], scale=SCALE)[
        0, 0
    ]
    return (SCALE * x * (mean.detach() - w[y])).sum() / len(x)


_chunks: dict[tuple[object, ...], int] = {}


def tuned_chunk(x: Tensor, w: Tensor, y: Tensor) -> int:
    """The fastest of several chunk sizes on these very tensors, found once."""
    key = (*x.shape, len(w), x.dtype, w.requires_grad)
    if key not in _chunks:
        seconds = {}
        for chunk in (64, 128, 256, 512, 1024):
            if chunk > len(x):
                continue
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
            wanted = [t for t in (x, w) if t.requires_grad]
            start = time.perf_counter()
            torch.autograd.grad(F.linear_cross_entropy(SCALE * x, w, y, options=options), wanted)
            seconds[chunk] = time.perf_counter() - start
        _chunks[key] = min(seconds, key=lambda chunk: seconds[chunk])
    return _chunks[key]


def _data(shape, dtype, trainable) -> tuple[Tensor, Tensor, Tensor]:
    rows, dim, classes = shape
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(rows, dim, generator=generator), dim=1).to(dtype)
    w = F.normalize(torch.randn(classes, dim, generator=generator), dim=1).to(dtype)
    y = torch.randint(0, classes, (rows,), generator=generator)
    return x.requires_grad_(), w.requires_grad_(trainable), y


def _step(peer, x: Tensor, w: Tensor, y: Tensor):
    wanted = [t for t in (x, w) if t.requires_grad]

    def step() -> tuple[Tensor, ...]:
        loss = peer(x, w, y)
        return loss.detach(), *torch.autograd.grad(loss, wanted)

    return step


def _assert_right(peer, step, x: Tensor, w: Tensor, y: Tensor) -> None:
    """The first rows' gradient, and the loss, against float64."""
    loss, grad, *_ = step()
    few = slice(0, 8)
    leaf = x.detach()[few].double().requires_grad_()
    parts = [SCALE * leaf @ part.double().T for part in w.detach().split(100_000)]
    losses = torch.logsumexp(torch.cat(parts, 1), 1) - SCALE * (leaf * w.detach()[y[few]]).sum(1)
    (expected,) = torch.autograd.grad(losses.sum() / len(x), leaf)
    tolerance = 1e-4 if x.dtype == torch.float32 else 0.05
    assert (grad[few].double() - expected).norm() < tolerance * expected.norm()
    if peer is not attention:
        assert abs(float(loss) - _loss_of(x.detach(), w.detach(), y)) < tolerance * float(loss)


def _loss_of(x: Tensor, w: Tensor, y: Tensor) -> float:
    """The loss in blocks of rows, so that the check fits in memory at every shape."""
    total = 0.0
    for begin in range(0, len(x), 64):
        rows = slice(begin, begin + 64)
        logits = SCALE * (x[rows] @ w.T).float()
        total += float(F.cross_entropy(logits, y[rows], reduction="sum"))
    return total / len(x)


def _needs(peer) -> None:
    if peer is chunked and not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")


by_name = functools.partial(pytest.mark.parametrize, ids=lambda f: f.__name__)


@by_name("peer", [ours, naive, chunked, attention])
def test_frozen_prototypes(benchmark, shape, peer):
    _needs(peer)
    rows, dim, classes = shape
    tensors = _data(shape, torch.float32, False)
    step, own = (_step(p, *tensors) for p in (peer, ours))
    _assert_right(peer, step, *tensors)
    benchmark.group = f"compat_loss frozen float32 {rows}x{dim}x{classes}"
    run_interleaved(
        benchmark,
        peer.__name__,
        step,
        step if peer is ours else own,
        flops=4.0 * rows * dim * classes,
    )


@by_name("peer", [ours, naive, chunked])
def test_trainable_prototypes(benchmark, shape, peer):
    _needs(peer)
    rows, dim, classes = shape
    tensors = _data(shape, torch.float32, True)
    step, own = (_step(p, *tensors) for p in (peer, ours))
    _assert_right(peer, step, *tensors)
    benchmark.group = f"compat_loss trainable float32 {rows}x{dim}x{classes}"
    run_interleaved(
        benchmark,
        peer.__name__,
        step,
        step if peer is ours else own,
        flops=6.0 * rows * dim * classes,
    )


@by_name("peer", [ours, naive, attention])
def test_bfloat16(benchmark, shape, peer):
    """``ratio`` is to our float32 for ours, to our bfloat16 for the others."""
    rows, dim, classes = shape
    tensors = _data(shape, torch.bfloat16, False)
    step = _step(peer, *tensors)
    _assert_right(peer, step, *tensors)
    other = _data(shape, torch.float32, False) if peer is ours else tensors
    benchmark.group = f"compat_loss frozen bfloat16 {rows}x{dim}x{classes}"
    run_interleaved(
        benchmark,
        peer.__name__,
        step,
        _step(ours, *other),
        flops=4.0 * rows * dim * classes,
        dtype=torch.bfloat16,
    )


def test_kept_packed(benchmark, shape):
    """Frozen prototypes kept packed between calls; ``ratio`` is to ours that packs them anew."""
    rows, dim, classes = shape
    x, w, y = _data(shape, torch.float32, False)
    kept = w.clone()
    padded = -(-dim // 32) * 32
    fcl_ext.set_packing_cache(4 * classes * (padded + 1))  # room for one of the two
    try:
        step = _step(ours, x, kept, y)
        _assert_right(ours, step, x, kept, y)
        benchmark.group = f"compat_loss kept packed float32 {rows}x{dim}x{classes}"
        run_interleaved(
            benchmark, "ours", step, _step(ours, x, w, y), flops=4.0 * rows * dim * classes
        )
    finally:
        fcl_ext.set_packing_cache(0)


@pytest.mark.parametrize("small", SMALL, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
@by_name("peer", [ours, naive])
def test_small(benchmark, small, trainable, peer):
    rows, dim, classes = small
    tensors = _data(small, torch.float32, trainable)
    step, own = (_step(p, *tensors) for p in (peer, ours))
    _assert_right(peer, step, *tensors)
    benchmark.group = f"compat_loss small {'trainable' if trainable else 'frozen'} " + "x".join(
        map(str, small)
    )
    run_interleaved(
        benchmark,
        peer.__name__,
        step,
        step if peer is ours else own,
        flops=(6.0 if trainable else 4.0) * rows * dim * classes,
        repeat=100,
    )
