# SPDX-License-Identifier: Apache-2.0
"""Shape inference of compat_loss; formulas: csrc/ops/compat_loss.h.

The op carries its own gradients, which :class:`fcl_ext._compat_function.CompatLoss` hands to
autograd; called raw on tensors that require a gradient, its results have none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fcl_ext._registrations.common import (
    accumulate_dtype,
    check_classes,
    check_dtype,
    check_floating,
    check_same_device,
    check_scale,
    check_shape,
    number,
    refuse_double_backward,
)
from fcl_ext._registrations.pack_prototypes import check_packed, check_packed_device

STATE_ROWS = 4
_LOGIT_ROWS = 128


def _check_problem(
    op: str, embeddings: Tensor, prototypes: Tensor, labels: Tensor, scale: float
) -> None:
    check_floating(op, "embeddings", embeddings)
    check_shape(op, "embeddings", embeddings, "[N, D]", (None, None))
    check_dtype(op, "prototypes", prototypes, embeddings.dtype)
    check_shape(op, "prototypes", prototypes, "[C, D]", (None, embeddings.shape[1]))
    check_same_device(op, "prototypes", prototypes, embeddings)
    check_classes(op, prototypes)
    check_dtype(op, "labels", labels, torch.int64)
    check_shape(op, "labels", labels, "[N]", (embeddings.shape[0],))
    check_same_device(op, "labels", labels, embeddings)
    check_scale(op, scale)


def _check_margin(
    op: str,
    embeddings: Tensor,
    mean_prototype: Tensor | None,
    margin: float,
    label_smoothing: float,
) -> None:
    torch._check(
        0 <= margin < math.pi,
        lambda: f"fcl::{op}: expected margin in [0, pi), got {number(margin)}",
    )
    torch._check(
        0 <= label_smoothing <= 1,
        lambda: f"fcl::{op}: expected label_smoothing in [0, 1], got {number(label_smoothing)}",
    )
    torch._check(
        (mean_prototype is not None) == (label_smoothing > 0),
        lambda: f"fcl::{op}: mean_prototype is needed for label smoothing, and for nothing else",
    )
    if mean_prototype is not None:
        check_dtype(op, "mean_prototype", mean_prototype, torch.float64)
        check_shape(op, "mean_prototype", mean_prototype, "[D]", (embeddings.shape[1],))
        check_same_device(op, "mean_prototype", mean_prototype, embeddings)


def _check_logits(op: str, logits: Tensor | None, embeddings: Tensor, prototypes: Tensor) -> None:
    if logits is None:
        return
    # Tensors of no device ("meta") stand for those of a CPU.
    torch._check(
        embeddings.device.type != "cuda" and embeddings.dtype == torch.float32,
        lambda: f"fcl::{op}: logits are kept on the CPU and in float32 only",
    )
    check_dtype(op, "logits", logits, torch.float32)
    blocks = (embeddings.shape[0] + _LOGIT_ROWS - 1) // _LOGIT_ROWS
    sizes = (blocks, prototypes.shape[0], _LOGIT_ROWS)
    check_shape(op, "logits", logits, "[N / 128 rounded up, C, 128]", sizes)
    check_same_device(op, "logits", logits, embeddings)
    torch._check(
        logits.is_contiguous(),
        lambda: f"fcl::{op}: expected contiguous logits",
    )


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
    check_packed_device(op, packed, prototypes)
    torch._check(
        reduction in ("mean", "sum", "none"),
        lambda: f"fcl::{op}: expected reduction mean, sum or none, got {reduction}",
    )
    _check_problem(op, embeddings, prototypes, labels, scale)
    _check_margin(op, embeddings, mean_prototype, margin, label_smoothing)
    _check_logits(op, logits, embeddings, prototypes)
    check_packed(op, packed, squared_norms, prototypes)
    rows, dim = embeddings.shape
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
    _check_problem(op, embeddings, prototypes, labels, scale)
    dtype = accumulate_dtype(embeddings.dtype)
    check_dtype(op, "state", state, dtype)
    check_shape(op, "state", state, "[4, N]", (STATE_ROWS, embeddings.shape[0]))
    check_same_device(op, "state", state, embeddings)
    check_dtype(op, "grad_loss", grad_loss, dtype)
    if grad_loss.dim() != 0:
        check_shape(op, "grad_loss", grad_loss, "[N] or []", (embeddings.shape[0],))
    check_same_device(op, "grad_loss", grad_loss, embeddings)
    _check_logits(op, logits, embeddings, prototypes)
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
    torch._check(
        reduction in ("mean", "sum"),
        lambda: f"fcl::{op}: expected reduction mean or sum, got {reduction}",
    )
    _check_problem(op, embeddings, prototypes, labels, scale)
    _check_margin(op, embeddings, mean_prototype, margin, label_smoothing)
    dtype = accumulate_dtype(embeddings.dtype)
    return (
        embeddings.new_empty((), dtype=dtype),
        embeddings.new_empty(tuple(embeddings.shape), dtype=dtype),
        prototypes.new_empty(tuple(prototypes.shape), dtype=dtype),
    )


refuse_double_backward("compat_loss_backward")
