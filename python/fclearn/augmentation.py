# SPDX-License-Identifier: Apache-2.0
"""Random changes of a whole batch of images at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment_drawings(
    images: Tensor,
    generator: torch.Generator,
    *,
    shift: float = 0.125,
    degrees: float = 10.0,
    scaling: float = 0.15,
) -> Tensor:
    """Shift, rotate and scale each image at random; what moves in is black.

    No flips: an arrow to the left is another drawing than one to the right.

    Args:
        images: Shape ``(B, C, H, W)``, on the CPU.
        generator: Source of randomness, on the CPU.
        shift: Largest shift, as a share of the side.
        degrees: Largest rotation either way.
        scaling: Largest relative change of size.

    Returns:
        Shape ``(B, C, H, W)``.

    Example:
        >>> augment_drawings(torch.rand(2, 1, 8, 8), torch.Generator()).shape
        torch.Size([2, 1, 8, 8])
    """

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(len(images), *shape, generator=generator) - 1

    angle = torch.deg2rad(degrees * uniform())
    size = 1 + scaling * uniform()
    transform = torch.empty(len(images), 2, 3)
    transform[:, 0, 0] = transform[:, 1, 1] = size * angle.cos()
    transform[:, 0, 1] = -size * angle.sin()
    transform[:, 1, 0] = size * angle.sin()
    # The grid spans [-1, 1]: a shift by the whole side is 2.
    transform[:, :, 2] = 2 * shift * uniform(2)
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
