# SPDX-License-Identifier: Apache-2.0
"""Shape inference of pack_prototypes, and the checks of what it made: ops/pack_prototypes.h."""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext._registrations.common import (
    check_classes,
    check_dtype,
    check_floating,
    check_same_device,
    check_shape,
)

_PADDING = 32


def _check(op: str, prototypes: Tensor) -> None:
    check_floating(op, "prototypes", prototypes)
    torch._check(
        prototypes.dtype in (torch.float32, torch.float64),
        lambda: f"fcl::{op}: prototypes are packed in float32 and float64 only",
    )
    check_shape(op, "prototypes", prototypes, "[C, D]", (None, None))
    check_classes(op, prototypes)


def _packed_width(dim: int) -> int:
    return (dim + _PADDING - 1) // _PADDING * _PADDING


def check_packed_device(op: str, packed: Tensor | None, prototypes: Tensor) -> None:
    """Refuse packed prototypes where no kernel reads them; other devices look at nothing else."""
    torch._check(
        packed is None or prototypes.device.type != "cuda",
        lambda: f"fcl::{op}: prototypes are packed on the CPU only",
    )


def check_packed(
    op: str, packed: Tensor | None, squared_norms: Tensor | None, prototypes: Tensor
) -> None:
    """Refuse what does not fit the prototypes."""
    if prototypes.device.type == "cuda":
        return
    torch._check(
        (packed is None) == (squared_norms is None),
        lambda: f"fcl::{op}: expected packed and squared_norms together",
    )
    if packed is None or squared_norms is None:
        return
    _check(op, prototypes)
    num_classes, dim = prototypes.shape
    for name, tensor, letters, size in (
        ("packed", packed, "[C * D rounded up to 32]", num_classes * _packed_width(dim)),
        ("squared_norms", squared_norms, "[C]", num_classes),
    ):
        check_dtype(op, name, tensor, prototypes.dtype)
        check_same_device(op, name, tensor, prototypes)
        torch._check(
            tensor.is_contiguous(),
            lambda name=name: f"fcl::{op}: expected {name} to be contiguous",
        )
        check_shape(op, name, tensor, letters, (size,))


@torch.library.register_fake("fcl::pack_prototypes")
def _fake(prototypes: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    _check("pack_prototypes", prototypes)
    num_classes, dim = prototypes.shape
    size = num_classes * _packed_width(dim)
    return prototypes.new_empty((size,)), prototypes.new_empty((num_classes,))
