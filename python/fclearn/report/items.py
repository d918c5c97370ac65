# SPDX-License-Identifier: Apache-2.0
"""Which queries and gallery rows a report measured, so that only alike ones stand side by side."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fclearn._files import replacing
from fclearn.evaluation.types import Labels, PerRow

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fclearn.evaluation.types import RankingOptions

PER_QUERY_FILE = "per_query.npz"

#: ``values[entry][metric]``: float64 ``(Q,)``, NaN where a query was skipped.
PerQuery = dict[str, dict[str, NDArray[np.float64]]]


@dataclass(frozen=True)
class Items:
    """What was measured on; equal for two reports whose numbers may be compared.

    Attributes:
        queries: Digest of ids, labels and groups of the queries, whatever their order.
        gallery: That of the gallery.
        protocol: How they were compared, JSON values: the metric of the space, and what was left
            out of a query's ranking.
        query_ids: In the order of the values per query.
    """

    queries: str
    gallery: str
    protocol: Mapping[str, object]
    query_ids: tuple[str, ...] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, object]:
        """All but the ids, ready for JSON."""
        return {
            "queries": self.queries,
            "gallery": self.gallery,
            "protocol": dict(self.protocol),
        }


def describe_items(
    query_labels: Labels, gallery_labels: Labels, **ranking: Unpack[RankingOptions]
) -> Items:
    """Describe what a report measured.

    Args:
        query_labels: What is right, as in `evaluate_retrieval`, ``(Q,)``.
        gallery_labels: Likewise, ``(G,)``.
        **ranking: As there; ``query_ids`` and ``gallery_ids`` are needed.

    Raises:
        ValueError: No ids, or not one for each label.

    Example:
        >>> one = describe_items([0, 1], [1], query_ids=["a", "b"], gallery_ids=["c"])
        >>> one == describe_items([1, 0], [1], query_ids=["b", "a"], gallery_ids=["c"])
        True
    """
    digests = [
        _digest(f"{side}_ids", ids, labels, groups)
        for side, ids, labels, groups in (
            ("query", ranking.get("query_ids"), query_labels, ranking.get("query_groups")),
            ("gallery", ranking.get("gallery_ids"), gallery_labels, ranking.get("gallery_groups")),
        )
    ]
    return Items(
        queries=digests[0],
        gallery=digests[1],
        protocol={
            "metric": ranking.get("metric", "cosine"),
            "exclude_self": ranking.get("exclude_self", False),
            "groups": ranking.get("query_groups") is not None,
        },
        query_ids=tuple(str(one) for one in ranking.get("query_ids") or ()),
    )


def replace_per_query(
    folder: Path, items: Items | None, values: Mapping[str, Mapping[str, NDArray[np.float64]]]
) -> None:
    """Write the values of every query in place of those of an earlier report.

    Args:
        folder: Of the report; made if needed.
        items: Their ids; None: nothing is kept.
        values: As `PerQuery`.

    Raises:
        OSError: The folder cannot be written.
    """
    path = folder / PER_QUERY_FILE
    if items is None:
        path.unlink(missing_ok=True)
        return
    arrays: dict[str, Any] = {
        f"{entry} {name}": column
        for entry, by_name in values.items()
        for name, column in by_name.items()
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        # Ids as str, not object: nothing in the file needs unpickling.
        np.savez_compressed(file, ids=np.array(items.query_ids, dtype=np.str_), **arrays)


def read_per_query(folder: str | os.PathLike[str]) -> tuple[list[str], PerQuery] | None:
    """Ids and values of every query of a report, or None where there are none; no unpickling.

    Args:
        folder: Of the report.

    Raises:
        ValueError: A file that is damaged, or not what `replace_per_query` writes.
    """
    path = Path(folder) / PER_QUERY_FILE
    if not path.is_file():
        return None
    values: PerQuery = {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            ids = file["ids"]
            if ids.ndim != 1 or ids.dtype.kind != "U":
                raise ValueError(f"ids of shape {list(ids.shape)} and type {ids.dtype}")
            for key in file.files:
                entry, _, name = key.rpartition(" ")
                column = file[key]
                if key != "ids":
                    if column.dtype != np.float64 or column.shape != ids.shape:
                        raise ValueError(f"{key!r} of shape {list(column.shape)}")
                    values.setdefault(entry, {})[name] = column
    except (
        *(OSError, ValueError, KeyError, TypeError, EOFError),
        *(zipfile.BadZipFile, zlib.error, NotImplementedError),
    ) as error:
        raise ValueError(f"{path}: not the values per query of a report: {error}") from error
    return ids.tolist(), values


def _digest(name: str, ids: PerRow | None, labels: Labels, groups: PerRow | None) -> str:
    if ids is None or len(ids) != len(labels):
        given = "none" if ids is None else len(ids)
        raise ValueError(f"{name}: expected one for each of {len(labels)} labels, got {given}")
    lines = sorted(
        repr((str(one), _text(label), None if group is None else str(group)))
        for one, label, group in zip(
            ids, labels, [None] * len(ids) if groups is None else groups, strict=True
        )
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _text(label: object) -> str | tuple[str, ...]:
    if isinstance(label, set | frozenset | list | tuple):
        return tuple(sorted(str(one) for one in label))
    return str(label)
