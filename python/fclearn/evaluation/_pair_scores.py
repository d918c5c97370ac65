# SPDX-License-Identifier: Apache-2.0
"""Scores of all pairs of a query and a gallery row, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation._pairs import have_positives
from fclearn.evaluation._rows import Rows, Scorer
from fclearn.evaluation._thresholds import ScoredPairs
from fclearn.evaluation.keys import Exclusion, Keys, exclusions, join_keys
from fclearn.evaluation.relevance import SameLabel
from fclearn.evaluation.types import PerRow, RowSource

_BATCH, _GALLERY_BATCH = 256, 16384


@dataclass(frozen=True)
class PairScores:
    """All visible pairs of a query and a gallery row; to be called for a pass over them.

    Attributes:
        scorer: Of the two sides.
        labels: A pair is genuine if they are equal.
        excluded: What hides pairs.
        sizes: Rows of query and gallery.
    """

    scorer: Scorer
    labels: Keys
    excluded: tuple[Exclusion, ...]
    sizes: tuple[int, int]

    @classmethod
    def of(
        cls,
        query: RowSource,
        gallery: RowSource,
        labels: tuple[PerRow, PerRow],
        exclude_self: bool,
        ids: tuple[PerRow | None, PerRow | None],
        metric: str,
    ) -> PairScores:
        """From what `evaluate_verification` is given.

        Raises:
            TypeError: As `evaluate_retrieval`.
            ValueError: As there.
        """
        rows = Rows(query, "query", ids[0]), Rows(gallery, "gallery", ids[1])
        sizes = rows[0].num_rows, rows[1].num_rows
        for name, size in zip(("query", "gallery"), sizes, strict=True):
            if size == 0:
                raise ValueError(f"{name}: expected at least one row, got shape [0, …]")
        keys = join_keys("labels", *labels, sizes)
        excluded = exclusions(exclude_self, ids, (None, None), sizes, same=query is gallery)
        return cls(Scorer(*rows, metric), keys, excluded, sizes)

    @property
    def unit(self) -> float:
        """What a score must be multiplied by."""
        return self.scorer.unit

    def __call__(self) -> Iterator[ScoredPairs]:
        """Yield all pairs."""
        for start in range(0, self.sizes[1], _GALLERY_BATCH):
            part = slice(start, min(start + _GALLERY_BATCH, self.sizes[1]))
            block = self.scorer.gallery(part)
            for first in range(0, self.sizes[0], _BATCH):
                some = np.arange(first, min(first + _BATCH, self.sizes[0]))
                scores = self.scorer.score(self.scorer.queries(some), block).cpu().numpy()
                keep = np.ones(scores.shape, dtype=bool)
                for exclusion in self.excluded:
                    keep &= ~exclusion.hidden(some, part).numpy()
                genuine = self.labels.hidden(some, part).numpy()
                yield ScoredPairs(scores[keep], genuine[keep], np.repeat(some, keep.sum(axis=1)))

    def have_genuine(self) -> NDArray[np.bool_]:
        """Whether each query has a genuine pair, shape ``(Q,)``."""
        return have_positives(SameLabel(self.labels), self.excluded)


def check_counts(num_genuine: int, num_impostor: int) -> None:
    """Refuse pairs of one kind alone.

    Raises:
        ValueError: No pair of one label, or none of two.
    """
    if num_genuine == 0 or num_impostor == 0:
        raise ValueError(
            "query_labels and gallery_labels: expected pairs of one label and pairs of two, got "
            f"{num_genuine} and {num_impostor}"
        )
