# SPDX-License-Identifier: Apache-2.0
"""Shape inference and autocast of knn_graph; it is not differentiable, and says so."""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext._registrations.common import (
    accumulate_dtype,
    check_floating,
    check_shape,
    register_float32_autocast,
)


@torch.library.register_fake("fcl::knn_graph")
def _fake(features: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    op = "knn_graph"
    check_floating(op, "features", features)
    check_shape(op, "features", features, "[N, D]", (None, None))
    num_rows, dim = features.shape
    torch._check(
        dim > 0,
        lambda: (
            f"fcl::{op}: expected features with at least one dim, got shape {list(features.shape)}"
        ),
    )
    torch._check(
        k >= 1,
        lambda: (
            f"fcl::{op}: expected 1 <= k <= N - 1 (a row is not its own neighbour), got k = "
            f"{k} for N = {num_rows}"
        ),
    )
    torch._check(
        k < num_rows,
        lambda: (
            f"fcl::{op}: expected 1 <= k <= N - 1 (a row is not its own neighbour), got k = "
            f"{k} for N = {num_rows}"
        ),
    )
    torch._check(
        metric in ("cosine", "ip", "l2"),
        lambda: f"fcl::{op}: expected metric cosine, ip or l2, got {metric}",
    )
    return (
        features.new_empty((num_rows, k), dtype=torch.int32),
        features.new_empty((num_rows, k), dtype=accumulate_dtype(features.dtype)),
    )


def _backward(_ctx: object, *_grads: Tensor | None) -> None:
    raise RuntimeError(
        "fcl::knn_graph: similarities have no gradient; gather rows by indices and multiply them"
    )


torch.library.register_autograd("fcl::knn_graph", _backward)
register_float32_autocast("knn_graph")
