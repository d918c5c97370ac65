# SPDX-License-Identifier: Apache-2.0
"""BCT: the influence loss against the old classifier, with synthesised rows for new classes.

The old model's own classifier rows serve for the classes it knew; a class it did not know gets the
mean of its images' old features.
"""

from __future__ import annotations

import torch.nn.functional as F

from fclearn.classifiers import PseudoClassifier
from fclearn.losses import LossTerm, PseudoClassifierLoss
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    assert assets.old_classifier is not None
    assert assets.old_classes is not None
    prototypes = PseudoClassifier.from_means(assets.features, assets.labels).prototypes.clone()
    prototypes[assets.old_classes] = F.normalize(assets.old_classifier.float(), dim=1)
    return [
        new_classifier(assets, dim, settings),
        LossTerm(
            "compat",
            float(settings["weight"]),
            PseudoClassifierLoss(prototypes, scale=float(settings["scale"])),
        ),
    ]


SPEC = MethodSpec(
    name="bct",
    title="BCT (influence loss)",
    source="Shen, Xiong, Xia, Soatto, CVPR 2020",
    needs=(Need.LABELS, Need.FEATURE_CACHE, Need.OLD_CLASSIFIER),
    defaults={**NEW_CLASSIFIER_DEFAULTS, "scale": 10.0, "weight": 1.0},
    build=_build,
)
