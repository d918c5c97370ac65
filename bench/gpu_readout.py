# SPDX-License-Identifier: Apache-2.0
"""The compatibility loss on a GPU: every path of our kernels beside every peer installed."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from gpu_clock import Clock, Row, assert_close, unit_rows
from torch import Tensor

import fcl_ext

SCALE = 30.0
# rows, dim, classes
FROZEN = {
    "smoke": [(8, 16, 50)],
    "full": [
        (64, 256, 1_000_000),
        (1024, 128, 100_000),
        (1024, 256, 100_000),
        (1024, 256, 1_000_000),
        (4096, 256, 100_000),
        (4096, 512, 100_000),
        (4096, 1024, 100_000),
    ],
}
TRAINABLE = {
    "smoke": [(8, 16, 50)],
    "full": [(1024, 256, 100_000), (4096, 512, 100_000), (4096, 2048, 100_000)],
}
# With the dtypes that each has kernels for: others would be another path's times.
PATHS = {
    "simt": (torch.float32, torch.bfloat16),
    "mma": (torch.float32, torch.bfloat16),
    "sm90": (torch.bfloat16,),
}

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def naive(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """What everyone writes."""
    return F.cross_entropy((SCALE * F.linear(x, w)).float(), y)


@functools.cache
def _compiled() -> Loss:
    return torch.compile(naive)


def chunked(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """The chunked loss of torch >= 2.13."""
    return F.linear_cross_entropy(SCALE * x, w, y)


def attention(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """softmax(x W^T) W is attention with K = V = W: a loss with the right gradient, no value."""
    mean = F.scaled_dot_product_attention(x[None, None], w[None, None], w[None, None], scale=SCALE)
    return (SCALE * x * (mean[0, 0].detach() - w[y])).sum() / len(x)


def liger(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Liger's fused linear cross entropy."""
    from liger_kernel.transformers import (  # noqa: PLC0415  (an optional peer)
        LigerFusedLinearCrossEntropyLoss,
    )

    return LigerFusedLinearCrossEntropyLoss()(w, SCALE * x, y)


def cce_exact(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Cut cross entropy without its gradient filter."""
    from cut_cross_entropy import linear_cross_entropy  # noqa: PLC0415  (an optional peer)

    return linear_cross_entropy(SCALE * x, w, y, impl="cce_exact")


def ours(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """On the path that FCL_CUDA_PATH names."""
    return fcl_ext.compat_loss(x, w, y, scale=SCALE, normalize=False)


def _on_path(path: str, step: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        os.environ["FCL_CUDA_PATH"] = path
        try:
            return step()
        finally:
            del os.environ["FCL_CUDA_PATH"]

    return run


def _step(loss: Loss, x: Tensor, w: Tensor, y: Tensor) -> Callable[[], Tensor]:
    wanted = [t for t in (x, w) if t.requires_grad]
    return lambda: torch.autograd.grad(loss(x, w, y), wanted)[0]


def _peers(device: str, dtype: torch.dtype, trainable: bool) -> dict[str, Loss]:
    peers: dict[str, Loss] = {"naive": naive}
    if device == "cuda":
        peers["compiled"] = _compiled()
    if hasattr(F, "linear_cross_entropy"):
        peers["chunked"] = chunked
    if not trainable:
        peers["attention"] = attention
    if device == "cuda" and dtype == torch.bfloat16:
        if importlib.util.find_spec("liger_kernel"):
            peers["liger"] = liger
        if importlib.util.find_spec("cut_cross_entropy"):
            peers["cce_exact"] = cce_exact
    return peers


def readouts(shapes: str, device: str, clock: Clock) -> Iterator[Row]:
    """Loss and gradient: to the embeddings, then to the prototypes too."""
    for trainable, table in ((False, FROZEN), (True, TRAINABLE)):
        for shape in table[shapes]:
            for dtype in (torch.float32, torch.bfloat16):
                yield from _readout(shape, dtype, trainable, device, clock)


def _readout(
    shape: tuple[int, int, int], dtype: torch.dtype, trainable: bool, device: str, clock: Clock
) -> Iterator[Row]:
    rows, dim, classes = shape
    x = unit_rows(rows, dim, dtype, device, 0).requires_grad_()
    w = unit_rows(classes, dim, dtype, device, 1).requires_grad_(trainable)
    y = torch.arange(rows, device=device) % classes
    steps: dict[str, Callable[[], object]] = {
        name: _step(loss, x, w, y) for name, loss in _peers(device, dtype, trainable).items()
    }
    step = _step(ours, x, w, y)
    if device == "cuda":
        steps |= {
            f"ours {path}": _on_path(path, step)
            for path, dtypes in PATHS.items()
            if dtype in dtypes
        }
    else:
        steps["ours"] = step
    expected: Tensor | None = None
    works = {}
    for name, step in steps.items():
        # One that does not run here (no such kernels, too little memory) is left out and named.
        try:
            got = step()
        except (RuntimeError, ImportError) as error:
            print(f"{name} at {shape}, {dtype}: {str(error).splitlines()[0]}")
            continue
        assert isinstance(got, Tensor)
        if expected is None:
            expected = got
        assert_close(got, expected, 1e-3 if dtype == torch.float32 else 5e-2)
        works[name] = step
    products = 6.0 if trainable else 4.0
    for name, (ms, mb) in clock.run_all(works).items():
        rate = products * rows * dim * classes / ms / 1e9
        yield Row(
            "compat_loss " + ("trainable" if trainable else "frozen"),
            f"{rows}x{dim}x{classes}",
            str(dtype)[6:],
            name,
            ms,
            mb,
            rate,
            "TFLOP/s",
        )
