# SPDX-License-Identifier: Apache-2.0
"""What the losses refuse before any kernel runs, in words about their arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fcl_ext._derivatives import refuse_gradient
from fcl_ext._explain import need_number, need_tensors


def check_weights(name: str, weights: Tensor, letters: str, size: int) -> None:
    try:
        shape = weights.shape
    except AttributeError:
        need_tensors("compat_loss", **{name: weights})
        raise
    if shape != (size,):
        raise ValueError(
            f"compat_loss: expected {name} of shape {letters} = [{size}], got {list(shape)}"
        )


def check_options(
    scale: float, margin: float, margin_type: str, label_smoothing: float, reduction: str
) -> None:
    refuse_gradient("scale", scale)
    refuse_gradient("margin", margin)
    refuse_gradient("label_smoothing", label_smoothing)
    try:
        if not scale > 0 or math.isinf(scale):
            raise ValueError(f"scale: expected a finite number > 0, got {scale}")
        if margin_type not in ("cosface", "arcface"):
            raise ValueError(f"margin_type: expected 'cosface' or 'arcface', got {margin_type!r}")
        if not 0 <= margin < math.pi:
            raise ValueError(f"margin: expected a number in [0, pi), got {margin}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
    except TypeError:
        need_number("", "scale", scale)
        need_number("", "margin", margin)
        need_number("", "label_smoothing", label_smoothing)
        raise
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")


def can_look(labels: Tensor) -> bool:
    """Whether looking at values neither waits for the device nor breaks a graph."""
    return labels.device.type == "cpu" and not torch.compiler.is_compiling()


def check_labels(function: str, labels: Tensor, num_rows: int, num_classes: int) -> None:
    if labels.shape != (num_rows,) or labels.dtype != torch.int64:
        raise ValueError(
            f"{function}: expected labels of shape [N] = [{num_rows}] and dtype int64, "
            f"got {list(labels.shape)} and {labels.dtype}"
        )
    if not can_look(labels):
        return
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{function}: expected labels in [0, {num_classes}), "
            f"got {int(labels[row])} in row {row}"
        )
