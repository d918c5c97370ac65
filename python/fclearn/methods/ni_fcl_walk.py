# SPDX-License-Identifier: Apache-2.0
"""NI-FCL with class means refined by a random walk over the kNN graph of the old features.

``walk``: ``within-class`` (PageRank-weighted class means: outliers lose weight), ``global``
(features flow between classes too) or ``soft-targets`` (each image's target is its class mean mixed
with those of its neighbours).
"""

from __future__ import annotations

from fclearn.classifiers import PseudoClassifier
from fclearn.graph import KnnGraph
from fclearn.losses import LossTerm, PseudoClassifierLoss
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)

_WALKS = ("within-class", "global", "soft-targets")


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    walk = settings["walk"]
    if walk not in _WALKS:
        raise ValueError(f"walk: expected one of {list(_WALKS)}, got {walk!r}")
    features, labels = assets.features, assets.labels
    graph = KnnGraph.build(
        features,
        min(int(settings["k"]), len(features) - 1),
        labels=labels if walk == "within-class" else None,
    ).normalize(temperature=float(settings["temperature"]))
    damping = float(settings["damping"])
    pseudo = PseudoClassifier.from_means(features, labels)
    soft = pseudo.soft_targets(graph, damping) if walk == "soft-targets" else None
    if soft is None:
        pseudo = pseudo.refine(graph, damping)
    return [
        new_classifier(assets, dim, settings),
        LossTerm(
            "compat",
            float(settings["weight"]),
            PseudoClassifierLoss(
                pseudo.prototypes, scale=float(settings["scale"]), soft_targets=soft
            ),
        ),
    ]


SPEC = MethodSpec(
    name="ni-fcl-walk",
    title="NI-FCL, class means refined by a random walk",
    source="Shen, Wu, Shan, ICLR 2021 submission; Zhang et al. (UniBCT), IJCAI 2022",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={
        **NEW_CLASSIFIER_DEFAULTS,
        "walk": "within-class",
        "k": 10,
        "temperature": 0.1,
        "damping": 0.9,
        "scale": 10.0,
        "weight": 1.0,
    },
    build=_build,
)
