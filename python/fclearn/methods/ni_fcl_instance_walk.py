# SPDX-License-Identifier: Apache-2.0
"""NI-FCL at instance level, the positives weighted by a random walk over the old features.

As ``ni-fcl``, but an old feature counts for a class as much as walks from it, over the kNN graph of
all old features, end in that class: rows of other classes that look like it get partial credit, and
rows that lie among others lose weight.
"""

from __future__ import annotations

from fclearn.graph import KnnGraph
from fclearn.losses import LossTerm
from fclearn.methods import ni_fcl
from fclearn.methods.base import Assets, MethodSpec, Settings
from fclearn.positives import walk_positives


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    features = assets.features
    graph = KnnGraph.build(features, min(int(settings["k"]), len(features) - 1))
    graph = graph.normalize(temperature=float(settings["temperature"]))
    positives = walk_positives(graph, assets.labels, damping=float(settings["damping"]))
    return ni_fcl.instance_terms(assets, dim, settings, positives)


SPEC = MethodSpec(
    name="ni-fcl-instance-walk",
    title="NI-FCL, instance level + learned head, walk-weighted positives",
    source=ni_fcl.SPEC.source,
    needs=ni_fcl.SPEC.needs,
    defaults={**ni_fcl.SPEC.defaults, "k": 15, "temperature": 0.1, "damping": 0.8},
    build=_build,
)
