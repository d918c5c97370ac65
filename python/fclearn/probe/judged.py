# SPDX-License-Identifier: Apache-2.0
"""What a probe measures on and fits on where judgements of real queries say what is right."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation import Qrels
from fclearn.features.ids import row_of_id
from fclearn.probe.held import Draw, Held, Split, left_out_keys
from fclearn.probe.items import Items, Judgements, ProbeQueries
from fclearn.probe.ways import BY_ITEMS, JudgementCounts

_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


def split_by_judgement(
    items: Items, judgements: Judgements, queries: ProbeQueries, draw: Draw
) -> Split:
    """Fit on items that no asked query judges; all others are the gallery.

    As many queries are asked, in random order, as leave ``fit_share`` of the items unjudged; where
    judgements are few, that is all of them. Nor are items fitted on that share a group with a
    judged one, or an id or group with an asked query.

    Args:
        items: All of them.
        judgements: What is right.
        queries: Whom to ask.
        draw: How to draw.

    Raises:
        ValueError: Ids that repeat or are not one per row, judgements that share no query or no
            relevant row with them, one query that judges too many items.
    """
    asked = items.queries_ready(queries)
    if queries.labels is not None:
        raise ValueError("queries.labels: expected none, as judgements say what is right")
    for name, ids, size in (
        ("query_ids", judgements.query_ids, len(asked["old"])),
        ("item_ids", judgements.item_ids, len(items)),
        ("queries.ids", queries.ids, len(asked["old"])),
    ):
        if ids is not None and len(ids) != size:
            raise ValueError(f"{name}: expected one per row ({size}), got {len(ids)}")
    qrels = judgements.qrels
    if not isinstance(qrels, Qrels):
        qrels = Qrels.read(Path(qrels))
    names = [str(one) for one in np.asarray(judgements.query_ids).tolist()]
    relevance = qrels.relevance(names, np.asarray(judgements.item_ids).tolist())
    usable = np.flatnonzero(relevance.counts > 0)
    if not len(usable):
        raise ValueError(f"qrels: none of the {len(names)} queries has a relevant item")
    order = np.random.default_rng(draw.seed).permutation(usable)[: draw.query_limit]
    touched = _touched(items, judgements, qrels, queries, [names[at] for at in order], order)
    num_fit = round(draw.fit_share * len(items))
    count = _affordable(touched, len(items) - num_fit)
    if count == 0 or num_fit < 2:
        raise ValueError(
            f"qrels: expected at least 2 of the {len(items)} items to fit on, and judged ones "
            f"beside {draw.fit_share:g} of them: the first query alone judges {len(touched[0])}"
        )
    chosen = np.sort(order[:count])
    is_free = np.ones(len(items), dtype=bool)
    is_free[np.concatenate(touched[:count])] = False
    free = np.flatnonzero(is_free)
    is_fit = np.zeros(len(items), dtype=bool)
    is_fit[np.random.default_rng(draw.seed).permutation(free)[:num_fit]] = True
    gallery = np.flatnonzero(~is_fit)
    place = np.full(len(items), -1)
    place[gallery] = np.arange(len(gallery))
    query_ids, gallery_ids = left_out_keys(items, queries, chosen, gallery)
    right = [relevance.positives(int(at)) for at in chosen]
    held = Held(
        query={side: values[chosen] for side, values in asked.items()},
        gallery={side: values[gallery] for side, values in items.sides.items()},
        right={
            "positives": [place[rows].tolist() for rows, _ in right],
            "grades": [grades.tolist() for _, grades in right],
        },
        query_ids=query_ids,
        gallery_ids=gallery_ids,
    )
    here = set(names)
    counts = JudgementCounts(
        queries_without_features=sum(name not in here for name in qrels.grades),
        queries_without_relevant=len(names) - len(usable),
        queries_not_asked=len(usable) - count,
        relevant_not_among_items=relevance.num_missing,
    )
    return Split(held, is_fit, None, BY_ITEMS, counts)


def _touched(
    items: Items,
    judgements: Judgements,
    qrels: Qrels,
    queries: ProbeQueries,
    names: list[str],
    order: NDArray[np.int64],
) -> list[NDArray[np.int64]]:
    """Items that each query judges, right or wrong, their groups, and its own id or group."""
    rows = row_of_id(np.asarray(judgements.item_ids).tolist(), "item_ids")
    by_own = np.argsort(items.own, kind="stable")
    ordered = items.own[by_own]
    found = []
    for name, query in zip(names, order, strict=True):
        judged = [rows[item] for item in qrels.grades[name] if item in rows]
        keys = np.unique(items.own[judged])
        if queries.ids is not None:
            keys = np.append(keys, np.asarray(queries.ids)[query])
        first, last = (np.searchsorted(ordered, keys, side) for side in _SIDES)
        spans = [by_own[a:b] for a, b in zip(first, last, strict=True)]
        found.append(np.unique(np.concatenate(spans)))
    return found


def _affordable(touched: list[NDArray[np.int64]], room: int) -> int:
    """How many of the lists, from the first on, have at most so many different items."""
    query = np.repeat(np.arange(len(touched)), [len(each) for each in touched])
    _, first = np.unique(np.concatenate(touched), return_index=True)
    fresh = np.bincount(query[first], minlength=len(touched))
    return int((np.cumsum(fresh) <= room).sum())
