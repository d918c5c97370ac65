# SPDX-License-Identifier: Apache-2.0
"""NI-FCL at instance level: every old feature is a row of the pseudo classifier.

Three terms beside the new classifier. (1) Instance rows: the softmax over *all* cached old features
should put its mass on those of the image's class, summed inside the logarithm, so that each image
may choose which of them it resembles. (2) A cosine head learned on the old features, which says
where the classes' boundaries were. (3) The image's own old feature, by squared distance: classes
never trained on have no rows and no boundary, only what the old model makes of an image. It counts
in units of what the mean old feature would cost: features that all lean one way, as those of many
models do, lie close together, and plain distances to them say little.

With ``neighbour_weight``, a fourth: what the old feature says of all others. Its softmax over all
old features, at twice the scale, is the target of the embedding's. Squared distance asks for every
direction alike; this asks for the neighbours, which is what a search sees.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fcl_ext import PositiveSets
from fclearn.classifiers import PseudoClassifier
from fclearn.losses import (
    DistillCompatLoss,
    InstanceCompatLoss,
    L2CompatLoss,
    LossTerm,
    PseudoClassifierLoss,
)
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)

# A copy of all rows in float64 would be twice what they take.
_ROWS_AT_ONCE = 65_536


def spread(features: Tensor) -> float:
    """Mean squared distance of unit rows to their mean: 1 without a common direction, 0 if equal.

    Args:
        features: Shape ``(N, D)``, floating.

    Returns:
        Rounded to three places: it enters the weights that a resumed training must have again, on
        another machine, too. At least 0.01.

    Example:
        >>> spread(torch.eye(2)), spread(torch.ones(2, 2))
        (0.5, 0.01)
    """
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    squares = 0.0
    for part in features.detach().split(_ROWS_AT_ONCE):
        unit = F.normalize(part, dim=1).double()
        total += unit.sum(0)
        squares += float(unit.square().sum())
    distance = squares / len(features) - float((total / len(features)).square().sum())
    return max(round(distance, 3), 0.01)


def own_weight(assets: Assets, settings: Settings) -> float:
    """Of squared distances to the image's own old feature: the setting, by the rows' spread."""
    return float(settings["own_weight"]) / spread(assets.features)


def instance_terms(
    assets: Assets, dim: int, settings: Settings, positives: PositiveSets | None = None
) -> list[LossTerm]:
    """The method with other positives than the rows of one's class."""
    scale = float(settings["scale"])
    head = PseudoClassifier.fit(assets.features, assets.labels)
    terms = [
        new_classifier(assets, dim, settings),
        LossTerm(
            "compat",
            float(settings["instance_weight"]),
            InstanceCompatLoss(assets.features, assets.labels, scale=scale, positives=positives),
        ),
        LossTerm(
            "compat",
            float(settings["head_weight"]),
            PseudoClassifierLoss(head.prototypes, scale=scale),
        ),
    ]
    if settings["own_weight"]:
        own = L2CompatLoss(assets.features)
        terms.append(LossTerm("compat", own_weight(assets, settings), own))
    if settings["neighbour_weight"]:
        neighbours = DistillCompatLoss(
            assets.features, assets.features, scale=scale, teacher_scale=2 * scale
        )
        terms.append(LossTerm("compat", float(settings["neighbour_weight"]), neighbours))
    return terms


SPEC = MethodSpec(
    name="ni-fcl",
    title="NI-FCL, instance level + learned head",
    source="after Shen, Wu, Shan, Non-Inherent Feature Compatible Learning, ICLR 2021 submission",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={
        **NEW_CLASSIFIER_DEFAULTS,
        "scale": 10.0,
        "instance_weight": 1.0,
        "head_weight": 1.0,
        "own_weight": 1.0,
        "neighbour_weight": 0.0,
    },
    build=instance_terms,
)
