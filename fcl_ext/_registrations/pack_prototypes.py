# SPDX-License-Identifier: Apache-2.0
"""Shape inference of pack_prototypes; who reads the result: csrc/ops/pack_prototypes.h."""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext._registrations.common import check_shape

_PADDING = 32


@torch.library.register_fake("fcl::pack_prototypes")
def _fake(prototypes: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    op = "pack_prototypes"
    torch._check(
        prototypes.dtype in (torch.float32, torch.float64),
        lambda: f"fcl::{op}: prototypes are packed in float32 and float64 only",
    )
    check_shape(op, "prototypes", prototypes, "[C, D]", (None, None))
    num_classes, dim = prototypes.shape
    width = (dim + _PADDING - 1) // _PADDING * _PADDING
    return prototypes.new_empty((num_classes * width,)), prototypes.new_empty((num_classes,))
