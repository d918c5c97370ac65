# SPDX-License-Identifier: Apache-2.0
"""Helpers shared by the registrations of all ops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half types accumulate in float32, float64 in itself (common/checks.h)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_floating(op: str, name: str, tensor: Tensor) -> None:
    """Refuse what check_floating of common/checks.h refuses."""
    torch._check(
        tensor.dtype in FLOATING,
        lambda: (
            f"fcl::{op}: expected {name} of dtype float32, float64, bfloat16 or float16, "
            f"got {tensor.dtype}"
        ),
    )


def check_dtype(op: str, name: str, tensor: Tensor, expected: torch.dtype) -> None:
    """Refuse another dtype."""
    torch._check(
        tensor.dtype == expected,
        lambda: f"fcl::{op}: expected {name} of dtype {expected}, got {tensor.dtype}",
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


def refuse_double_backward(op: str) -> None:
    """Give a backward op an autograd formula that raises: silence would mean wrong gradients."""

    def backward(_ctx: object, *_grads: Tensor | None) -> None:
        raise RuntimeError(f"fcl::{op}: double backward is not supported")

    torch.library.register_autograd(f"fcl::{op}", backward)


def register_float32_autocast(op: str) -> None:
    """Run in float32 under autocast, as torch runs its own losses."""
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(f"fcl::{op}", device, torch.float32)
