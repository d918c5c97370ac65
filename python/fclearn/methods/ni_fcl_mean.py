# SPDX-License-Identifier: Apache-2.0
"""NI-FCL with the simplest pseudo classifier: the class means of the old features."""

from __future__ import annotations

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
    means = PseudoClassifier.from_means(assets.features, assets.labels)
    return [
        new_classifier(assets, dim, settings),
        LossTerm(
            "compat",
            float(settings["weight"]),
            PseudoClassifierLoss(means.prototypes, scale=float(settings["scale"])),
        ),
    ]


SPEC = MethodSpec(
    name="ni-fcl-mean",
    title="NI-FCL, class means",
    source="Shen, Wu, Shan, Non-Inherent Feature Compatible Learning, ICLR 2021 submission",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={**NEW_CLASSIFIER_DEFAULTS, "scale": 10.0, "weight": 1.0},
    build=_build,
)
