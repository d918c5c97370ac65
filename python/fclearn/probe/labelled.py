# SPDX-License-Identifier: Apache-2.0
"""What a probe measures on and fits on where labels say what is right: by class, or by item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fclearn.backfill.sample import sample_rows
from fclearn.evaluation.keys import join_keys
from fclearn.evaluation.types import PerRow
from fclearn.probe.held import ClassCounts, Draw, Held, Split, has_company, left_out_keys
from fclearn.probe.items import Items, ProbeQueries
from fclearn.probe.ways import BY_CLASSES, BY_ITEMS

_OPEN, _FIT, _TEST = -1, 0, 1


@dataclass(frozen=True)
class _Asked:
    """Real queries, checked.

    Attributes:
        given: As they came.
        sides: Features, ``{"old": (Q, D_old), "new": (Q, D_new)}``.
        classes: Numbers of their classes, shape ``(Q,)``, int64; C for one that no item has.
    """

    given: ProbeQueries
    sides: dict[str, Tensor]
    classes: NDArray[np.int64]


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
    names, classes = _numbered(items, labels)
    is_fit = choose_classes(classes, draw)
    if queries is None:
        held = _held_items(items, classes, ~is_fit, draw, "several items")
    else:
        asked = _numbered_queries(items, names, queries)
        # Queries of classes that no item has stay: nothing is right for them, and they are counted.
        usable = np.isin(asked.classes, np.append(classes[~is_fit], len(names)))
        if not usable.any():
            raise ValueError("queries.labels: expected some of the held-out classes, found none")
        held = _real_queries(items, classes, ~is_fit, asked, usable, draw)
    counts = ClassCounts.of(classes, is_fit)
    return Split(held, is_fit, classes[is_fit], BY_CLASSES, classes=counts)


def split_by_item(items: Items, labels: PerRow, queries: ProbeQueries | None, draw: Draw) -> Split:
    """Fit on some items, of all classes that have several; the others are the gallery.

    Items of a group stay together. Real queries are of any class, but those that share an id or a
    group with an item fitted on are not asked.

    Args:
        items: All of them.
        labels: Class of each, shape ``(N,)``.
        queries: Real ones; None: the held-out items are queries.
        draw: How to draw.

    Raises:
        TypeError: Ids of queries and items of different kinds.
        ValueError: Labels or queries that are not aligned; as `choose_items`; held-out items that
            are all alone in their class, or no query but of items fitted on.
    """
    names, classes = _numbered(items, labels)
    is_fit = choose_items(classes, items.own, draw)
    if queries is None:
        wanted = "three items or more, of as many groups where items have groups"
        held = _held_items(items, classes, ~is_fit, draw, wanted)
    else:
        asked = _numbered_queries(items, names, queries)
        usable = ~_fitted_on(items, is_fit, asked)
        if not usable.any():
            raise ValueError("queries.ids: expected some of no item fitted on, found none")
        held = _real_queries(items, classes, ~is_fit, asked, usable, draw)
    counts = ClassCounts.of(classes, is_fit)
    return Split(held, is_fit, classes[is_fit], BY_ITEMS, classes=counts)


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


def choose_items(
    classes: NDArray[np.int64], own: NDArray[np.generic], draw: Draw
) -> NDArray[np.bool_]:
    """Which items are to fit on, bool ``(N,)``: ``fit_share`` of the groups of every class.

    A class of two groups has one on either side, one of more at least one to fit on and two to
    measure on: so what is asked for can be found, and its class is one that was fitted on. Where
    groups hold several classes, this is done as well as they allow.

    Args:
        classes: Of each item, shape ``(N,)``, int64, 0 .. C - 1, none of them empty.
        own: As `Items.own`: what belongs together, shape ``(N,)``.
        draw: How to draw.

    Raises:
        ValueError: Fewer than two classes, fewer than two items to fit on, or none to measure on.
    """
    count = int(classes.max()) + 1 if len(classes) else 0
    if count < 2:
        raise ValueError(f"labels: expected at least 2 classes, got {count}")
    rng = np.random.default_rng(draw.seed)
    _, first, group = np.unique(own, return_index=True, return_inverse=True)
    num_groups = len(first)
    # Numbered at random, whatever their names are: groups of a class, by number, are in random
    # order.
    number = np.empty(num_groups, dtype=np.int64)
    number[np.argsort(first)] = rng.permutation(num_groups)
    group = number[group.reshape(-1)]
    pairs = np.unique(np.stack([classes, group], 1), axis=0)
    sizes = np.bincount(pairs[:, 0])
    groups_of = np.split(pairs[:, 1], np.cumsum(sizes)[:-1])
    side = np.full(num_groups, _OPEN)
    # Small classes first, as they leave the least choice. What rounding gives to one it takes from
    # the next, so that of many small ones the share is right, too.
    over = rng.random() - 0.5
    for one in np.lexsort((rng.random(count), sizes)):
        groups, size = groups_of[one], int(sizes[one])
        exact = draw.fit_share * size + over
        rounded = round(exact)
        over = exact - rounded
        num_fit = min(max(rounded, min(1, size // 2)), size - min(2, size - 1))
        undecided = groups[side[groups] == _OPEN]
        missing = max(0, num_fit - int((side[groups] == _FIT).sum()))
        side[undecided[:missing]] = _FIT
        side[undecided[missing:]] = _TEST
    is_fit = np.asarray(side[group] == _FIT)
    if is_fit.sum() < 2 or is_fit.all():
        raise ValueError(
            f"labels: expected at least 2 items to fit on and 1 to test, got {len(is_fit)} items "
            f"in {num_groups} groups, of which {is_fit.sum()} would be fitted on"
        )
    return is_fit


def _numbered(items: Items, labels: PerRow) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Names of the classes, in order, and each item's place among them."""
    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    classes = classes.reshape(-1)
    for side, rows in items.sides.items():
        if len(rows) != len(classes):
            raise ValueError(
                f"{side}: expected one row per label ({len(classes)}), got {len(rows)}"
            )
    return names, classes


def _numbered_queries(items: Items, names: NDArray[np.generic], queries: ProbeQueries) -> _Asked:
    """Real queries, their classes numbered as those of the items."""
    sides = items.queries_ready(queries)
    if queries.labels is None:
        raise ValueError("queries.labels: expected one per query, as the items have labels")
    labels = np.asarray(queries.labels)
    for side, rows in sides.items():
        if len(rows) != len(labels):
            raise ValueError(
                f"queries.{side}: expected one row per label ({len(labels)}), got {len(rows)}"
            )
    place = np.searchsorted(names, labels).clip(0, len(names) - 1)
    return _Asked(queries, sides, np.where(names[place] == labels, place, len(names)))


def _fitted_on(items: Items, is_fit: NDArray[np.bool_], asked: _Asked) -> NDArray[np.bool_]:
    """Which queries share an id, or a group, with an item fitted on."""
    if asked.given.ids is None:
        return np.zeros(len(asked.classes), dtype=bool)
    fitted = items.own[is_fit]
    keys = join_keys("ids", asked.given.ids, fitted, (len(asked.classes), len(fitted)))
    return np.isin(keys.query, keys.gallery)


def _held_items(
    items: Items,
    classes: NDArray[np.int64],
    is_test: NDArray[np.bool_],
    draw: Draw,
    wanted: str,
) -> Held:
    """The held-out items, each a query; a group holds its own items, so it serves as their id.

    ``wanted`` says how many items of a class it takes.
    """
    rows = np.flatnonzero(is_test)
    if not has_company(classes[rows], items.own[rows]):
        raise ValueError(
            f"labels: expected classes of {wanted}, but each of the {len(rows)} items held "
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
    classes: NDArray[np.int64],
    is_test: NDArray[np.bool_],
    asked: _Asked,
    usable: NDArray[np.bool_],
    draw: Draw,
) -> Held:
    """Those of the real queries that may be asked, and the held-out items."""
    chosen = np.flatnonzero(usable)
    chosen = chosen[sample_rows(len(chosen), draw.query_limit, draw.seed)]
    query_ids, gallery_ids = left_out_keys(items, asked.given, chosen, np.flatnonzero(is_test))
    return Held(
        query={side: values[chosen] for side, values in asked.sides.items()},
        gallery={side: values[is_test] for side, values in items.sides.items()},
        right={"query_labels": asked.classes[chosen], "gallery_labels": classes[is_test]},
        query_ids=query_ids,
        gallery_ids=gallery_ids,
    )
