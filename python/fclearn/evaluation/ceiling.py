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
    query: Tensor | None = None,
    query_labels: NDArray[np.int64] | None = None,
    query_ids: NDArray[np.generic] | None = None,
    metrics: Sequence[str] = ("map", "cmc@1"),
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """What each query would gain if it stood at its class's mean.

    A mean that held the searched items would find itself: queries stand at the mean of half of
    their class, chosen by a coin, and search for the other half, and the gain is over the queries
    themselves searching for that same half.

    Args:
        features: Of the gallery, shape ``(N, D)``, floating.
        labels: Shape ``(N,)``, int64, 0 .. C - 1.
        ids: Shape ``(N,)``; items with a query's id, such as those of its group, are not in its
            gallery.
        query: Shape ``(Q, D)``; None, like the next two: the items are the queries.
        query_labels: Shape ``(Q,)``, int64.
        query_ids: Shape ``(Q,)``.
        metrics: As `evaluate_retrieval`.
        seed: Of the coin.

    Returns:
        Per metric the gain of each query, shape ``(Q,)``; 0 where its class has no other half, or
        nothing in the gallery.

    Example:
        >>> features = torch.tensor([[1.0, 0.3], [1.0, -0.3], [0.3, 1.0], [-0.3, 1.0]])
        >>> gain = oracle_gain(features, np.array([0, 0, 1, 1]), np.arange(4))
        >>> sorted(gain), gain["map"].shape
        (['cmc@1', 'map'], (4,))
    """
    rng = np.random.default_rng(seed)
    cell = 2 * labels + rng.integers(0, 2, len(labels))
    if query is None or query_labels is None or query_ids is None:
        query, query_labels, query_ids = features, labels, ids
        other = cell ^ 1
    else:
        other = 2 * query_labels + rng.integers(0, 2, len(query_labels))
    unit, asked = (torch.nn.functional.normalize(rows, dim=1) for rows in (features, query))
    sums = torch.zeros(2 * (int(max(labels.max(), query_labels.max())) + 1), unit.shape[1])
    sums.index_add_(0, torch.from_numpy(cell), unit)
    mean = sums[torch.from_numpy(other)]
    # Items whose class has no other half keep their own feature, and gain nothing.
    mean = torch.where(mean.any(1, keepdim=True), mean, asked)
    best, old = (
        evaluate_retrieval(
            rows,
            features,
            query_labels=query_labels,
            gallery_labels=labels,
            exclude_self=True,
            query_ids=query_ids,
            gallery_ids=ids,
            query_groups=other,
            gallery_groups=cell,
            metrics=tuple(metrics),
            return_per_query=True,
        ).per_query
        for rows in (mean, asked)
    )
    return {name: np.nan_to_num(best[name] - old[name]) for name in metrics}


def judged_oracle_gain(
    features: Tensor,
    positives: Sequence[Sequence[int]],
    ids: NDArray[np.generic],
    *,
    query: Tensor,
    query_ids: NDArray[np.generic],
    grades: Sequence[Sequence[float]] | None = None,
    metrics: Sequence[str] = ("map", "cmc@1"),
    seed: int = 0,
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """What each query would gain if it stood at the mean of its own right rows.

    As `oracle_gain`, where judgements take the place of classes: a query stands at the mean of half
    of its right rows, drawn at random, which are then neither right nor wrong, and searches for the
    other half.

    Args:
        features: Of the gallery, shape ``(G, D)``, floating.
        positives: Right gallery rows of each query.
        ids: Shape ``(G,)``; rows with a query's id are not in its gallery.
        query: Shape ``(Q, D)``.
        query_ids: Shape ``(Q,)``.
        grades: Of the positives; None: all are 1. A query stands at the plain mean all the same.
        metrics: As `evaluate_retrieval`.
        seed: Of the halves.

    Returns:
        Per metric the gain of each query, shape ``(Q,)``, 0 for those with fewer than two right
        rows; and how many have two.

    Example:
        >>> features = torch.tensor([[1.0, 0.3], [1.0, -0.3], [0.3, 1.0]])
        >>> gain, measured = judged_oracle_gain(
        ...     features, [[0, 1], [2]], np.arange(3),
        ...     query=torch.tensor([[0.1, 1.0], [0.0, 1.0]]), query_ids=np.array([-1, -1]))
        >>> measured, gain["map"].tolist()
        (1, [0.5, 0.0])
    """
    rng = np.random.default_rng(seed)
    unit = torch.nn.functional.normalize(features, dim=1)
    stood: list[list[int]] = []
    sought: list[list[int]] = []
    worth: list[list[float]] = []
    for at, (right, own) in enumerate(zip(positives, query_ids, strict=True)):
        rows = np.asarray(right, dtype=np.int64)
        drawn = rng.permutation(np.flatnonzero(ids[rows] != own))
        first, rest = np.split(drawn, [len(drawn) // 2])
        stood.append(rows[first].tolist())
        sought.append(rows[rest].tolist())
        worth.append(np.ones(len(rest)).tolist() if grades is None else _taken(grades[at], rest))
    gain = {name: np.zeros(len(positives)) for name in metrics}
    usable = np.flatnonzero([len(rows) > 0 for rows in stood])
    if len(usable) == 0:
        return gain, 0
    mean = torch.stack([unit[stood[at]].mean(0) for at in usable])
    asked = torch.nn.functional.normalize(query[torch.from_numpy(usable)], dim=1)
    # Rows that cancel out have no direction to stand at.
    mean = torch.where(mean.any(1, keepdim=True), mean, asked)
    best, old = (
        evaluate_retrieval(
            rows,
            features,
            positives=[sought[at] for at in usable],
            grades=[worth[at] for at in usable],
            junk=[stood[at] for at in usable],
            exclude_self=True,
            query_ids=query_ids[usable],
            gallery_ids=ids,
            metrics=tuple(metrics),
            return_per_query=True,
        ).per_query
        for rows in (mean, asked)
    )
    for name in metrics:
        gain[name][usable] = best[name] - old[name]
    return gain, len(usable)


def _taken(values: Sequence[float], places: NDArray[np.int64]) -> list[float]:
    return [float(values[place]) for place in places]
