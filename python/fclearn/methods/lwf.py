# SPDX-License-Identifier: Apache-2.0
"""LwF: the old model's answers, as probabilities over a classifier, are to stay what they were.

The loss is KL(old || new) between the softmax of an image's old feature and that of its embedding,
both over the same frozen rows. ``head`` says whose: ``learned``, a cosine classifier fitted to the
old features (all that is left of most old models), or ``old``, the old model's own classifier. The
paper distils logits at temperature 2; here it is the scale of the cosines that sets how soft the
answers are. The paper's old head is trained on with the new model; as in the released code of
BCT's author it stays as it is, for the gallery does.
"""

from __future__ import annotations

from torch import Tensor

from fclearn.classifiers import PseudoClassifier
from fclearn.losses import DistillCompatLoss, LossTerm
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    scale = float(settings["scale"])
    distill = DistillCompatLoss(_head(assets, settings), assets.features, scale=scale)
    return [
        new_classifier(assets, dim, settings),
        LossTerm("compat", float(settings["weight"]), distill),
    ]


def _head(assets: Assets, settings: Settings) -> Tensor:
    head = settings["head"]
    if head == "learned":
        return PseudoClassifier.fit(assets.features, assets.labels).prototypes
    if head != "old":
        raise ValueError(f"head: expected 'learned' or 'old', got {head!r}")
    if assets.old_classifier is None:
        raise ValueError(f"method 'lwf' with head='old' needs {Need.OLD_CLASSIFIER.value}")
    return assets.old_classifier.float()


SPEC = MethodSpec(
    name="lwf",
    title="LwF (learning without forgetting)",
    source="Li, Hoiem, ECCV 2016; baseline of Shen, Xiong, Xia, Soatto, CVPR 2020",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={**NEW_CLASSIFIER_DEFAULTS, "head": "learned", "scale": 10.0, "weight": 1.0},
    build=_build,
)
