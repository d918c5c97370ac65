# SPDX-License-Identifier: Apache-2.0
"""What the functions of this package take and return, for whoever passes it on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fclearn.features import FeatureSource

Ints: TypeAlias = NDArray[np.int64]
#: Lower and upper bound.
Interval: TypeAlias = tuple[float, float]
#: One value per row: a tensor, an array or a sequence, of integers or of strings.
PerRow: TypeAlias = Tensor | NDArray[np.generic] | Sequence[int] | Sequence[str]
#: A label per row; or a collection of labels per row; or a bool per row and label, ``(N, L)``.
Labels: TypeAlias = PerRow | Sequence[Collection[int]] | Sequence[Collection[str]]


class RankingOptions(TypedDict, total=False):
    """Arguments of `evaluate_retrieval` that decide how a gallery is ranked, for passing on."""

    exclude_self: bool
    query_ids: PerRow | None
    gallery_ids: PerRow | None
    query_groups: PerRow | None
    gallery_groups: PerRow | None
    metric: str


@dataclass(frozen=True, eq=False)
class InOrder:
    """Features in another order of rows, without a copy: read as they are needed.

    Attributes:
        features: Whatever `fclearn.features.as_features` takes.
        rows: Row of ``features`` at each place, shape ``(N,)``, int64.
    """

    features: FeatureSource
    rows: NDArray[np.int64]


#: What evaluation reads features from.
RowSource: TypeAlias = FeatureSource | InOrder
