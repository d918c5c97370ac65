# SPDX-License-Identifier: Apache-2.0
"""What a probe measures on and what it fits on, apart from each other by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fclearn.backfill.sample import sample_rows
from fclearn.evaluation.types import PerRow
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
        counts: Of the judgements; None where classes say what is right.
        num_fit_classes: Classes of the items to fit on; None: unknown.
        num_test_classes: Classes of the other items; None: unknown.
    """

    held: Held
    is_fit: NDArray[np.bool_]
    fit_labels: NDArray[np.int64] | None
    counts: JudgementCounts | None = None
    num_fit_classes: int | None = None
    num_test_classes: int | None = None


@dataclass(frozen=True)
class Draw:
    """How items and queries are drawn.

    Attributes:
        fit_share: Share of the classes, or of the items where there are none, to fit on.
        query_limit: Most queries.
        seed: Of everything random.
    """

    fit_share: float
    query_limit: int
    seed: int


def split_by_class(items: Items, labels: PerRow, queries: ProbeQueries | None, draw: Draw) -> Split:
    """Fit on the items of some classes; those of the others are the gallery.

    Args:
        items: All of them.
        labels: Class of each, shape ``(N,)``.
        queries: Real ones; None: the held-out items are queries.
        draw: How to draw.

    Raises:
        ValueError: Labels or queries that are not aligned, fewer than two classes on either side,
            no query of a held-out class.
    """
    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    classes = classes.reshape(-1)
    for side, rows in items.sides.items():
        if len(rows) != len(classes):
            raise ValueError(
                f"{side}: expected one row per label ({len(classes)}), got {len(rows)}"
            )
    is_fit = choose_classes(classes, draw)
    if queries is None:
        held = _held_items(items, classes, ~is_fit, draw)
    else:
        held = _real_queries(items, (names, classes), ~is_fit, queries, draw)
    num_fit = len(np.unique(classes[is_fit]))
    return Split(
        held,
        is_fit,
        classes[is_fit],
        num_fit_classes=num_fit,
        num_test_classes=len(names) - num_fit,
    )


def choose_classes(classes: NDArray[np.int64], draw: Draw) -> NDArray[np.bool_]:
    """Which items are of the classes to fit on, bool ``(N,)``.

    Raises:
        ValueError: Fewer than two classes on either side.
    """
    count = int(classes.max()) + 1 if len(classes) else 0
    chosen = round(draw.fit_share * count)
    if chosen < 2 or count - chosen < 2:
        raise ValueError(
            f"labels: expected at least 2 classes to fit and 2 to test, got {count} in all"
        )
    return np.asarray(np.random.default_rng(draw.seed).permutation(count)[classes] < chosen)


def _held_items(
    items: Items, classes: NDArray[np.int64], is_test: NDArray[np.bool_], draw: Draw
) -> Held:
    """The held-out items, each a query; a group holds its own items, so it serves as their id."""
    rows = np.flatnonzero(is_test)
    if not has_company(classes[rows], items.own[rows]):
        raise ValueError(
            f"labels: expected classes of several items, but each of the {len(rows)} items held "
            "out is alone in its class, so that no query has anything to find"
        )
    asked = rows[sample_rows(len(rows), draw.query_limit, draw.seed)]
    return Held(
        query={side: values[asked] for side, values in items.sides.items()},
        gallery={side: values[rows] for side, values in items.sides.items()},
        right={"query_labels": classes[asked], "gallery_labels": classes[rows]},
        query_ids=items.own[asked],
        gallery_ids=items.own[rows],
    )


def _real_queries(
    items: Items,
    named: tuple[NDArray[np.generic], NDArray[np.int64]],
    is_test: NDArray[np.bool_],
    queries: ProbeQueries,
    draw: Draw,
) -> Held:
    """Real queries of the held-out classes, and the held-out items."""
    names, classes = named
    asked = items.queries_ready(queries)
    if queries.labels is None:
        raise ValueError("queries.labels: expected one per query, as the items have labels")
    labels = np.asarray(queries.labels)
    for side, rows in asked.items():
        if len(rows) != len(labels):
            raise ValueError(
                f"queries.{side}: expected one row per label ({len(labels)}), got {len(rows)}"
            )
    held_out = np.unique(classes[is_test])
    place = np.searchsorted(names, labels).clip(0, len(names) - 1)
    known = names[place] == labels
    # Queries of classes that no item has stay: nothing is right for them, and they are counted.
    number = np.where(known, place, len(names))
    usable = np.flatnonzero(~known | np.isin(number, held_out))
    if not len(usable):
        raise ValueError("queries.labels: expected some of the held-out classes, found none")
    usable = usable[sample_rows(len(usable), draw.query_limit, draw.seed)]
    query_ids, gallery_ids = left_out_keys(items, queries, usable, np.flatnonzero(is_test))
    return Held(
        query={side: values[usable] for side, values in asked.items()},
        gallery={side: values[is_test] for side, values in items.sides.items()},
        right={"query_labels": number[usable], "gallery_labels": classes[is_test]},
        query_ids=query_ids,
        gallery_ids=gallery_ids,
    )


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
