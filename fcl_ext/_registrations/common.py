# SPDX-License-Identifier: Apache-2.0
"""Helpers shared by the registrations of all ops; the checks are those of common/checks.h."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fcl_ext._derivatives import refuse_tangents

# The most rows that int32 can number.
INT32_MAX = 2**31 - 1
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half types accumulate in float32, float64 in itself (common/checks.h)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def number(value: float) -> str:
    """A number as C++ prints it."""
    return f"{float(value):g}"


def check_floating(op: str, name: str, tensor: Tensor) -> None:
    """Refuse what check_floating of common/checks.h refuses."""
    torch._check(
        tensor.dtype in FLOATING,
        lambda: (
            f"fcl::{op}: expected {name} of dtype float32, float64, bfloat16 or float16, "
            f"got {dtype_name(tensor.dtype)}"
        ),
    )


def check_dtype(op: str, name: str, tensor: Tensor, expected: torch.dtype) -> None:
    """Refuse another dtype."""
    torch._check(
        tensor.dtype == expected,
        lambda: (
            f"fcl::{op}: expected {name} of dtype {dtype_name(expected)}, "
            f"got {dtype_name(tensor.dtype)}"
        ),
    )


def check_shape(
    op: str, name: str, tensor: Tensor, letters: str, sizes: Sequence[int | torch.SymInt | None]
) -> None:
    """Refuse another rank or size; None accepts any size."""

    def message() -> str:
        known = ", ".join("*" if size is None else str(size) for size in sizes)
        return (
            f"fcl::{op}: expected {name} of shape {letters} = [{known}], got {list(tensor.shape)}"
        )

    torch._check(tensor.dim() == len(sizes), message)
    for dim, size in enumerate(sizes):
        if size is not None:
            torch._check(tensor.shape[dim] == size, message)


def check_same_device(op: str, name: str, tensor: Tensor, reference: Tensor) -> None:
    """Refuse a tensor on another device."""
    torch._check(
        tensor.device == reference.device,
        lambda: f"fcl::{op}: expected {name} on the same device as the other tensors",
    )


def check_classes(op: str, prototypes: Tensor) -> None:
    """Refuse prototypes without a class or without a dim."""
    for size in prototypes.shape:
        torch._check(
            size > 0,
            lambda: (
                f"fcl::{op}: expected prototypes with at least one class and one dim, "
                f"got shape {list(prototypes.shape)}"
            ),
        )


def check_scale(op: str, scale: float) -> None:
    """Refuse what is not above 0, or so large that logits would not be floats."""
    torch._check(
        0 < scale < math.inf,
        lambda: f"fcl::{op}: expected scale > 0 and finite, got {number(scale)}",
    )
    torch._check(scale <= 1e38, lambda: f"fcl::{op}: expected scale <= 1e38, got {number(scale)}")


def check_damping(op: str, damping: float) -> None:
    """Refuse what is not in (0, 1)."""
    torch._check(
        0 < damping < 1,
        lambda: f"fcl::{op}: expected damping in the open interval (0, 1), got {number(damping)}",
    )


def check_num_steps(op: str, num_steps: int) -> None:
    """Refuse a negative number."""
    torch._check(num_steps >= 0, lambda: f"fcl::{op}: expected num_steps >= 0, got {num_steps}")


def register_autograd(
    op: str,
    backward: Callable[..., Any],
    *,
    setup_context: Callable[..., Any] | None = None,
) -> None:
    """`torch.library.register_autograd`, and forward-mode derivatives refused."""
    torch.library.register_autograd(
        f"fcl::{op}", backward, setup_context=setup_context, lib=_REFUSING
    )


class _RefusingTangents(torch.library.Library):
    """Kernels of autograd that look for tangents first: torch itself would lose them in silence."""

    def impl(
        self, op_name: str, fn: Callable[..., Any], dispatch_key: str = "", **options: Any
    ) -> None:
        def kernel(*arguments: Any, **more: Any) -> Any:
            refuse_tangents(op_name, *arguments)
            return fn(*arguments, **more)

        super().impl(op_name, kernel, dispatch_key, **options)


_REFUSING = _RefusingTangents("fcl", "FRAGMENT")


def refuse_double_backward(op: str) -> None:
    """Give a backward op an autograd formula that raises: silence would mean wrong gradients."""

    def backward(_ctx: object, *_grads: Tensor | None) -> None:
        raise RuntimeError(f"fcl::{op}: double backward is not supported")

    register_autograd(op, backward)


def register_float32_autocast(op: str) -> None:
    """Run in float32 under autocast, as torch runs its own losses."""
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(f"fcl::{op}", device, torch.float32)
