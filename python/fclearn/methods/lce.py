# SPDX-License-Identifier: Apache-2.0
r"""LCE: the new classes settle on the old centres, within the old boundaries.

Two terms beside the new classifier W, with c_k the unit mean of class k's old features. Alignment
moves the rows of W, not the embeddings: the mean of (W_k/|W_k| - c_k)^2 over classes and dims.
Boundary: max(0, min_{j in k} cos(f_j, c_k) - cos(z, c_k)), an embedding z of class k should be no
farther from the old centre than its farthest old feature. Weights 100 and 1 are those of the
released code. Its optional learned transformations between the two spaces are left out.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fclearn.classifiers import PseudoClassifier
from fclearn.losses import CosineClassifierLoss, LossModule, LossTerm, compatible_unit
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)


class AlignmentLoss(LossModule):
    """Mean squared difference between the rows of a trained classifier and frozen centres.

    Args:
        classifier: Its rows are moved; their first dims count.
        centres: Shape ``(C, D_old)``.

    Raises:
        ValueError: Another number of centres than of rows.

    References:
        Meng et al., *Learning Compatible Embeddings*, ICCV 2021.
    """

    centres: Tensor

    def __init__(self, classifier: CosineClassifierLoss, centres: Tensor) -> None:
        super().__init__()
        if len(centres) != len(classifier.prototypes):
            raise ValueError(
                f"centres: expected one per class ({len(classifier.prototypes)}), "
                f"got {len(centres)}"
            )
        self.classifier = classifier
        self.register_buffer("centres", F.normalize(centres.detach(), dim=1), persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        """The same for every batch."""
        part = compatible_unit(self.classifier.prototypes, self.centres.shape[1])
        return F.mse_loss(part, self.centres)


class BoundaryLoss(LossModule):
    """How far, in cosine, embeddings lie beyond the farthest old feature of their class.

    Args:
        features: Old features of the training images, shape ``(N, D_old)``.
        labels: Their classes, shape ``(N,)``, int64.
        centres: Unit rows, shape ``(C, D_old)``.

    References:
        Meng et al., *Learning Compatible Embeddings*, ICCV 2021.
    """

    centres: Tensor
    boundary: Tensor

    def __init__(self, features: Tensor, labels: Tensor, centres: Tensor) -> None:
        super().__init__()
        unit = F.normalize(features.detach(), dim=1)
        cosines = (unit * centres[labels]).sum(1)
        boundary = cosines.new_ones(len(centres)).scatter_reduce(0, labels, cosines, "amin")
        self.register_buffer("centres", centres.detach().clone(), persistent=False)
        self.register_buffer("boundary", boundary, persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        """Mean loss of the batch."""
        part = compatible_unit(embeddings, self.centres.shape[1])
        cosines = (part * self.centres[labels]).sum(1)
        return F.relu(self.boundary[labels] - cosines).mean()

    def extra_repr(self) -> str:
        """Shapes."""
        return f"num_classes={self.centres.shape[0]}, dim={self.centres.shape[1]}"


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    centres = PseudoClassifier.from_means(assets.features, assets.labels).prototypes
    new = new_classifier(assets, dim, settings)
    assert isinstance(new.module, CosineClassifierLoss)
    return [
        new,
        LossTerm("compat", float(settings["alignment_weight"]), AlignmentLoss(new.module, centres)),
        LossTerm(
            "compat",
            float(settings["boundary_weight"]),
            BoundaryLoss(assets.features, assets.labels, centres),
        ),
    ]


SPEC = MethodSpec(
    name="lce",
    title="LCE (alignment and boundary)",
    source="Meng et al., Learning Compatible Embeddings, ICCV 2021",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={**NEW_CLASSIFIER_DEFAULTS, "alignment_weight": 100.0, "boundary_weight": 1.0},
    build=_build,
)
