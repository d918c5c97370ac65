# SPDX-License-Identifier: Apache-2.0
"""What a probe's maps, heads and calibrations are fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fclearn.backfill import MERGED, MigrationSample, ScoreCalibration, fit_calibration
from fclearn.backfill.sample import NEW, OLD, sample_rows
from fclearn.clusters import kmeans_labels
from fclearn.probe.held import Split, has_company
from fclearn.probe.items import Items

_CALIBRATION_ROWS, _CALIBRATION_QUERIES = 10_000, 256
_ROWS_PER_CLUSTER = 20


@dataclass(frozen=True)
class FitPairs:
    """Pairs to fit on.

    Attributes:
        sides: Features, ``{"old": (F, D_old), "new": (F, D_new)}``.
        own: As `Items.own`, shape ``(F,)``.
        labels: Classes, shape ``(F,)``, int64; None: unknown.
        num_clusters: In place of unknown classes.
        seed: Of everything random.
    """

    sides: Mapping[str, Tensor]
    own: NDArray[np.generic]
    labels: NDArray[np.int64] | None
    num_clusters: int
    seed: int

    @classmethod
    def of(cls, items: Items, split: Split, clusters: int | None, seed: int) -> FitPairs:
        """The part of the items that is for fitting.

        Raises:
            ValueError: A number of clusters out of range, or clusters where classes are known.
        """
        size = int(split.is_fit.sum())
        if clusters is not None and split.fit_labels is not None:
            raise ValueError("clusters: expected none, as the items have labels")
        if clusters is not None and not 2 <= clusters <= size:
            raise ValueError(f"clusters: expected 2 to {size}, the rows to fit on, got {clusters}")
        rows = torch.from_numpy(split.is_fit)
        return cls(
            {side: values[rows] for side, values in items.sides.items()},
            items.own[split.is_fit],
            split.fit_labels,
            clusters or max(2, size // _ROWS_PER_CLUSTER),
            seed,
        )

    @cached_property
    def classes(self) -> Tensor:
        """Classes, or clusters of the old features in their place, shape ``(F,)``, int64.

        Raises:
            ModuleNotFoundError: Clusters are needed, and faiss is missing.
        """
        if self.labels is not None:
            return torch.from_numpy(self.labels)
        return torch.from_numpy(kmeans_labels(self.sides["old"], self.num_clusters, seed=self.seed))


def calibrate(pairs: FitPairs, queries: Mapping[str, Tensor] | None) -> ScoreCalibration:
    """From old to new scores, on pairs that are not right, or where that is unknown on all.

    Args:
        pairs: To fit on; without real queries, they are the queries, too.
        queries: Real ones, for pairs without classes.
    """
    rows = sample_rows(len(pairs.own), _CALIBRATION_ROWS, pairs.seed)
    old, new, own = pairs.sides["old"][rows], pairs.sides["new"][rows], pairs.own[rows]
    if pairs.labels is not None and has_company(pairs.labels[rows], own):
        labels = pairs.labels[rows]
        sample = MigrationSample.build(
            old_query=old,
            new_query=new,
            old_gallery=old,
            new_gallery=new,
            query_labels=labels,
            gallery_labels=labels,
            query_ids=own,
            gallery_ids=own,
        )
        return fit_calibration(sample, MERGED, seed=pairs.seed)
    # Real queries judge none of these rows, and rows alone in their class have no match: hardly a
    # pair in thousands can be right.
    sides = {"old": old, "new": new} if queries is None else queries
    asked = sample_rows(len(sides["old"]), _CALIBRATION_QUERIES, pairs.seed)
    apart = own[asked][:, None] != own if queries is None else np.True_
    source, target = (
        (F.normalize(sides[side][asked], dim=1) @ F.normalize(gallery, dim=1).T).numpy()[apart]
        for side, gallery in (("old", old), ("new", new))
    )
    return ScoreCalibration.fit(source=source, target=target, pair=f"{OLD} -> {NEW}")
