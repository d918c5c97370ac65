# SPDX-License-Identifier: Apache-2.0
"""The registry of orders: how urgent each gallery row is to be embedded anew.

An order sees what is stored now, old features and what is known of their items, and never a new
feature: those are what it is to decide about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fclearn.adapters import ForwardMap
from fclearn.backfill._prototypes import nearest_two, own_similarity
from fclearn.features import FeatureSource, as_features
from fclearn.graph import KnnGraph

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_NEIGHBOURS, _TEMPERATURE, _DAMPING = 10, 0.05, 0.85


@dataclass(frozen=True)
class OrderInputs:
    """What orders may look at.

    Attributes:
        features: Old features of the gallery, shape ``(G, D)``.
        seed: Of everything random.
        labels: Class per row as 0 .. C - 1, -1 for none, shape ``(G,)``, int64, or None.
        traffic: Requests per row, shape ``(G,)``, float64, >= 0, or None.
        forward_map: A map with uncertainty, or None.
    """

    features: FeatureSource
    seed: int
    labels: Ints | None = None
    traffic: Floats | None = None
    forward_map: ForwardMap | None = None


@dataclass(frozen=True)
class OrderSpec:
    """One entry of the registry.

    Attributes:
        name: In the command and in tables.
        formula: Priority of row i; the largest first.
        source: Where it is from.
        needs: Inputs it cannot do without.
        priority: Computes it, shape ``(G,)``, float64.
    """

    name: str
    formula: str
    source: str
    needs: tuple[str, ...]
    priority: Callable[[OrderInputs], Floats]


def _known(labels: Ints | None) -> Ints:
    assert labels is not None
    return labels


def _random(inputs: OrderInputs) -> Floats:
    # All equal: the seeded order among equals is the order.
    return np.zeros(len(as_features(inputs.features)))


def _uncertainty(inputs: OrderInputs) -> Floats:
    return 1 - nearest_two(inputs.features, _known(inputs.labels))[:, 0]


def _margin(inputs: OrderInputs) -> Floats:
    best = nearest_two(inputs.features, _known(inputs.labels))
    return best[:, 1] - best[:, 0]


def _class_mean(inputs: OrderInputs) -> Floats:
    return 1 - own_similarity(inputs.features, _known(inputs.labels))


def _predicted_error(inputs: OrderInputs) -> Floats:
    assert inputs.forward_map is not None
    return np.asarray(inputs.forward_map.uncertainty(inputs.features).double().numpy())


def _traffic(inputs: OrderInputs) -> Floats:
    assert inputs.traffic is not None
    return inputs.traffic


def _centrality(inputs: OrderInputs) -> Floats:
    size = len(as_features(inputs.features))
    if size == 1:
        return np.ones(1)
    graph = KnnGraph.build(inputs.features, k=min(_NEIGHBOURS, size - 1))
    start = torch.full((size, 1), 1 / size, dtype=torch.float64)
    rank = graph.normalize(_TEMPERATURE).walk(start, _DAMPING, transpose=True)
    return np.asarray(rank[:, 0].numpy())


#: Every order by name.
ORDERS: dict[str, OrderSpec] = {
    spec.name: spec
    for spec in (
        OrderSpec("random", "a seeded permutation", "the baseline", (), _random),
        OrderSpec(
            "uncertainty",
            "1 - max_c cos(x_i, w_c): far from every class mean",
            "nearest-mean confidence: Mensink et al., Distance-based image classification, TPAMI "
            "2013; most uncertain first: FastFill, Jaeckle et al., ICLR 2023",
            ("labels",),
            _uncertainty,
        ),
        OrderSpec(
            "margin",
            "cos(x_i, w_(2)) - cos(x_i, w_(1)), of the two nearest class means",
            "margin sampling: Scheffer et al., Active hidden Markov models, IDA 2001",
            ("labels",),
            _margin,
        ),
        OrderSpec(
            "predicted-error",
            "sigma^2(x_i), the squared error a forward map predicts of itself",
            "FastFill: Jaeckle et al., ICLR 2023",
            ("forward_map",),
            _predicted_error,
        ),
        OrderSpec(
            "class-mean",
            "1 - cos(x_i, w_{y_i}), w_c the mean of the unit rows of class c",
            "mean-of-exemplars distance (herding reversed): Rebuffi et al., iCaRL, CVPR 2017",
            ("labels",),
            _class_mean,
        ),
        OrderSpec(
            "centrality",
            "PageRank p = (1-d)(I - d P^T)^-1 1/G, P the row softmax of the 10-NN graph's cosines "
            "/ 0.05, d = 0.85",
            "Page et al., The PageRank citation ranking, 1999",
            (),
            _centrality,
        ),
        OrderSpec(
            "traffic",
            "requests of row i",
            "cache warming by popularity: what is asked for most counts most",
            ("traffic",),
            _traffic,
        ),
    )
}
