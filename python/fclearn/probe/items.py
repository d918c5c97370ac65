# SPDX-License-Identifier: Apache-2.0
"""What a probe is given: pairs of features of items, queries, and what is right for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fclearn.evaluation import Qrels
from fclearn.evaluation.types import PerRow
from fclearn.features import FeatureSource, as_tensor, check_rows


@dataclass(frozen=True, eq=False)
class ProbeQueries:
    """Real queries, apart from the items.

    Attributes:
        old: Features by the old model, shape ``(Q, D_old)``.
        new: By the new model, ``(Q, D_new)``.
        labels: Of the same kind as those of the items, ``(Q,)``; None with `Judgements`.
        ids: Items with a query's id, or of its group where items have groups, are not in its
            gallery; None: all are.
    """

    old: FeatureSource
    new: FeatureSource
    labels: PerRow | None = None
    ids: PerRow | None = None


@dataclass(frozen=True, eq=False)
class Judgements:
    """Which items are right for which query, where there are no classes.

    Attributes:
        qrels: By the ids below, or their TREC file; a grade above 0 is right.
        query_ids: Distinct, ``(Q,)``; compared as text.
        item_ids: Distinct, ``(N,)``.
    """

    qrels: Qrels | str | os.PathLike[str]
    query_ids: PerRow
    item_ids: PerRow


@dataclass(frozen=True)
class Items:
    """Items by both models.

    Attributes:
        sides: Features, ``{"old": (N, D_old), "new": (N, D_new)}``.
        own: What a query shares with the items that are not in its gallery, shape ``(N,)``: the
            item's group, else its row.
    """

    sides: Mapping[str, Tensor]
    own: NDArray[np.generic]

    @classmethod
    def build(cls, old: FeatureSource, new: FeatureSource, groups: PerRow | None) -> Items:
        """Check features and align them.

        Raises:
            TypeError: Features that are not floating.
            ValueError: A NaN, an infinity or a row of zeros; sides that are not aligned.
        """
        sides = {"old": unit_ready(old, "old"), "new": unit_ready(new, "new")}
        size = len(sides["old"])
        if len(sides["new"]) != size:
            raise ValueError(
                f"new: expected one row per row of old ({size}), got {len(sides['new'])}"
            )
        own = np.arange(size) if groups is None else np.asarray(groups)
        if own.shape != (size,):
            raise ValueError(f"groups: expected one per row ({size}), got shape {list(own.shape)}")
        return cls(sides, own)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.own)

    def queries_ready(self, queries: ProbeQueries) -> dict[str, Tensor]:
        """Features of real queries by side, checked against the items'.

        Raises:
            TypeError: Features that are not floating.
            ValueError: As `build`, or dims other than those of the items.
        """
        asked = {
            "old": unit_ready(queries.old, "queries.old"),
            "new": unit_ready(queries.new, "queries.new"),
        }
        for side, rows in asked.items():
            dim = self.sides[side].shape[1]
            if rows.shape[1] != dim:
                raise ValueError(
                    f"queries.{side}: expected {dim} dims as the items have, got {rows.shape[1]}"
                )
        if len(asked["old"]) != len(asked["new"]):
            raise ValueError(
                f"queries.new: expected one row per row of queries.old ({len(asked['old'])}), got "
                f"{len(asked['new'])}"
            )
        return asked


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
