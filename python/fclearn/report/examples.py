# SPDX-License-Identifier: Apache-2.0
"""Queries to look at, with their best hits in the old gallery, before and after the upgrade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation import CompatibilityReport, top_hits
from fclearn.evaluation._keys import PerRow
from fclearn.features import FeatureSource, as_tensor

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Hit:
    """One gallery image in a ranking.

    Attributes:
        image: Shape ``(H, W)`` or ``(H, W, 3)``, uint8.
        label: Name of its class.
        correct: Whether that is the query's class.
    """

    image: Image
    label: str
    correct: bool


@dataclass(frozen=True)
class RetrievalExample:
    """One query and its best hits.

    Attributes:
        image: The query, shape ``(H, W)`` or ``(H, W, 3)``, uint8.
        label: Name of its class.
        note: Why it is shown.
        old: Best hits of the old query in the old gallery, best first.
        new: Best hits of the new query in the old gallery.
    """

    image: Image
    label: str
    note: str
    old: tuple[Hit, ...]
    new: tuple[Hit, ...]


def pick_examples(report: CompatibilityReport, num_each: int = 2) -> list[tuple[int, str]]:
    """Choose queries that show the best, the middle and the worst of an upgrade.

    Args:
        report: Its average precisions per query decide.
        num_each: Queries of each kind.

    Returns:
        Query rows and why they were chosen: those with the largest, the median and the smallest
        change in average precision; equal changes in the order of the rows.
    """
    name = report.primary
    change = report.per_query["new/old"][name] - report.per_query["old/old"][name]
    order = np.flatnonzero(~np.isnan(change))
    order = order[np.argsort(-change[order], kind="stable")]
    num_each = min(num_each, max(1, len(order) // 3))
    middle = max(0, (len(order) - num_each) // 2)
    picks = {
        "gained most": order[:num_each],
        "typical": order[middle : middle + num_each],
        "lost most": order[len(order) - num_each :][::-1],
    }
    chosen: dict[int, str] = {}
    for note, rows in picks.items():
        for row in rows.tolist():
            chosen.setdefault(row, note)
    return list(chosen.items())


def make_examples(
    report: CompatibilityReport,
    *,
    old_query: FeatureSource,
    old_gallery: FeatureSource,
    new_query: FeatureSource,
    query_images: Image,
    gallery_images: Image,
    query_labels: NDArray[np.integer],
    gallery_labels: NDArray[np.integer],
    class_names: Sequence[str] | None = None,
    exclude_self: bool = False,
    query_ids: PerRow | None = None,
    gallery_ids: PerRow | None = None,
    query_groups: PerRow | None = None,
    gallery_groups: PerRow | None = None,
    metric: str = "cosine",
    k: int = 8,
    num_each: int = 2,
) -> list[RetrievalExample]:
    """Pick queries and look up their best hits, as `compatibility_report` ranks them.

    Args:
        report: Made from these features with ``per_query`` values.
        old_query: Shape ``(Q, D_old)``, as in `evaluate_retrieval`.
        old_gallery: Shape ``(G, D_old)``.
        new_query: Shape ``(Q, D_new)``.
        query_images: Shape ``(Q, H, W)`` or ``(Q, H, W, 3)``, uint8.
        gallery_images: Shape ``(G, …)``, likewise.
        query_labels: Shape ``(Q,)``, integers.
        gallery_labels: Shape ``(G,)``.
        class_names: Name of each label; the number without them.
        exclude_self: As in `evaluate_retrieval`, like the ids and groups.
        query_ids: Shape ``(Q,)``.
        gallery_ids: Shape ``(G,)``.
        query_groups: Shape ``(Q,)``.
        gallery_groups: Shape ``(G,)``.
        metric: ``"cosine"``, ``"ip"`` or ``"l2"``.
        k: Hits to show.
        num_each: Queries of each kind.

    Raises:
        ValueError: Images that do not fit the labels; as `evaluate_retrieval`.
    """
    for name, images, labels in (
        ("query_images", query_images, query_labels),
        ("gallery_images", gallery_images, gallery_labels),
    ):
        if len(images) != len(labels):
            raise ValueError(
                f"{name}: expected one image per label, {len(labels)}, got {len(images)}"
            )
    picks = pick_examples(report, num_each)
    rows = np.array([row for row, _ in picks], dtype=np.int64)

    def of_picks(values: PerRow | None) -> PerRow | None:
        return None if values is None else np.asarray(values)[rows]

    def name_of(label: int) -> str:
        return str(label) if class_names is None else class_names[label]

    def look_up(query: FeatureSource) -> NDArray[np.int64]:
        return top_hits(
            as_tensor(query, rows),
            old_gallery,
            k,
            exclude_self=exclude_self,
            query_ids=of_picks(query_ids),
            gallery_ids=gallery_ids,
            query_groups=of_picks(query_groups),
            gallery_groups=gallery_groups,
            metric=metric,
        )

    def as_hits(hits: NDArray[np.int64], label: int) -> tuple[Hit, ...]:
        return tuple(
            Hit(
                gallery_images[hit], name_of(int(gallery_labels[hit])), gallery_labels[hit] == label
            )
            for hit in hits[hits >= 0].tolist()
        )

    return [
        RetrievalExample(
            image=query_images[row],
            label=name_of(int(query_labels[row])),
            note=note,
            old=as_hits(old_hits, int(query_labels[row])),
            new=as_hits(new_hits, int(query_labels[row])),
        )
        for (row, note), old_hits, new_hits in zip(
            picks, look_up(old_query), look_up(new_query), strict=True
        )
    ]
