# SPDX-License-Identifier: Apache-2.0
"""Derivatives that are not offered: refused, where silence would give a wrong number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_tangents(op: str, *tensors: Tensor | None) -> None:
    """Refuse forward-mode derivatives: of an op without a rule for them torch takes 0.

    Raises:
        RuntimeError: A tensor has a tangent.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(f"fcl::{op}: forward-mode derivatives are not supported")


def refuse_gradient(name: str, value: float | Tensor, instead: str = "float") -> None:
    """Refuse a tensor that requires a gradient where a constant is meant.

    Args:
        name: Of the argument.
        value: What was given.
        instead: What makes a constant of it, for the message.

    Raises:
        ValueError: It requires one.

    Example:
        >>> import torch
        >>> from fcl_ext._derivatives import refuse_gradient
        >>> refuse_gradient("scale", torch.tensor(2.0, requires_grad=True))
        Traceback (most recent call last):
        ...
        ValueError: scale: expected a constant, which gets no gradient (float() makes one of it)
    """
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name}: expected a constant, which gets no gradient ({instead}() makes one of it)"
        )


class RefuseSecond(torch.autograd.Function):
    """Gradients as they are, whose own derivatives are refused."""

    @staticmethod
    def forward(ctx: Any, op: str, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.op = op
        return gradients

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        raise RuntimeError(f"{ctx.op}: double backward is not supported")


def once(op: str, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients that raise a RuntimeError if they are differentiated again."""
    leaves = [None if g is None else g.detach().requires_grad_() for g in gradients]
    refused: tuple[Tensor | None, ...] = RefuseSecond.apply(op, *leaves)  # type: ignore[no-untyped-call]
    return refused
