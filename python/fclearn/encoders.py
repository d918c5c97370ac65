# SPDX-License-Identifier: Apache-2.0
"""Encoders that ship with the library; any ``torch.nn.Module`` of yours works as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn


class SmallCnn(nn.Module):
    """Six convolutions for small drawings: about a second per thousand 32-pixel images and core.

    Args:
        dim: Embedding dim.
        channels: Channels of the images.
        width: Channels of the first layers; doubled twice.

    Shapes: images ``(B, channels, H, W)`` in [0, 1], H and W at least 8, to ``(B, dim)``.

    Example:
        >>> SmallCnn(dim=16, width=8)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 16])
    """

    def __init__(self, dim: int, channels: int = 1, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(channels, width),
            # Pooling rather than strides: it keeps thin lines, and bfloat16 convolutions with
            # strides are up to fifty times slower on CPUs at some batch sizes (oneDNN).
            nn.MaxPool2d(2),
            _convolution(width, 2 * width),
            _convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
            _convolution(2 * width, 4 * width),
            _convolution(4 * width, 4 * width),
            nn.MaxPool2d(2),
            _convolution(4 * width, 4 * width),
        )
        # The maximum tells whether a part is there, the mean how much of it.
        self.head = nn.Linear(8 * width, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch."""
        maps = self.features(images)
        out: Tensor = self.head(torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], dim=1))
        return out


class ResNet(nn.Module):
    """ResNet (ResNet-18: two basic blocks per stage), with a linear head into the embedding.

    Args:
        dim: Embedding dim.
        channels: Channels of the images.
        blocks: Blocks per stage.
        width: Channels of the first stage; doubled in each of the next.
        small_images: A 3 x 3 stem without pooling, for images below about 64 pixels.
        bottleneck: Blocks of three convolutions, four times as wide at their ends (ResNet-50: with
            blocks 3, 4, 6, 3). The middle one has the stride, as in everybody's ResNet-50 by now.

    References:
        He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016.

    Example:
        >>> ResNet(dim=8, width=8)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        dim: int,
        channels: int = 1,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        small_images: bool = True,
        bottleneck: bool = False,
    ) -> None:
        super().__init__()
        kind = _Bottleneck if bottleneck else _BasicBlock
        if small_images:
            layers: list[nn.Module] = [_convolution(channels, width)]
        else:
            layers = [
                _convolution(channels, width, kernel=7, stride=2),
                nn.MaxPool2d(3, stride=2, padding=1),
            ]
        before = width
        for stage, count in enumerate(blocks):
            after = width * 2**stage
            for block in range(count):
                layers.append(kind(before, after, 2 if stage > 0 and block == 0 else 1))
                before = after * kind.expansion
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch."""
        out: Tensor = self.head(self.features(images).mean((2, 3)))
        return out


class FeatureHead(nn.Module):
    """A trainable head on stored features: the map it starts as, and a hidden layer that adds.

    It starts near the identity (cut, or filled up with zeros, where the widths differ): what a good
    frozen model knows is there from the first step, and the hidden layer learns what to change.

    Args:
        dim: Embedding dim.
        width: Width of the features.
        hidden: Width of the hidden layer.

    Shapes: features ``(B, width, 1, 1)``, as `fclearn.datasets.VectorDataset` gives them, to
    ``(B, dim)``.

    Example:
        >>> FeatureHead(dim=2, width=3)(torch.eye(3)[:, :, None, None]).shape
        torch.Size([3, 2])
    """

    def __init__(self, dim: int, width: int, hidden: int = 512) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, dim, bias=False)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.up.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Embed a batch."""
        rows = features.flatten(1)
        out: Tensor = self.linear(rows) + self.up(torch.relu(self.down(rows)))
        return out


class _Block(nn.Module):
    """A body and a way around it; both end ``expansion`` times as wide as the block's width."""

    expansion: ClassVar[int] = 1

    def __init__(self, body: nn.Sequential, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(self.body(maps) + self.skip(maps))


class _BasicBlock(_Block):
    def __init__(self, before: int, width: int, stride: int) -> None:
        body = nn.Sequential(
            _convolution(before, width, stride=stride),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        super().__init__(body, before, width, stride)


class _Bottleneck(_Block):
    expansion = 4

    def __init__(self, before: int, width: int, stride: int) -> None:
        after = width * self.expansion
        body = nn.Sequential(
            _convolution(before, width, kernel=1),
            _convolution(width, width, stride=stride),
            nn.Conv2d(width, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        super().__init__(body, before, after, stride)


def _convolution(before: int, after: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


_BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    "tiny-cnn": lambda dim, channels: SmallCnn(dim, channels, width=12),
    "small-cnn": SmallCnn,
    "resnet18": ResNet,
    "resnet18-large-images": lambda dim, channels: ResNet(dim, channels, small_images=False),
    "resnet50-large-images": lambda dim, channels: ResNet(
        dim, channels, blocks=(3, 4, 6, 3), small_images=False, bottleneck=True
    ),
    "feature-head": FeatureHead,
}


def build_encoder(name: str, *, dim: int, channels: int = 1) -> nn.Module:
    """Make an encoder by name.

    Args:
        name: ``"tiny-cnn"``, ``"small-cnn"``, ``"resnet18"``, ``"resnet18-large-images"``,
            ``"resnet50-large-images"``, ``"timm:NAME"`` for any model of timm (not pretrained; timm
            must be installed), or ``"feature-head"`` for stored features in place of images.
        dim: Embedding dim, >= 1.
        channels: Channels of the images, or width of the stored features.

    Raises:
        ValueError: An unknown name (the known ones are listed), or a dim below 1.
        ModuleNotFoundError: A ``timm:`` name without timm.

    Example:
        >>> build_encoder("small-cnn", dim=64)(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 64])
    """
    if dim < 1:
        raise ValueError(f"dim: expected at least 1, got {dim}")
    if name.startswith("timm:"):
        try:
            import timm  # noqa: PLC0415  (an optional dependency)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"encoder {name!r} needs timm: pip install timm") from error
        model: nn.Module = timm.create_model(
            name.removeprefix("timm:"), pretrained=False, num_classes=dim, in_chans=channels
        )
        return model
    if name not in _BUILDERS:
        raise ValueError(f"encoder: expected one of {[*_BUILDERS, 'timm:NAME']}, got {name!r}")
    return _BUILDERS[name](dim, channels)
