# SPDX-License-Identifier: Apache-2.0
"""The kernels against plain torch on a small problem: does this installation compute?"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

import fcl_ext


def loss_agrees() -> bool:
    """Whether `fcl_ext.compat_loss` and its gradient are those of plain torch."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(33, 24, generator=generator, requires_grad=True)
    prototypes = torch.randn(70, 24, generator=generator)
    labels = torch.arange(33) % 70
    loss = fcl_ext.compat_loss(rows, prototypes, labels, scale=10.0)
    plain = F.cross_entropy(10.0 * F.normalize(rows) @ F.normalize(prototypes).T, labels)
    ours, theirs = (torch.autograd.grad(value, rows)[0] for value in (loss, plain))
    return torch.allclose(loss, plain, rtol=1e-4) and torch.allclose(ours, theirs, atol=1e-5)


def walk_agrees() -> bool:
    """Whether three steps of `fcl_ext.random_walk` around a ring are those of plain torch."""
    # A ring: every node has its two neighbours, half and half.
    nodes = torch.arange(30)
    columns = torch.stack([(nodes - 1) % 30, (nodes + 1) % 30], 1).sort(1).values.flatten()
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    crow = torch.arange(0, 61, 2, dtype=torch.int64)
    walked = fcl_ext.random_walk(
        crow, columns.int(), torch.full((60,), 0.5), features, damping=0.8, num_steps=3
    )
    expected = features
    for _ in range(3):
        moved = 0.5 * (expected.roll(1, 0) + expected.roll(-1, 0))
        expected = 0.8 * moved + 0.2 * features
    return torch.allclose(walked, expected, atol=1e-5)


#: By operator.
COMPARISONS: Mapping[str, Callable[[], bool]] = {
    "compat_loss": loss_agrees,
    "random_walk": walk_agrees,
}
