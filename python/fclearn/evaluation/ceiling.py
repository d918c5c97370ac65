# SPDX-License-Identifier: Apache-2.0
"""The ceiling of a space: what queries would find that stood where their class stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.evaluation.inputs import build_relevance
from fclearn.evaluation.retrieval import evaluate_retrieval


@dataclass(frozen=True)
class OracleGain:
    """What `oracle_gain` and `judged_oracle_gain` found.

    Attributes:
        per_query: By metric, the gain of each query, shape ``(Q,)``, float64; 0 where it cannot be
            measured.
        num_measured: Queries of which it can: they have something right to stand at and something
            else that is right to search for.
    """

    per_query: dict[str, NDArray[np.float64]]
    num_measured: int


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
) -> OracleGain:
    """What each query would gain if it stood at its class's mean.

    A mean that held the searched items would find itself: queries stand at the mean of half of
    their class, chosen by a coin, and search for the other half, and the gain is over the queries
    themselves searching for that same half.

    Args:
        features: Of the gallery, shape ``(N, D)``, floating.
        labels: Shape ``(N,)``, int64, 0 .. C - 1.
        ids: Shape ``(N,)``; items with a query's id, such as those of its group, are not in its
            gallery.
        query: Shape ``(Q, D)``, floating; with the next two, or none of the three: then the items
            are the queries.
        query_labels: Shape ``(Q,)``, int64, of the classes that ``labels`` are of.
        query_ids: Shape ``(Q,)``.
        metrics: As `evaluate_retrieval`.
        seed: Of the coin.

    Returns:
        The gain of each query; it cannot be measured where a class has no other half, or nothing in
        the gallery.

    Raises:
        TypeError: Labels that are not integers; as `evaluate_retrieval`.
        ValueError: One or two of the three that describe queries; shapes that disagree, a label
            below 0; as `evaluate_retrieval`.

    Example:
        >>> features = torch.eye(3)[torch.arange(12) % 3]
        >>> gain = oracle_gain(features, np.arange(12) % 3, np.arange(12))
        >>> float(gain.per_query["map"].sum())  # they find everything from where they stand
        0.0
    """
    given = {"query": query, "query_labels": query_labels, "query_ids": query_ids}
    named = [name for name, value in given.items() if value is not None]
    if named and len(named) < len(given):
        raise ValueError(
            f"{', '.join(given)}: expected all three or none, got {' and '.join(named)} alone"
        )
    _check_rows(features, "features", labels=labels, ids=ids)
    _check_classes("labels", labels)
    rng = np.random.default_rng(seed)
    cell = 2 * labels + rng.integers(0, 2, len(labels))
    if query is None or query_labels is None or query_ids is None:
        query, query_labels, query_ids = features, labels, ids
        other = cell ^ 1
    else:
        _check_rows(query, "query", query_labels=query_labels, query_ids=query_ids)
        _check_classes("query_labels", query_labels)
        other = 2 * query_labels + rng.integers(0, 2, len(query_labels))
    unit, asked = (torch.nn.functional.normalize(rows, dim=1) for rows in (features, query))
    num_classes = int(max(labels.max(initial=0), query_labels.max(initial=0))) + 1
    sums = torch.zeros(2 * num_classes, unit.shape[1], dtype=unit.dtype)
    sums.index_add_(0, torch.from_numpy(cell), unit)
    mean = sums[torch.from_numpy(other)]
    # Items whose class has no other half keep their own feature, and gain nothing.
    stands = mean.any(1, keepdim=True)
    mean = torch.where(stands, mean, asked)
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
    gain = {name: best[name] - old[name] for name in metrics}
    # A query that finds nothing right in its gallery has no value in any metric.
    measured = stands.numpy()[:, 0] & ~np.isnan(next(iter(gain.values())))
    return OracleGain(
        {name: np.nan_to_num(values) for name, values in gain.items()}, int(measured.sum())
    )


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
) -> OracleGain:
    """What each query would gain if it stood at the mean of its own right rows.

    As `oracle_gain`, where judgements take the place of classes: a query stands at the mean of half
    of its right rows, drawn at random, which are then neither right nor wrong, and searches for the
    other half.

    Args:
        features: Of the gallery, shape ``(G, D)``, floating.
        positives: Right gallery rows of each query, each once.
        ids: Shape ``(G,)``; rows with a query's id are not in its gallery.
        query: Shape ``(Q, D)``, floating.
        query_ids: Shape ``(Q,)``.
        grades: Of the positives; None: all are 1. A query stands at the plain mean all the same.
        metrics: As `evaluate_retrieval`.
        seed: Of the halves.

    Returns:
        The gain of each query; it cannot be measured where fewer than two rows are right.

    Raises:
        TypeError: As `evaluate_retrieval`.
        ValueError: Shapes that disagree; as `evaluate_retrieval`.

    Example:
        >>> features = torch.tensor([[1.0, 0.3], [1.0, -0.3], [0.3, 1.0]])
        >>> gain = judged_oracle_gain(
        ...     features, [[0, 1], [2]], np.arange(3),
        ...     query=torch.tensor([[0.1, 1.0], [0.0, 1.0]]), query_ids=np.array([-1, -1]))
        >>> gain.num_measured, gain.per_query["map"].tolist()
        (1, [0.5, 0.0])
    """
    _check_rows(features, "features", ids=ids)
    _check_rows(query, "query", query_ids=query_ids)
    sizes = len(query), len(features)
    build_relevance((None, None), None, positives, (None, None), sizes, grades)  # refuses bad ones
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
        return OracleGain(gain, 0)
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
    return OracleGain(gain, len(usable))


def ceiling_means(old: NDArray[np.float64], gain: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ceiling of a space: what its own queries reach and what they would gain, at most 1.

    The gain is measured in half of a gallery, so on top of a high value it can pass what is
    possible. It is the mean that is held to 1, not the value of each query: that would cut gains
    and leave losses as they are.

    Args:
        old: Mean metrics of the queries, of all of them or of resamples, any shape.
        gain: Means over the same queries of what `oracle_gain` or `judged_oracle_gain` found.

    Example:
        >>> ceiling_means(np.array([0.3, 0.9]), np.array([0.2, 0.2])).tolist()
        [0.5, 1.0]
    """
    return np.asarray(np.minimum(old + gain, 1.0))


def _taken(values: Sequence[float], places: NDArray[np.int64]) -> list[float]:
    return [float(values[place]) for place in places]


def _check_rows(rows: Tensor, of: str, **per_row: NDArray[np.generic]) -> None:
    """Refuse what does not have one value for each row."""
    for name, values in per_row.items():
        if np.shape(values) != (len(rows),):
            raise ValueError(
                f"{name}: expected one value for each of the {len(rows)} rows of {of}, got shape "
                f"{list(np.shape(values))}"
            )


def _check_classes(name: str, labels: NDArray[np.int64]) -> None:
    """Refuse what cannot number classes."""
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {labels.dtype}")
    if labels.min(initial=0) < 0:
        raise ValueError(f"{name}: expected classes from 0 on, got {labels.min()}")
