# SPDX-License-Identifier: Apache-2.0
"""What is right, and what a ranking leaves out, by the manifests of stores or by judgements."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from fclearn.evaluation import Qrels
from fclearn.evaluation.types import Labels
from fclearn.features import FeatureStore
from fclearn.features.classes import row_labels

if TYPE_CHECKING:
    from fclearn.evaluation.types import RankingOptions


class Right(TypedDict, total=False):
    """What is right, as arguments of `evaluate_retrieval`: labels of both sides, or judgements."""

    query_labels: Labels
    gallery_labels: Labels
    qrels: Qrels


@dataclass(frozen=True)
class Truth:
    """What is right, by judgements if there are any, else by the manifests.

    Attributes:
        query: Of the queries.
        gallery: Of the gallery.
        qrels: Judgements by their ids, or None.
    """

    query: FeatureStore
    gallery: FeatureStore
    qrels: Qrels | None

    @classmethod
    def of(cls, query: FeatureStore, gallery: FeatureStore, qrels: Path | None) -> Truth:
        """Read the judgements, if any.

        Raises:
            ValueError: A file that holds none.
        """
        return cls(query, gallery, None if qrels is None else Qrels.read(qrels))

    def right(self) -> Right:
        """For evaluations.

        Raises:
            NoClassError: As `row_labels`.
        """
        if self.qrels is not None:
            return {"qrels": self.qrels}
        labels = row_labels(self.query, self.gallery)
        return {"query_labels": labels[0], "gallery_labels": labels[1]}

    def labels(self) -> tuple[Labels, Labels]:
        """Of queries and gallery, for reports: rows that share one are right.

        With judgements, the relevant documents of a query, and a document itself.

        Raises:
            NoClassError: As `row_labels`.
        """
        if self.qrels is None:
            query, gallery = row_labels(self.query, self.gallery)
            return query, gallery
        relevant = [
            {name for name, grade in self.qrels.grades.get(one, {}).items() if grade > 0}
            for one in self.query.ids
        ]
        return relevant, [{one} for one in self.gallery.ids]


def ranking_of(
    query: FeatureStore, gallery: FeatureStore, *, exclude_self: bool, use_groups: bool
) -> RankingOptions:
    """How stores say that a gallery is ranked: by their ids, groups and metric.

    Args:
        query: Of the queries.
        gallery: Of the gallery; its fingerprint tells the metric.
        exclude_self: Leave out the gallery row with the query's id.
        use_groups: Leave out gallery rows of the query's own group.

    Raises:
        ValueError: A store without groups, if they are used.
    """
    return {
        "exclude_self": exclude_self,
        "query_ids": query.ids,
        "gallery_ids": gallery.ids,
        "query_groups": groups_of(query) if use_groups else None,
        "gallery_groups": groups_of(gallery) if use_groups else None,
        "metric": gallery.fingerprint.metric,
    }


def groups_of(store: FeatureStore) -> np.ndarray:
    """Group of each row.

    Raises:
        ValueError: A store without groups.
    """
    if store.groups is None:
        raise ValueError(f"{store.path}: --use-groups needs a column 'group' in the manifest")
    return store.groups
