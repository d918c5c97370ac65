# SPDX-License-Identifier: Apache-2.0
"""The ceiling of a space: what queries would find that stood where their class stands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.evaluation.retrieval import evaluate_retrieval


def oracle_gain(
    features: Tensor,
    labels: NDArray[np.int64],
    ids: NDArray[np.generic],
    *,
    metrics: Sequence[str] = ("map", "cmc@1"),
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """What each query would gain if it stood at its class's mean.

    A mean that held the searched items would find itself: queries stand at the mean of half of
    their class, chosen by a coin, and search for the other half, and the gain is over the queries
    themselves searching for that same half.

    Args:
        features: Of items that are queries and gallery, shape ``(N, D)``, floating.
        labels: Shape ``(N,)``, int64, 0 .. C - 1.
        ids: Shape ``(N,)``; items with a query's id, such as those of its group, are not in its
            gallery.
        metrics: As `evaluate_retrieval`.
        seed: Of the coin.

    Returns:
        Per metric the gain of each query, shape ``(N,)``; 0 where its class has no other half.

    Example:
        >>> features = torch.tensor([[1.0, 0.3], [1.0, -0.3], [0.3, 1.0], [-0.3, 1.0]])
        >>> gain = oracle_gain(features, np.array([0, 0, 1, 1]), np.arange(4))
        >>> sorted(gain), gain["map"].shape
        (['cmc@1', 'map'], (4,))
    """
    coin = np.random.default_rng(seed).integers(0, 2, len(labels))
    cell, other = 2 * labels + coin, 2 * labels + 1 - coin
    unit = torch.nn.functional.normalize(features, dim=1)
    sums = torch.zeros(2 * (int(labels.max()) + 1), unit.shape[1])
    sums.index_add_(0, torch.from_numpy(cell), unit)
    mean = sums[torch.from_numpy(other)]
    # Items whose class has no other half keep their own feature, and gain nothing.
    mean = torch.where(mean.any(1, keepdim=True), mean, unit)
    best, old = (
        evaluate_retrieval(
            query,
            features,
            query_labels=labels,
            gallery_labels=labels,
            exclude_self=True,
            query_ids=ids,
            gallery_ids=ids,
            query_groups=other,
            gallery_groups=cell,
            metrics=tuple(metrics),
            return_per_query=True,
        ).per_query
        for query in (mean, unit)
    )
    return {name: np.nan_to_num(best[name] - old[name]) for name in metrics}
