# SPDX-License-Identifier: Apache-2.0
"""What a probe measures on: items and queries of classes unseen in fitting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fclearn.backfill.sample import sample_rows
from fclearn.evaluation._keys import PerRow
from fclearn.features import FeatureSource, as_tensor, check_rows


@dataclass(frozen=True, eq=False)
class ProbeQueries:
    """Real queries, apart from the items.

    Attributes:
        old: Features by the old model, shape ``(Q, D_old)``.
        new: By the new model, ``(Q, D_new)``.
        labels: Of the same kind as those of the items, ``(Q,)``.
        ids: Items with a query's id, or of its group where items have groups, are not in its
            gallery; None: all are.
    """

    old: FeatureSource
    new: FeatureSource
    labels: PerRow
    ids: PerRow | None = None


@dataclass(frozen=True)
class Held:
    """Items for measuring, unseen in fitting.

    Attributes:
        query: Features of the queries by model, ``{"old": (Q, D_old), "new": (Q, D_new)}``.
        gallery: Of the gallery, ``{"old": (G, D_old), "new": (G, D_new)}``.
        query_labels: Shape ``(Q,)``, int64.
        gallery_labels: Shape ``(G,)``, int64.
        query_ids: Shape ``(Q,)``; gallery rows with the query's id are left out.
        gallery_ids: Shape ``(G,)``.
    """

    query: Mapping[str, Tensor]
    gallery: Mapping[str, Tensor]
    query_labels: NDArray[np.int64]
    gallery_labels: NDArray[np.int64]
    query_ids: NDArray[np.generic]
    gallery_ids: NDArray[np.generic]


def unit_ready(features: FeatureSource, name: str) -> Tensor:
    """Features as a tensor, every row with a direction.

    Raises:
        TypeError: Features that are not floating.
        ValueError: A NaN, an infinity or a row of zeros; the first such row is named.
    """
    zeros = check_rows(features, name)
    if len(zeros):
        raise ValueError(f"{name}: row {zeros[0]} has norm zero, so it has no direction")
    return as_tensor(features)


def held_items(
    sides: dict[str, Tensor],
    classes: NDArray[np.int64],
    own: NDArray[np.generic],
    is_test: NDArray[np.bool_],
    query_limit: int,
    seed: int,
) -> Held:
    """The held-out items, each a query; a group holds its own items, so it serves as their id."""
    rows = np.flatnonzero(is_test)
    asked = rows[sample_rows(len(rows), query_limit, seed)]
    return Held(
        query={side: values[asked] for side, values in sides.items()},
        gallery={side: values[rows] for side, values in sides.items()},
        query_labels=classes[asked],
        gallery_labels=classes[rows],
        query_ids=own[asked],
        gallery_ids=own[rows],
    )


def real_queries(
    sides: dict[str, Tensor],
    classes: NDArray[np.int64],
    own: NDArray[np.generic],
    is_test: NDArray[np.bool_],
    query_limit: int,
    seed: int,
    queries: ProbeQueries,
    names: NDArray[np.generic],
) -> Held:
    """Real queries of the held-out classes, and the held-out items."""
    asked = {
        "old": unit_ready(queries.old, "queries.old"),
        "new": unit_ready(queries.new, "queries.new"),
    }
    labels = np.asarray(queries.labels)
    for side, rows in asked.items():
        if len(rows) != len(labels):
            raise ValueError(
                f"queries.{side}: expected one row per label ({len(labels)}), got {len(rows)}"
            )
        if rows.shape[1] != sides[side].shape[1]:
            raise ValueError(
                f"queries.{side}: expected {sides[side].shape[1]} dims as the items have, got "
                f"{rows.shape[1]}"
            )
    held_out = np.unique(classes[is_test])
    place = np.searchsorted(names, labels).clip(0, len(names) - 1)
    known = names[place] == labels
    # Queries of classes that no item has stay: nothing is right for them, and they are counted.
    number = np.where(known, place, len(names))
    usable = np.flatnonzero(~known | np.isin(number, held_out))
    if not len(usable):
        raise ValueError("queries.labels: expected some of the held-out classes, found none")
    usable = usable[sample_rows(len(usable), query_limit, seed)]
    ids = np.full(len(labels), -1) if queries.ids is None else np.asarray(queries.ids)
    none = queries.ids is None
    return Held(
        query={side: values[usable] for side, values in asked.items()},
        gallery={side: values[is_test] for side, values in sides.items()},
        query_labels=number[usable],
        gallery_labels=classes[is_test],
        query_ids=ids[usable],
        gallery_ids=np.arange(int(is_test.sum())) if none else own[is_test],
    )
