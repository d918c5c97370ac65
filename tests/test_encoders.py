# SPDX-License-Identifier: Apache-2.0
"""Encoders: shapes, channels, names, gradients everywhere, timm where it is."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from fclearn.encoders import ResNet, SmallCnn, build_encoder

NAMES = ["small-cnn", "resnet18", "resnet18-large-images", "resnet50-large-images"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_shapes(name, channels):
    encoder = build_encoder(name, dim=5, channels=channels)
    for side in (32, 45):
        assert encoder(torch.rand(2, channels, side, side)).shape == (2, 5)
    assert encoder(torch.rand(2, channels, 32, 48)).shape == (2, 5)


@pytest.mark.parametrize(
    "encoder",
    [
        SmallCnn(4, width=4),
        ResNet(4, width=4),
        ResNet(4, width=4, small_images=False),
        ResNet(4, width=4, blocks=(1, 2), bottleneck=True),
    ],
)
def test_every_parameter_gets_a_gradient_and_images_do_not_mix(encoder):
    images = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder.train()
    encoder(images).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith("bias"), name
    encoder.eval()
    with torch.no_grad():
        together = encoder(images)
        alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_smallest_images():
    assert SmallCnn(3, width=4).eval()(torch.rand(1, 1, 8, 8)).shape == (1, 3)


def test_resnet18_is_resnet18():
    # 11.7 M parameters with 1000 classes and three channels, as published.
    count = sum(p.numel() for p in build_encoder(NAMES[2], dim=1000, channels=3).parameters())
    assert count == 11_689_512


def test_resnet50_is_resnet50():
    # 25.6 M parameters with 1000 classes and three channels, as published.
    count = sum(p.numel() for p in build_encoder(NAMES[3], dim=1000, channels=3).parameters())
    assert count == 25_557_032


@pytest.mark.parametrize(("dim", "width"), [(3, 5), (5, 3), (4, 4)])
def test_a_feature_head_starts_as_the_identity(dim, width):
    head = build_encoder("feature-head", dim=dim, channels=width)
    rows = torch.randn(6, width)
    expected = torch.zeros(6, dim)
    common = min(dim, width)
    expected[:, :common] = rows[:, :common]
    torch.testing.assert_close(head(rows[:, :, None, None]), expected)
    head(rows[:, :, None, None]).square().sum().backward()
    assert head.up.weight.grad.any()


def test_output_dtype_follows_and_state_round_trips():
    encoder = SmallCnn(4, width=4)
    other = SmallCnn(4, width=4)
    other.load_state_dict(encoder.state_dict())
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(encoder.eval()(images), other.eval()(images))
    assert encoder.double()(images.double()).dtype == torch.float64


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"encoder: expected one of .*small-cnn.*timm:NAME.*'cnn'"):
        build_encoder("cnn", dim=4)


@pytest.mark.parametrize("name", [NAMES[0], "timm:resnet10t"])
def test_dim_is_checked(name):
    with pytest.raises(ValueError, match="dim: expected at least 1, got 0"):
        build_encoder(name, dim=0)


def test_timm_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match="encoder 'timm:vit' needs timm: pip install"):
        build_encoder("timm:vit", dim=4)


def test_timm_is_asked_for_an_embedding(monkeypatch):
    asked = {}

    def create_model(name, **options):
        asked.update(options, name=name)
        return nn.Identity()

    module = types.ModuleType("timm")
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    build_encoder("timm:vit_tiny_patch16_224", dim=12, channels=3)
    assert asked == {
        "name": "vit_tiny_patch16_224",
        "pretrained": False,
        "num_classes": 12,
        "in_chans": 3,
    }


def test_real_timm():
    pytest.importorskip("timm")
    assert build_encoder("timm:resnet10t", dim=6)(torch.rand(2, 1, 64, 64)).shape == (2, 6)
