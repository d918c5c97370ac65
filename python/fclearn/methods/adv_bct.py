# SPDX-License-Identifier: Apache-2.0
r"""AdvBCT: embeddings stay within an elastic radius of the old centres, and pass for old ones.

Two terms beside the new classifier. Boundary: max(0, |z - c_k| - r_k) with c_k the class mean of
the old features and r_k between the distance of its farthest old feature, R_k, and the mean of
these over the classes: r_k = R_k + sigmoid(e_k)(mean R - R_k) with e_k learned. Adversarial: a
small network tells new embeddings from old features; its gradient reaches the encoder reversed,
so the encoder learns to be mistaken for the old model. The share of the gradient that is reversed
rises as 2/(1 + exp(-10 p)) - 1 with the progress p of training, and the weight of the term falls
as (E - e + 1)/E over the epochs e = 1 .. E, as released (there p moves by step, here by epoch).
The released code takes the radius to meet from its configuration; the mean replaces it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fclearn._row_tables import at_rows
from fclearn.classifiers import PseudoClassifier
from fclearn.losses import LossModule, LossTerm, compatible_unit
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)


class ElasticBoundaryLoss(LossModule):
    """How far embeddings lie outside a learned radius around their class's old centre.

    Args:
        features: Old features of the training images, shape ``(N, D_old)``.
        labels: Their classes, shape ``(N,)``, int64.

    Raises:
        ValueError: As `PseudoClassifier.from_means`.

    References:
        Pan et al., *Boundary-Aware Backward-Compatible Representation via Adversarial Learning in
        Image Retrieval*, CVPR 2023.
    """

    centres: Tensor
    radius: Tensor

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        super().__init__()
        unit = F.normalize(features.detach(), dim=1)
        centres = PseudoClassifier.from_means(unit, labels).prototypes.to(unit.dtype)
        distances = (unit - centres[labels]).norm(dim=1)
        radius = distances.new_zeros(len(centres)).scatter_reduce(0, labels, distances, "amax")
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("radius", radius, persistent=False)
        # Half way, which is where the released random start lies on average.
        self.elasticity = nn.Parameter(torch.zeros(len(centres), dtype=unit.dtype))

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        """Mean loss of the batch."""
        part = compatible_unit(embeddings, self.centres.shape[1])
        radius = torch.lerp(self.radius, self.radius.mean(), torch.sigmoid(self.elasticity))
        distances = (part - self.centres[labels]).norm(dim=1)
        return F.relu(distances - radius[labels]).mean()

    def extra_repr(self) -> str:
        """Shapes."""
        return f"num_classes={self.centres.shape[0]}, dim={self.centres.shape[1]}"


class OldOrNewLoss(LossModule):
    """A discriminator learns to tell new from old; the encoder gets its gradient reversed.

    Args:
        features: Old features of the training images, shape ``(N, D_old)``.
        width: Of its two hidden layers.

    References:
        Pan et al., as above. Ganin and Lempitsky, *Unsupervised Domain Adaptation by
        Backpropagation*, ICML 2015 (gradient reversal).
    """

    by_row = ("features",)
    features: Tensor

    def __init__(self, features: Tensor, *, width: int = 256) -> None:
        super().__init__()
        self.register_buffer("features", F.normalize(features.detach(), dim=1), persistent=False)
        self.discriminator = nn.Sequential(
            nn.Linear(features.shape[1], width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )
        self._reversal = self._decay = 1.0

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Set how much of the gradient is reversed, and the falling weight."""
        # The middle of the epoch: at its start, nothing would be reversed in the first one.
        self._reversal = 2 / (1 + math.exp(-10 * (epoch - 0.5) / epochs)) - 1
        self._decay = (epochs - epoch + 1) / epochs

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        """Mean loss of the discriminator over new and over old rows, added up."""
        new = compatible_unit(embeddings, self.features.shape[1])
        # The value of `new` with -reversal times its gradient.
        reversed_new = new.detach() - self._reversal * (new - new.detach())
        is_old = self.discriminator(
            torch.cat([reversed_new, at_rows(self.features, rows, embeddings)])
        )[:, 0]
        new_logits, old_logits = is_old.split(len(new))
        return self._decay * (F.softplus(new_logits).mean() + F.softplus(-old_logits).mean())


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    return [
        new_classifier(assets, dim, settings),
        LossTerm(
            "compat",
            float(settings["boundary_weight"]),
            ElasticBoundaryLoss(assets.features, assets.labels),
        ),
        LossTerm(
            "compat",
            float(settings["adversarial_weight"]),
            OldOrNewLoss(assets.features, width=int(settings["width"])),
        ),
    ]


SPEC = MethodSpec(
    name="adv-bct",
    title="AdvBCT (elastic boundary, adversarial)",
    source="Pan et al., CVPR 2023",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={
        **NEW_CLASSIFIER_DEFAULTS,
        "boundary_weight": 1.0,
        "adversarial_weight": 1.0,
        "width": 256,
    },
    build=_build,
)
