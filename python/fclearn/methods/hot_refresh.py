# SPDX-License-Identifier: Apache-2.0
r"""Hot-refresh (RACT): the own old feature must win against new *and* old negatives.

While a gallery is being backfilled, a new query meets old and new vectors side by side. So the
InfoNCE loss of an embedding z_i has one positive, its own old feature f_i, and as negatives the
hardest old features and the hardest new embeddings of other classes in the batch:
-log e^{s z_i f_i} / (e^{s z_i f_i} + sum_k e^{s z_i f_k} + sum_k e^{s z_i z_k}). Scale 100
(temperature 0.01) and the ten hardest of each kind are the released code's. The order of the
backfill, the paper's other half, is a matter of serving, not of training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fclearn._row_tables import at_rows
from fclearn.losses import LossModule, LossTerm, compatible_unit
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)


class RegressionAlleviatingLoss(LossModule):
    """InfoNCE from an embedding to its own old feature, with new and old negatives.

    Args:
        features: Old features of the training images, shape ``(N, D_old)``.
        scale: Inverse temperature.
        num_negatives: Hardest negatives of each kind; 0: all.

    Raises:
        ValueError: An option out of range.

    References:
        Zhang et al., *Hot-Refresh Model Upgrades with Regression-Alleviating Compatible Training
        in Image Retrieval*, ICLR 2022.

    Example:
        >>> term = RegressionAlleviatingLoss(torch.eye(3), scale=1.0)
        >>> rows = torch.arange(3)
        >>> round(term(torch.eye(3), rows, rows).item(), 4)  # log(1 + (2 + 2) / e)
        0.9048
    """

    whole_batch = True
    by_row = ("features",)
    features: Tensor

    def __init__(self, features: Tensor, *, scale: float = 100.0, num_negatives: int = 10) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale: expected a finite number > 0, got {scale}")
        if num_negatives < 0:
            raise ValueError(f"num_negatives: expected at least 0, got {num_negatives}")
        self.register_buffer("features", F.normalize(features.detach(), dim=1), persistent=False)
        self.scale = scale
        self.num_negatives = num_negatives

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of the batch."""
        new = compatible_unit(embeddings, self.features.shape[1])
        old = at_rows(self.features, rows, embeddings)
        same = labels[:, None] == labels
        positive = (new * old).sum(1, keepdim=True)
        cosines = torch.cat([positive, *(self._negatives(new @ x.T, same) for x in (old, new))], 1)
        return (torch.logsumexp(self.scale * cosines, 1) - self.scale * positive[:, 0]).mean()

    def _negatives(self, cosines: Tensor, same: Tensor) -> Tensor:
        masked = cosines.masked_fill(same, -math.inf)
        count = min(self.num_negatives or len(same), len(same))
        return masked.topk(count, dim=1).values

    def extra_repr(self) -> str:
        """Shapes and hyper-parameters."""
        count, dim = self.features.shape
        return (
            f"num_features={count}, dim={dim}, scale={self.scale}, "
            f"num_negatives={self.num_negatives}"
        )


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    module = RegressionAlleviatingLoss(
        assets.features,
        scale=float(settings["scale"]),
        num_negatives=int(settings["num_negatives"]),
    )
    return [
        new_classifier(assets, dim, settings),
        LossTerm("compat", float(settings["weight"]), module),
    ]


SPEC = MethodSpec(
    name="hot-refresh",
    title="Hot-refresh (RACT)",
    source="Zhang et al., Hot-Refresh Model Upgrades, ICLR 2022",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={**NEW_CLASSIFIER_DEFAULTS, "scale": 100.0, "num_negatives": 10, "weight": 1.0},
    build=_build,
)
