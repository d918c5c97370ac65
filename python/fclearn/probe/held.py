# SPDX-License-Identifier: Apache-2.0
"""What a probe measures on and what it fits on, apart from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fclearn.probe.items import Items, ProbeQueries
from fclearn.probe.ways import JudgementCounts


class Right(TypedDict, total=False):
    """What is right, as arguments of `evaluate_retrieval`: labels, or positives and grades."""

    query_labels: NDArray[np.int64]
    gallery_labels: NDArray[np.int64]
    positives: Sequence[Sequence[int]]
    grades: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Held:
    """Queries and a gallery for measuring, unseen in fitting.

    Attributes:
        query: Features of the queries by model, ``{"old": (Q, D_old), "new": (Q, D_new)}``.
        gallery: Of the gallery, ``{"old": (G, D_old), "new": (G, D_new)}``.
        right: Which gallery rows are right for a query.
        query_ids: Shape ``(Q,)``; gallery rows with the query's id are left out.
        gallery_ids: Shape ``(G,)``.
    """

    query: Mapping[str, Tensor]
    gallery: Mapping[str, Tensor]
    right: Right
    query_ids: NDArray[np.generic]
    gallery_ids: NDArray[np.generic]


@dataclass(frozen=True)
class Split:
    """What is measured on, and what is fitted on.

    Attributes:
        held: To measure on.
        is_fit: Items to fit on, bool ``(N,)``.
        fit_labels: Their classes, shape ``(F,)``, int64; None: unknown.
        by: What keeps the two apart, one of `SPLITS`.
        counts: Of the judgements; None where classes say what is right.
        classes: How many there are; None: unknown.
    """

    held: Held
    is_fit: NDArray[np.bool_]
    fit_labels: NDArray[np.int64] | None
    by: str
    counts: JudgementCounts | None = None
    classes: ClassCounts | None = None


class ClassCounts(NamedTuple):
    """How many classes are fitted on, and measured on.

    Attributes:
        fit: Classes of the items to fit on.
        test: Classes of the gallery.
        shared: Classes of both.
    """

    fit: int
    test: int
    shared: int

    @classmethod
    def of(cls, classes: NDArray[np.int64], is_fit: NDArray[np.bool_]) -> ClassCounts:
        """Count them.

        Args:
            classes: Of all items, shape ``(N,)``.
            is_fit: Items to fit on, shape ``(N,)``; the others are the gallery.
        """
        fit, test = np.unique(classes[is_fit]), np.unique(classes[~is_fit])
        return cls(len(fit), len(test), len(np.intersect1d(fit, test)))


@dataclass(frozen=True)
class Draw:
    """How items and queries are drawn.

    Attributes:
        fit_share: Share of the classes, or of the items, to fit on.
        query_limit: Most queries.
        seed: Of everything random.
    """

    fit_share: float
    query_limit: int
    seed: int


def has_company(labels: NDArray[np.int64], own: NDArray[np.generic]) -> bool:
    """Whether some row has another of its class that is not left out for it."""
    kinds = np.unique(own, return_inverse=True)[1].reshape(-1)
    return len(np.unique(np.stack([labels, kinds], 1), axis=0)) > len(np.unique(labels))


def left_out_keys(
    items: Items, queries: ProbeQueries, asked: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Keys of the asked queries and of gallery rows; a row with a query's key is left out."""
    if queries.ids is None:
        return np.full(len(asked), -1), np.arange(len(rows))
    return np.asarray(queries.ids)[asked], items.own[rows]
