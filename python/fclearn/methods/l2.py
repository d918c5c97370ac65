# SPDX-License-Identifier: Apache-2.0
"""L2: pull each embedding to its image's own old feature (a baseline of the BCT paper)."""

from __future__ import annotations

from fclearn.losses import L2CompatLoss, LossTerm
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    return [
        new_classifier(assets, dim, settings),
        LossTerm("compat", float(settings["weight"]), L2CompatLoss(assets.features)),
    ]


SPEC = MethodSpec(
    name="l2",
    title="L2 to the old feature",
    source="baseline of Shen, Xiong, Xia, Soatto, CVPR 2020",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={**NEW_CLASSIFIER_DEFAULTS, "weight": 5.0},
    build=_build,
)
