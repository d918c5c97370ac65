# SPDX-License-Identifier: Apache-2.0
r"""BT2: room for both models in one embedding, and a learned rotation between their bases.

An embedding with more dims than the old features can hold them in its first dims and still be, in
another basis, what the new model would have been on its own. Beside the new classifier: the
influence loss of BCT against class means of the old features; the squared distance to the image's
own old feature; and 1 - cos between the first dims of Q z and the feature f*(x) of the *same* image
under the independent new model, with Q a learned orthogonal matrix. Rotating all of z changes no
distance, so Q is not needed once training is done.

Give the embedding some dims more than the independent features have (32 in the paper). Weights are
those of the released code: 10 for the influence loss, 5 (1 - cos) = 2.5 squared distances for the
own feature, 1 for the independent one. One matrix, which starts as the identity, turns all of the
embedding here.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from fclearn._row_tables import at_rows
from fclearn.classifiers import PseudoClassifier
from fclearn.losses import L2CompatLoss, LossModule, LossTerm, PseudoClassifierLoss
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)


class RotatedCosineLoss(LossModule):
    """One minus the cosine between a frozen feature and the first dims of the rotated embedding.

    Args:
        features: Features of the training images, shape ``(N, D_f)``.
        dim: Embedding dim, at least ``D_f``.

    Raises:
        ValueError: An embedding narrower than the features.

    References:
        Zhou et al., *BT^2: Backward-compatible Training with Basis Transformation*, ICCV 2023.

    Example:
        >>> import torch
        >>> term = RotatedCosineLoss(torch.eye(3), dim=4)
        >>> rows = torch.arange(3)
        >>> round(term(torch.eye(3, 4), rows, rows).item(), 6)
        0.0
    """

    by_row = ("features",)
    features: Tensor

    def __init__(self, features: Tensor, dim: int) -> None:
        super().__init__()
        if dim < features.shape[1]:
            raise ValueError(
                f"dim: expected at least the {features.shape[1]} dims of the independent "
                f"features, got {dim}"
            )
        self.register_buffer("features", F.normalize(features.detach(), dim=1), persistent=False)
        basis = nn.Linear(dim, dim, bias=False, dtype=features.dtype)
        nn.init.eye_(basis.weight)
        self.basis = orthogonal(basis, orthogonal_map="matrix_exp")

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        """Mean loss of the batch."""
        own = at_rows(self.features, rows, embeddings)
        turned = self.basis(embeddings)[:, : self.features.shape[1]]
        cosines: Tensor = (F.normalize(turned, dim=1) * own).sum(1)
        return 1 - cosines.mean()

    def extra_repr(self) -> str:
        """Shapes."""
        return f"num_features={self.features.shape[0]}, dim={self.features.shape[1]}"


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    assert assets.independent_features is not None
    means = PseudoClassifier.from_means(assets.features, assets.labels).prototypes
    return [
        new_classifier(assets, dim, settings),
        LossTerm(
            "compat",
            float(settings["influence_weight"]),
            PseudoClassifierLoss(means, scale=float(settings["scale"])),
        ),
        LossTerm("compat", float(settings["own_weight"]), L2CompatLoss(assets.features)),
        LossTerm(
            "compat",
            float(settings["independent_weight"]),
            RotatedCosineLoss(assets.independent_features.float(), dim),
        ),
    ]


SPEC = MethodSpec(
    name="bt2",
    title="BT2 (basis transformation)",
    source="Zhou et al., ICCV 2023",
    needs=(Need.LABELS, Need.FEATURE_CACHE, Need.INDEPENDENT_FEATURES),
    defaults={
        **NEW_CLASSIFIER_DEFAULTS,
        "scale": 10.0,
        "influence_weight": 10.0,
        "own_weight": 2.5,
        "independent_weight": 1.0,
    },
    build=_build,
)
