# SPDX-License-Identifier: Apache-2.0
"""Random resized crops with flips: what networks for photos are trained on since Inception."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Left, top, right and bottom edge, in pixels.
Box = tuple[float, float, float, float]

_ATTEMPTS = 10


@dataclass(frozen=True)
class RandomCrops:
    """A box of random area and proportions from each image, mirrored every other time.

    What is drawn depends on seed, epoch and row alone, so that a training that resumes, or is
    shared by several processes, sees the same crops.

    Attributes:
        seed: Of all boxes.
        clean_share: Share of the images that are left whole: scaled, the centre kept.
        least_area: Smallest box, as a share of the image.
        widest: Most extreme proportion of a box, width to height or height to width.
        flip: Mirror half of them.

    Raises:
        ValueError: A value out of range.

    References:
        Szegedy et al., *Going Deeper with Convolutions*, CVPR 2015, Section 6 (area 8 % to 100 %,
        proportions 3/4 to 4/3).

    Example:
        >>> box, mirrored = RandomCrops(seed=1).draw((100, 80), epoch=0, row=7)
        >>> 0 <= box[0] < box[2] <= 100, 0 <= box[1] < box[3] <= 80
        (True, True)
    """

    seed: int = 0
    clean_share: float = 0.0
    least_area: float = 0.08
    widest: float = 4 / 3
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.clean_share <= 1:
            raise ValueError(f"clean_share: expected a number in [0, 1], got {self.clean_share}")
        if not 0 < self.least_area <= 1:
            raise ValueError(f"least_area: expected a number in (0, 1], got {self.least_area}")
        if not self.widest >= 1:
            raise ValueError(f"widest: expected a number >= 1, got {self.widest}")

    def draw(self, size: tuple[int, int], *, epoch: int, row: int) -> tuple[Box | None, bool]:
        """The box of one image, and whether it is mirrored.

        Args:
            size: Width and height of the image in pixels.
            epoch: From 0.
            row: Number of the image in its data set.

        Returns:
            None in place of a box for one that is left whole, which is never mirrored.
        """
        rng = np.random.default_rng([self.seed, epoch, row])
        if rng.random() < self.clean_share:
            return None, False
        mirrored = self.flip and rng.random() < 0.5
        width, height = size
        for _ in range(_ATTEMPTS):
            area = width * height * rng.uniform(self.least_area, 1)
            proportion = self.widest ** rng.uniform(-1, 1)
            wide, high = math.sqrt(area * proportion), math.sqrt(area / proportion)
            if wide <= width and high <= height:
                left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
                return (left, top, left + wide, top + high), mirrored
        # A panorama: the largest box of allowed proportions, in the middle.
        wide, high = min(width, height * self.widest), min(height, width * self.widest)
        left, top = (width - wide) / 2, (height - high) / 2
        return (left, top, left + wide, top + high), mirrored
