# SPDX-License-Identifier: Apache-2.0
"""Derivatives that are not offered: refused, where silence would give a wrong number.

Operators without autograd of their own (``compat_loss``, ``compat_loss_gradients`` and
``pack_prototypes``) refuse nothing where they are called raw: a look at every call of theirs would
take Python in between. The functions above them do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Backward = Callable[..., tuple[Tensor | None, ...]]


def refuse_tangents(op: str, *arguments: object) -> None:
    """Refuse forward-mode derivatives: of an op without a rule for them torch takes 0.

    Raises:
        RuntimeError: A tensor has a tangent.
    """
    if forward_ad._current_level < 0:
        return
    for value in arguments:
        if isinstance(value, Tensor) and _has_tangent(value):
            raise RuntimeError(f"fcl::{op}: forward-mode derivatives are not supported")


def refuse_gradient(name: str, value: float | Tensor | None, instead: str = "float") -> None:
    """Refuse a tensor that requires a gradient, or has a tangent, where a constant is meant.

    Args:
        name: Of the argument.
        value: What was given.
        instead: What makes a constant of it, for the message.

    Raises:
        ValueError: It requires one, or has one (also under ``no_grad``, which stops no tangents).

    Example:
        >>> import torch
        >>> from fcl_ext._derivatives import refuse_gradient
        >>> refuse_gradient("scale", torch.tensor(2.0, requires_grad=True))
        Traceback (most recent call last):
        ...
        ValueError: scale: expected a constant, which gets no gradient (float() makes one of it)
    """
    if not isinstance(value, Tensor):
        return
    if (value.requires_grad and torch.is_grad_enabled()) or _has_tangent(value):
        raise ValueError(
            f"{name}: expected a constant, which gets no gradient ({instead}() makes one of it)"
        )


def _has_tangent(value: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None


class _RefuseSecond(torch.autograd.Function):
    """Gradients as they are, whose own derivatives are refused.

    What they depend on follows the gradients: torch asks a node only on a way to what it
    differentiates by.
    """

    @staticmethod
    def forward(
        ctx: Any, op: str, count: int, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.op = op
        return tuple(None if t is None else t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        raise RuntimeError(f"{ctx.op}: double backward is not supported")


def differentiable_once(op: str) -> Callable[[Backward], Backward]:
    """Decorate the ``backward`` of an ``autograd.Function``: what it returns has no derivatives.

    ``forward`` has to save all inputs that its gradients depend on: by the others torch would take
    derivatives to be 0, and in silence. torch's own ``once_differentiable`` takes gradients for
    constants where none of those that came in requires one. That is right for linear functions
    alone.

    Args:
        op: Name in the RuntimeError that differentiating a gradient raises.

    Example:
        >>> import torch
        >>> from fcl_ext._derivatives import differentiable_once
        >>> class Square(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x * x
        ...     @staticmethod
        ...     @differentiable_once("square")
        ...     def backward(ctx, grad):
        ...         return (2 * ctx.saved_tensors[0] * grad,)
        >>> x = torch.ones(1, requires_grad=True)
        >>> (slope,) = torch.autograd.grad(Square.apply(x), x, create_graph=True)
        >>> slope.backward()
        Traceback (most recent call last):
        ...
        RuntimeError: square: double backward is not supported
    """

    def decorate(backward: Backward) -> Backward:
        @wraps(backward)
        def refusing(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
            if not torch.is_grad_enabled():
                return backward(ctx, *incoming)
            # create_graph=True: someone may differentiate these again.
            with torch.no_grad():
                gradients = backward(ctx, *incoming)
            refused: tuple[Tensor | None, ...] = _RefuseSecond.apply(  # type: ignore[no-untyped-call]
                op, len(gradients), *gradients, *incoming, *ctx.saved_tensors
            )
            return refused

        return refusing

    return decorate
