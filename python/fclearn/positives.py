# SPDX-License-Identifier: Apache-2.0
"""Which old features stand for a class, and how much each: the targets of instance-level losses."""

from __future__ import annotations

import torch
from torch import Tensor

import fcl_ext
from fcl_ext.positive_sets import num_labels_of
from fclearn.graph import KnnGraph

__all__ = ["walk_positives"]


def walk_positives(
    graph: KnnGraph, labels: Tensor, *, damping: float = 0.8, epsilon: float = 1e-2
) -> fcl_ext.PositiveSets:
    r"""Positives weighted by a random walk over the graph of the old features.

    .. math:: w_{yj} = H_{jy} / \sum_i H_{iy}, \quad H = (1 - \lambda)(I - \lambda P)^{-1} Y

    Row j counts for class y as much as walks from j end in y: rows of other classes that look like
    y count a little, and rows labelled y that lie among others lose weight.

    Args:
        graph: Normalised kNN graph of the N old features, all classes in one.
        labels: Class of each, shape ``(N,)``, int64 below ``max(2^24, 16 N)``, as memory grows
            with the largest; negative for none.
        damping: Probability of walking on, in (0, 1).
        epsilon: Mass that a row of H may lack; small entries are left out for it.

    Returns:
        Sets for labels 0 .. the largest, for `fcl_ext.compat_supcon` or `InstanceCompatLoss`.

    Raises:
        ValueError: As `KnnGraph.walk_labels`, or a larger label.

    Example:
        >>> import torch
        >>> from fclearn import KnnGraph
        >>> from fclearn.positives import walk_positives
        >>> graph = KnnGraph.from_knn(torch.tensor([[1], [0], [1]]), torch.ones(3, 1)).normalize()
        >>> sets = walk_positives(graph, torch.tensor([0, 0, 1]), damping=0.5)
        >>> sets.col_indices[: sets.crow_indices[1]].tolist()  # the third leads to class 0
        [0, 1, 2]
        >>> weights = sets.log_weights[:3].exp()
        >>> [round(float(w), 2) for w in weights / weights.max()]
        [1.0, 1.0, 0.5]
    """
    num_classes = num_labels_of("labels", labels)
    crow, classes, values = graph.walk_labels(labels, damping, epsilon=epsilon)
    crow, rows, order = fcl_ext.csr_transpose(crow, classes, num_classes)
    weights = values[order].double()
    set_of_edge = torch.arange(num_classes).repeat_interleave(crow.diff())
    total = weights.new_zeros(num_classes).index_add_(0, set_of_edge, weights)
    log_weights = (weights / total[set_of_edge]).log().float()
    return fcl_ext.PositiveSets(crow, rows.long(), log_weights)
