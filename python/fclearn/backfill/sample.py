# SPDX-License-Identifier: Apache-2.0
"""Queries and a gallery in both spaces: what the effect of a partial backfill is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fclearn.evaluation.grid import row_norms, to_grid
from fclearn.evaluation.inputs import build_relevance
from fclearn.evaluation.keys import Keys, join_keys
from fclearn.evaluation.relevance import Relevance
from fclearn.evaluation.types import Ints, PerRow
from fclearn.features import FeatureSource, as_tensor

Scores = NDArray[np.float32]
#: How a half-migrated gallery is served: new queries on old and new rows; or old queries on old
#: rows and new queries on new ones, merged by score.
MIXED, MERGED = "mixed", "merged"
#: Models of query and gallery.
OLD, CROSS, NEW = "old/old", "new/old", "new/new"


@dataclass(frozen=True, eq=False)
class MigrationSample:
    """Queries and gallery rows of which the features of both models are known.

    Make one with `build`. Rows are unit rows in memory: a sample of a gallery, not all of it.

    Attributes:
        old_query: float64 ``(Q, D_old)``; None: unknown, so that only one index can be served.
        new_query: float64 ``(Q, D_new)``.
        old_gallery: float64 ``(G, D_old)``.
        new_gallery: float64 ``(G, D_new)``.
        relevance: Which gallery rows are positives of a query.
        hidden: Rows that share one of these keys with a query do not exist for it.
    """

    old_query: Tensor | None
    new_query: Tensor
    old_gallery: Tensor
    new_gallery: Tensor
    relevance: Relevance
    hidden: tuple[Keys, ...]

    @classmethod
    def build(
        cls,
        *,
        new_query: FeatureSource,
        old_gallery: FeatureSource,
        new_gallery: FeatureSource,
        query_labels: PerRow | None = None,
        gallery_labels: PerRow | None = None,
        positives: Sequence[Sequence[int]] | None = None,
        grades: Sequence[Sequence[float]] | None = None,
        old_query: FeatureSource | None = None,
        query_ids: PerRow | None = None,
        gallery_ids: PerRow | None = None,
        query_groups: PerRow | None = None,
        gallery_groups: PerRow | None = None,
    ) -> MigrationSample:
        """Take features of both models, compared by the cosine.

        Args:
            new_query: Shape ``(Q, D_new)``, floating.
            old_gallery: Shape ``(G, D_old)``.
            new_gallery: The same items, shape ``(G, D_new)``.
            query_labels: Shape ``(Q,)``, integers or strings.
            gallery_labels: Shape ``(G,)``; rows of the query's label are its positives.
            positives: Instead of labels: right gallery rows of each query.
            grades: Of the positives, in the same order, above 0; None: all are 1.
            old_query: The same queries by the old model, shape ``(Q, D_old)``.
            query_ids: With
            gallery_ids: A gallery row with the query's id is left out.
            query_groups: With
            gallery_groups: Rows of the query's own group are left out.

        Raises:
            TypeError: Features that are not floating; labels, ids or groups that are neither
                integers nor strings.
            ValueError: An empty side, shapes or dims that disagree, NaN, infinite or zero rows, no
                query with a positive.

        Example:
            >>> import numpy as np
            >>> old, new = np.random.default_rng(0).normal(size=(2, 6, 4))
            >>> sample = MigrationSample.build(
            ...     new_query=new, old_gallery=old, new_gallery=new,
            ...     query_labels=[0, 0, 1, 1, 2, 2], gallery_labels=[0, 0, 1, 1, 2, 2],
            ...     query_ids=range(6), gallery_ids=range(6))
            >>> sample.num_queries, sample.num_gallery, sample.can_mix
            (6, 6, True)
        """
        rows = {
            "new_query": _unit(new_query, "new_query"),
            "old_gallery": _unit(old_gallery, "old_gallery"),
            "new_gallery": _unit(new_gallery, "new_gallery"),
        }
        if old_query is not None:
            rows["old_query"] = _unit(old_query, "old_query")
        for name, like, axis in (
            ("new_gallery", "old_gallery", 0),
            ("new_gallery", "new_query", 1),
            ("old_query", "new_query", 0),
            ("old_query", "old_gallery", 1),
        ):
            if name in rows and rows[name].shape[axis] != rows[like].shape[axis]:
                raise ValueError(
                    f"{name}: expected {rows[like].shape[axis]} {('rows', 'dims')[axis]} as {like} "
                    f"has, got {rows[name].shape[axis]}"
                )
        sizes = len(rows["new_query"]), len(rows["old_gallery"])
        hidden = []
        for what, pair in (
            ("ids", (query_ids, gallery_ids)),
            ("groups", (query_groups, gallery_groups)),
        ):
            if pair[0] is not None and pair[1] is not None:
                hidden.append(join_keys(what, pair[0], pair[1], sizes))
            elif pair[0] is not None or pair[1] is not None:
                raise ValueError(f"query_{what} and gallery_{what}: expected both or neither")
        sample = cls(
            old_query=rows.get("old_query"),
            new_query=rows["new_query"],
            old_gallery=rows["old_gallery"],
            new_gallery=rows["new_gallery"],
            relevance=build_relevance(
                (query_labels, gallery_labels), None, positives, (None, None), sizes, grades
            ),
            hidden=tuple(hidden),
        )
        if not any(sample.positives(part).any() for part in sample.blocks()):
            raise ValueError(
                f"query_labels: none of the {sizes[0]} queries has a positive in the gallery "
                "(a row of its label, or one named, that is not left out)"
            )
        return sample

    @property
    def num_queries(self) -> int:
        """Number of queries Q."""
        return len(self.new_query)

    @property
    def num_gallery(self) -> int:
        """Number of gallery rows G."""
        return len(self.old_gallery)

    @property
    def can_mix(self) -> bool:
        """Whether new queries can be compared with old rows: they are at least as wide."""
        return self.new_query.shape[1] >= self.old_gallery.shape[1]

    def blocks(self, elements: int = 2**22) -> list[slice]:
        """Cut the queries so that a block has about so many scores."""
        step = max(1, elements // self.num_gallery)
        return [
            slice(start, min(start + step, self.num_queries))
            for start in range(0, self.num_queries, step)
        ]

    def old_scores(self, part: slice) -> Scores:
        """Old queries against old rows, float32 ``(n, G)``.

        Raises:
            ValueError: A sample without old queries.
        """
        if self.old_query is None:
            raise ValueError("old_query: expected features of the queries by the old model")
        return _product(self.old_query[part], self.old_gallery)

    def cross_scores(self, part: slice) -> Scores:
        """New queries against old rows, in the first D_old dims, float32 ``(n, G)``.

        Raises:
            ValueError: New features that are narrower than the old ones.
        """
        dim = self.old_gallery.shape[1]
        if not self.can_mix:
            raise ValueError(
                f"new_query: expected at least the {dim} dims of old_gallery, got "
                f"{self.new_query.shape[1]}: these spaces can only be served as two indexes"
            )
        query = self.new_query[part, :dim]
        if dim < self.new_query.shape[1]:
            query = _on_grid(query, "new_query")
        return _product(query, self.old_gallery)

    def new_scores(self, part: slice) -> Scores:
        """New queries against new rows, float32 ``(n, G)``."""
        return _product(self.new_query[part], self.new_gallery)

    def left_out(self, part: slice) -> NDArray[np.bool_]:
        """Rows that do not exist for a query, bool ``(n, G)``."""
        mask = np.zeros((len(self.new_query[part]), self.num_gallery), dtype=bool)
        for keys in self.hidden:
            mask |= keys.query[part, None] == keys.gallery
        return mask

    def positives(self, part: slice) -> NDArray[np.bool_]:
        """Positives of each query, bool ``(n, G)``."""
        mask = np.zeros((len(self.new_query[part]), self.num_gallery), dtype=bool)
        for row, query in enumerate(range(self.num_queries)[part]):
            mask[row, self.relevance.positives(query)[0]] = True
        return np.asarray(mask & ~self.left_out(part))

    def grades(self, part: slice) -> NDArray[np.float64] | None:
        """How right each row is for a query, 0 where it is not, ``(n, G)``; None: all are 1."""
        if not self.relevance.graded:
            return None
        table = np.zeros((len(self.new_query[part]), self.num_gallery))
        for row, query in enumerate(range(self.num_queries)[part]):
            rows, grades = self.relevance.positives(query)
            table[row, rows] = 1.0 if grades is None else grades
        return table


def sample_rows(size: int, count: int, seed: int) -> Ints:
    """Up to ``count`` of ``size`` rows, drawn without replacement, ascending."""
    if count >= size:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).permutation(size)[:count])


def _product(query: Tensor, gallery: Tensor) -> Scores:
    return np.asarray((query @ gallery.T).float().numpy())


def _unit(features: FeatureSource, name: str) -> Tensor:
    rows = as_tensor(features)
    if len(rows) == 0:
        raise ValueError(f"{name}: expected at least one row, got an empty one")
    return _on_grid(rows.double(), name)


def _on_grid(rows: Tensor, name: str) -> Tensor:
    norms = row_norms(rows)[:, None]
    bad = (~norms.isfinite() | (norms == 0)).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        what = "has norm zero" if bool(norms[row] == 0) else "holds a NaN or infinite value"
        raise ValueError(f"{name}: row {row} {what}, so it has no cosine")
    return to_grid(rows.div(norms))
