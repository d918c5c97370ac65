# SPDX-License-Identifier: Apache-2.0
"""MixBCT: one classifier, shown new embeddings and old features mixed, serves both.

In each batch a share ``mix`` of the embeddings is replaced by the images' old features, and a
classifier learns from the mixture: its prototypes must suit both, so embeddings come to lie where
the old features are. Only credible old features are mixed in: the share ``keep`` that is nearest
to its class's mean (by cosine, over all classes together).

In the paper this classifier, an ArcFace of scale 64 and margin 0.5, is the only loss. Here it
works on the compatible dims, beside the new classifier that every method has, so that a wider
embedding may use its other dims; ``scale`` and ``margin`` (radians) start from what the other
methods have. As in the released code, replaced rows train the classifier and not the encoder.
The paper's classifier starts at random (``start=random``), which takes a long training to feel the
old features; ``start=means`` starts it at the class means of these.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fclearn._row_tables import at_rows
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


class MixedClassifierLoss(LossModule):
    """A trained cosine classifier on a batch part of which are old features.

    Args:
        features: Old features of the training images, shape ``(N, D_old)``.
        labels: Their classes, shape ``(N,)``, int64.
        mix: Share of the batch that is replaced, in [0, 1).
        keep: Share of the old features that may be mixed in, in (0, 1].
        scale: Inverse temperature.
        margin: ArcFace margin in radians.
        start: Where the classifier starts: ``"means"`` of the old features, or ``"random"``.

    Raises:
        ValueError: A share out of range, an unknown start, or as `PseudoClassifier.from_means`.

    References:
        Liang et al., *MixBCT: Towards Self-Adapting Backward-Compatible Training*, 2023.
    """

    whole_batch = True
    by_row = ("features", "credible")
    features: Tensor
    credible: Tensor

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        mix: float = 0.3,
        keep: float = 0.9,
        scale: float = 16.0,
        margin: float = 0.0,
        start: str = "means",
    ) -> None:
        super().__init__()
        if not 0 <= mix < 1:
            raise ValueError(f"mix: expected a share in [0, 1), got {mix}")
        if not 0 < keep <= 1:
            raise ValueError(f"keep: expected a share in (0, 1], got {keep}")
        if start not in {"means", "random"}:
            raise ValueError(f"start: expected 'means' or 'random', got {start!r}")
        unit = F.normalize(features.detach(), dim=1)
        means = PseudoClassifier.from_means(unit, labels).prototypes
        cosines = (unit * means[labels]).sum(1)
        worst = cosines.sort(descending=True).values[math.ceil(keep * len(cosines)) - 1]
        self.register_buffer("features", unit, persistent=False)
        self.register_buffer("credible", cosines >= worst, persistent=False)
        self.classifier = CosineClassifierLoss(
            len(means), unit.shape[1], scale=scale, margin=margin, margin_type="arcface"
        )
        if start == "means":
            with torch.no_grad():
                self.classifier.prototypes.copy_(means)
        self.scale, self.mix, self.keep = scale, mix, keep

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of the mixed batch."""
        part = compatible_unit(embeddings, self.features.shape[1])
        old = at_rows(self.features, rows, embeddings)
        # Random among the credible rows, which therefore come first in the order.
        draw = torch.rand(len(rows), device=rows.device) - self.credible[rows].float()
        chosen = draw.argsort()[: int(self.mix * len(rows))]
        replaced = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        replaced[chosen] = self.credible[rows[chosen]]
        mixed = torch.where(replaced[:, None], old, part)
        loss: Tensor = self.classifier(mixed, labels)
        return loss

    def extra_repr(self) -> str:
        """Shapes and hyper-parameters."""
        count, dim = self.features.shape
        return f"num_features={count}, dim={dim}, mix={self.mix}, keep={self.keep}"


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    module = MixedClassifierLoss(
        assets.features,
        assets.labels,
        mix=float(settings["mix"]),
        keep=float(settings["keep"]),
        scale=float(settings["scale"]),
        margin=float(settings["margin"]),
        start=str(settings["start"]),
    )
    return [
        new_classifier(assets, dim, settings),
        LossTerm("compat", float(settings["weight"]), module),
    ]


SPEC = MethodSpec(
    name="mix-bct",
    title="MixBCT (old features mixed into the batch)",
    source="Liang et al., 2023",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={
        **NEW_CLASSIFIER_DEFAULTS,
        "mix": 0.3,
        "keep": 0.9,
        "scale": 16.0,
        "margin": 0.0,
        "start": "means",
        "weight": 1.0,
    },
    build=_build,
)
