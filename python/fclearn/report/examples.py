# SPDX-License-Identifier: Apache-2.0
"""Queries to look at, with their best hits in the old gallery, before and after the upgrade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fclearn.evaluation import CompatibilityReport, top_hits
from fclearn.evaluation.types import InOrder, Labels, RowSource
from fclearn.features import as_tensor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fclearn.evaluation.types import RankingOptions

Image = NDArray[np.uint8]


class Images(Protocol):
    """Images by row: an array, or anything that reads them when asked for."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, row: int, /) -> Image:
        """One of them, shape ``(H, W)`` or ``(H, W, 3)``, uint8."""
        ...


@dataclass(frozen=True)
class Hit:
    """One gallery item in a ranking.

    Attributes:
        image: Shape ``(H, W)`` or ``(H, W, 3)``, uint8; None where items are texts.
        label: Name of its class.
        correct: Whether it is a right answer.
        text: What it says; empty where items are pictures.
    """

    image: Image | None
    label: str
    correct: bool
    text: str = ""


@dataclass(frozen=True)
class RetrievalExample:
    """One query and its best hits.

    Attributes:
        image: The query, shape ``(H, W)`` or ``(H, W, 3)``, uint8; None where it is a text.
        label: Name of its class.
        note: Why it is shown.
        old: Best hits of the old query in the old gallery, best first.
        new: Best hits of the new query in the old gallery.
        text: The query; empty where it is a picture.
    """

    image: Image | None
    label: str
    note: str
    old: tuple[Hit, ...]
    new: tuple[Hit, ...]
    text: str = ""


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
    old_query: RowSource,
    old_gallery: RowSource,
    new_query: RowSource,
    query_labels: Labels,
    gallery_labels: Labels,
    query_images: Images | None = None,
    gallery_images: Images | None = None,
    query_texts: Sequence[str] | None = None,
    gallery_texts: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    k: int = 8,
    num_each: int = 2,
    **ranking: Unpack[RankingOptions],
) -> list[RetrievalExample]:
    """Pick queries and look up their best hits, as `compatibility_report` ranks them.

    Args:
        report: Made from these features with ``per_query`` values.
        old_query: Shape ``(Q, D_old)``, as in `evaluate_retrieval`.
        old_gallery: Shape ``(G, D_old)``.
        new_query: Shape ``(Q, D_new)``.
        query_labels: As there, ``(Q,)``: integers, strings or sets of either.
        gallery_labels: Shape ``(G,)``, likewise.
        query_images: Shape ``(Q, H, W)`` or ``(Q, H, W, 3)``, uint8, or `Images` that are read when
            asked for; None: there are texts.
        gallery_images: Shape ``(G, …)``, likewise.
        query_texts: What the queries say, ``(Q,)``.
        gallery_texts: What the gallery's items say, ``(G,)``.
        class_names: Name of each label; the label itself without them.
        k: Hits to show.
        num_each: Queries of each kind.
        **ranking: ``exclude_self``, ids, groups and ``metric``, as in `evaluate_retrieval`.

    Raises:
        ValueError: Neither images nor texts; images or texts that do not fit the labels; as
            `evaluate_retrieval`.
    """
    for name, items, labels in (
        ("query_images", query_images, query_labels),
        ("gallery_images", gallery_images, gallery_labels),
        ("query_texts", query_texts, query_labels),
        ("gallery_texts", gallery_texts, gallery_labels),
    ):
        if items is not None and len(items) != len(labels):
            kind = name.rpartition("_")[2].removesuffix("s")
            raise ValueError(
                f"{name}: expected one {kind} per label, {len(labels)}, got {len(items)}"
            )
    for one, other in ((query_images, gallery_images), (query_texts, gallery_texts)):
        if (one is None) != (other is None):
            raise ValueError("images and texts: expected those of queries and of the gallery")
    if query_images is None and query_texts is None:
        raise ValueError("query_images, query_texts: expected one of them")
    picks = pick_examples(report, num_each)
    rows = np.array([row for row, _ in picks], dtype=np.int64)
    query_names, gallery_names = (
        _Labels(query_labels, class_names),
        _Labels(gallery_labels, class_names),
    )
    options = ranking.copy()
    if (ids := ranking.get("query_ids")) is not None:
        options["query_ids"] = np.asarray(ids)[rows]
    if (groups := ranking.get("query_groups")) is not None:
        options["query_groups"] = np.asarray(groups)[rows]

    def look_up(query: RowSource) -> NDArray[np.int64]:
        if isinstance(query, InOrder):
            asked = as_tensor(query.features, query.rows[rows])
        else:
            asked = as_tensor(query, rows)
        return top_hits(asked, old_gallery, k, **options)

    def as_hits(hits: NDArray[np.int64], row: int) -> tuple[Hit, ...]:
        wanted = query_names[row]
        return tuple(
            Hit(
                None if gallery_images is None else gallery_images[hit],
                gallery_names.text(hit),
                not wanted.isdisjoint(gallery_names[hit]),
                "" if gallery_texts is None else str(gallery_texts[hit]),
            )
            for hit in hits[hits >= 0].tolist()
        )

    return [
        RetrievalExample(
            image=None if query_images is None else query_images[row],
            label=query_names.text(row),
            note=note,
            old=as_hits(old_hits, row),
            new=as_hits(new_hits, row),
            text="" if query_texts is None else str(query_texts[row]),
        )
        for (row, note), old_hits, new_hits in zip(
            picks, look_up(old_query), look_up(new_query), strict=True
        )
    ]


class _Labels:
    """Labels as sets, and in words."""

    def __init__(self, labels: Labels, class_names: Sequence[str] | None) -> None:
        self._labels, self._class_names = labels, class_names

    def __getitem__(self, row: int) -> frozenset[object]:
        label = self._labels[row]
        if isinstance(label, set | frozenset | list | tuple):
            return frozenset(label)
        if isinstance(label, np.ndarray | Tensor) and label.ndim:
            return frozenset(np.flatnonzero(np.asarray(label)).tolist())
        return frozenset([label.item() if isinstance(label, np.generic | Tensor) else label])

    def text(self, row: int) -> str:
        names = self._class_names
        return ", ".join(
            sorted(
                names[label] if names and isinstance(label, int) else str(label)
                for label in self[row]
            )
        )
