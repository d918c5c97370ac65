# SPDX-License-Identifier: Apache-2.0
"""Augmentation: shapes, bounds, reproducibility, and each motion on its own."""

from __future__ import annotations

import pytest
import torch

from fclearn.augmentation import augment_drawings


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _square(num=16, side=33, half=6):
    images = torch.zeros(num, 1, side, side)
    middle = side // 2
    images[:, :, middle - half : middle + half + 1, middle - half : middle + half + 1] = 1
    return images


def _centres(images):
    """Centre of mass of each image: x and y in shares of the side."""
    mass = images.sum((1, 2, 3))
    ticks = (torch.arange(images.shape[3]) + 0.5) / images.shape[3] - 0.5
    x = (images.sum((1, 2)) * ticks).sum(1) / mass
    y = (images.sum((1, 3)) * ticks).sum(1) / mass
    return torch.stack([x, y], 1)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 16, 16), (1, 1, 1, 1)])
def test_shape_and_range(shape):
    images = torch.rand(shape, generator=_generator(1))
    out = augment_drawings(images, _generator())
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert ((out >= 0) & (out <= 1 + 1e-6)).all()


def test_same_generator_same_result_and_input_untouched():
    images = _square()
    before = images.clone()
    torch.testing.assert_close(
        augment_drawings(images, _generator(5)),
        augment_drawings(images, _generator(5)),
        rtol=0,
        atol=0,
    )
    assert torch.equal(images, before)
    assert not torch.equal(
        augment_drawings(images, _generator(5)), augment_drawings(images, _generator(6))
    )


def test_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    augment_drawings(_square(), _generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_asked_for_changes_nothing():
    images = torch.rand(4, 2, 9, 9, generator=_generator())
    out = augment_drawings(images, _generator(), shift=0, degrees=0, scaling=0)
    torch.testing.assert_close(out, images, rtol=0, atol=1e-5)


def test_shift_moves_by_at_most_its_share_each_image_on_its_own():
    out = augment_drawings(_square(64), _generator(), shift=0.25, degrees=0, scaling=0)
    centres = _centres(out)
    assert centres.abs().max() <= 0.25 + 1e-3
    assert centres.abs().max() > 0.2
    assert len({tuple(centre) for centre in centres.tolist()}) == 64
    torch.testing.assert_close(out.sum((1, 2, 3)), _square(64).sum((1, 2, 3)), rtol=1e-3, atol=0)


def test_rotation_and_scaling_keep_the_centre():
    out = augment_drawings(_square(64), _generator(), shift=0, degrees=45, scaling=0)
    assert _centres(out).abs().max() < 1e-3
    torch.testing.assert_close(out.sum((1, 2, 3)), _square(64).sum((1, 2, 3)), rtol=0.02, atol=0)
    out = augment_drawings(_square(64), _generator(), shift=0, degrees=0, scaling=0.2)
    assert _centres(out).abs().max() < 1e-3
    area = out.sum((1, 2, 3)) / _square(64).sum((1, 2, 3))
    assert 0.6 < area.min() < 0.8
    assert 1.25 < area.max() < 1.7


def test_rotation_keeps_proportions_of_an_oblong():
    # A wide bar: were rotation mixed up with shear, its length would change.
    images = torch.zeros(32, 1, 65, 65)
    images[:, :, 31:34, 12:53] = 1
    out = augment_drawings(images, _generator(), shift=0, degrees=30, scaling=0)
    ticks = torch.arange(65) - 32.0
    mass = out.sum((1, 2, 3))
    spread = (out * (ticks[None, :] ** 2 + ticks[:, None] ** 2)).sum((1, 2, 3)) / mass
    original = (images * (ticks[None, :] ** 2 + ticks[:, None] ** 2)).sum((1, 2, 3))
    torch.testing.assert_close(spread, original / images.sum((1, 2, 3)), rtol=0.03, atol=0)
