# SPDX-License-Identifier: Apache-2.0
"""NI-FCL at instance level: every old feature is a row of the pseudo classifier.

Three terms beside the new classifier. (1) Instance rows: the softmax over *all* cached old features
should put its mass on those of the image's class, summed inside the logarithm, so that each image
may choose which of them it resembles. With ``positives: walk`` rows count for a class as much as
random walks from them, over the kNN graph of the old features, end in it. (2) A cosine head learned
on the old features, which says where the classes' boundaries were. (3) The image's own old feature,
by squared distance: classes never trained on have no rows and no boundary, only what the old model
makes of an image.
"""

from __future__ import annotations

from fclearn.classifiers import PseudoClassifier
from fclearn.graph import KnnGraph
from fclearn.losses import InstanceCompatLoss, L2CompatLoss, LossTerm, PseudoClassifierLoss
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)
from fclearn.positives import walk_positives

_POSITIVES = ("class", "walk")


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    scale = float(settings["scale"])
    choice = settings["positives"]
    if choice not in _POSITIVES:
        raise ValueError(f"positives: expected one of {list(_POSITIVES)}, got {choice!r}")
    positives = None
    if choice == "walk":
        neighbours = min(int(settings["k"]), len(assets.features) - 1)
        graph = KnnGraph.build(assets.features, neighbours)
        graph = graph.normalize(temperature=float(settings["temperature"]))
        positives = walk_positives(graph, assets.labels, damping=float(settings["damping"]))
    head = PseudoClassifier.fit(assets.features, assets.labels)
    return [
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
        LossTerm("compat", float(settings["own_weight"]), L2CompatLoss(assets.features)),
    ]


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
        "own_weight": 3.0,
        "positives": "class",
        "k": 15,
        "temperature": 0.1,
        "damping": 0.8,
    },
    build=_build,
)
