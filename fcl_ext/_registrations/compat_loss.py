# SPDX-License-Identifier: Apache-2.0
"""Shape inference of compat_loss; formulas: csrc/ops/compat_loss.h.

The op carries its own gradients, which :class:`fcl_ext._compat_function.CompatLoss` hands to
autograd; called raw on tensors that require a gradient, its results have none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext._registrations.common import (
    accumulate_dtype,
    check_dtype,
    check_floating,
    check_shape,
    refuse_double_backward,
)

STATE_ROWS = 4


def _check(op: str, embeddings: Tensor, prototypes: Tensor, labels: Tensor, scale: float) -> None:
    check_floating(op, "embeddings", embeddings)
    check_shape(op, "embeddings", embeddings, "[N, D]", (None, None))
    check_dtype(op, "prototypes", prototypes, embeddings.dtype)
    check_shape(op, "prototypes", prototypes, "[C, D]", (None, embeddings.shape[1]))
    torch._check(
        prototypes.shape[0] > 0,
        lambda: (
            f"fcl::{op}: expected prototypes with at least one class and one dim, "
            f"got shape {list(prototypes.shape)}"
        ),
    )
    check_dtype(op, "labels", labels, torch.int64)
    check_shape(op, "labels", labels, "[N]", (embeddings.shape[0],))
    torch._check(scale > 0, lambda: f"fcl::{op}: expected scale > 0 and finite, got {scale}")


@torch.library.register_fake("fcl::compat_loss")
def _fake(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    mean_prototype: Tensor | None,
    scale: float,
    margin: float,
    arcface: bool,
    label_smoothing: float,
    normalize: bool,
    ignore_index: int,
    reduction: str,
    need_embeddings: bool,
    need_prototypes: bool,
    logits: Tensor | None = None,
    packed: Tensor | None = None,
    squared_norms: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "compat_loss"
    _check(op, embeddings, prototypes, labels, scale)
    rows, dim = embeddings.shape
    if mean_prototype is not None:
        check_dtype(op, "mean_prototype", mean_prototype, torch.float64)
        check_shape(op, "mean_prototype", mean_prototype, "[D]", (dim,))
    torch._check(
        reduction in ("mean", "sum", "none"),
        lambda: f"fcl::{op}: expected reduction mean, sum or none, got {reduction}",
    )
    dtype = accumulate_dtype(embeddings.dtype)
    return (
        embeddings.new_empty((rows,) if reduction == "none" else (), dtype=dtype),
        embeddings.new_empty((rows if need_embeddings else 0, dim), dtype=dtype),
        embeddings.new_empty((rows if normalize else 0, dim)),
        embeddings.new_empty((STATE_ROWS, rows if need_prototypes else 0), dtype=dtype),
    )


@torch.library.register_fake("fcl::compat_loss_backward")
def _fake_backward(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    state: Tensor,
    grad_loss: Tensor,
    scale: float,
    label_smoothing: float,
    normalize: bool,
    ignore_index: int,
    logits: Tensor | None = None,
) -> Tensor:
    op = "compat_loss_backward"
    _check(op, embeddings, prototypes, labels, scale)
    dtype = accumulate_dtype(embeddings.dtype)
    check_dtype(op, "state", state, dtype)
    check_shape(op, "state", state, "[4, N]", (STATE_ROWS, embeddings.shape[0]))
    check_dtype(op, "grad_loss", grad_loss, dtype)
    if grad_loss.dim() != 0:
        check_shape(op, "grad_loss", grad_loss, "[N] or []", (embeddings.shape[0],))
    return prototypes.new_empty(tuple(prototypes.shape), dtype=dtype)


@torch.library.register_fake("fcl::compat_loss_gradients")
def _fake_gradients(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    mean_prototype: Tensor | None,
    scale: float,
    margin: float,
    arcface: bool,
    label_smoothing: float,
    normalize: bool,
    ignore_index: int,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "compat_loss_gradients"
    _check(op, embeddings, prototypes, labels, scale)
    torch._check(
        reduction in ("mean", "sum"),
        lambda: f"fcl::{op}: expected reduction mean or sum, got {reduction}",
    )
    dtype = accumulate_dtype(embeddings.dtype)
    return (
        embeddings.new_empty((), dtype=dtype),
        embeddings.new_empty(tuple(embeddings.shape), dtype=dtype),
        prototypes.new_empty(tuple(prototypes.shape), dtype=dtype),
    )


refuse_double_backward("compat_loss_backward")
