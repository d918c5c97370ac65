# SPDX-License-Identifier: Apache-2.0
"""A compatibility report of feature stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fclearn.cli.alignment import rows_of_ids
from fclearn.cli.console import say
from fclearn.evaluation import CompatibilityReport, IndexedGallery, compatibility_report
from fclearn.evaluation.matrix import CROSS, INDEPENDENT, NEW, OLD
from fclearn.evaluation.types import InOrder, RowSource
from fclearn.features import FeatureStore
from fclearn.features.ids import read_id_lines

if TYPE_CHECKING:
    from fclearn.cli.eval_rules import Right
    from fclearn.evaluation.types import RankingOptions


@dataclass(frozen=True)
class Side:
    """Stores of one model: what its queries are, and its gallery.

    Attributes:
        name: Of the options, ``"old"``, ``"new"`` or ``"independent"``, or of a model in a chain.
        query: Store of the queries.
        gallery: Store of the gallery; None: there is none.
    """

    name: str
    query: FeatureStore
    gallery: FeatureStore | None


def open_side(name: str, query: Path, gallery: Path | None) -> Side:
    """Open both stores of a model, and refuse those of two models.

    Args:
        name: As in the options.
        query: Folder of the queries' store.
        gallery: Folder of the gallery's store.

    Raises:
        ValueError: A store that cannot be used; fingerprints that differ.
    """
    queries = FeatureStore.open(query)
    if gallery is None:
        return Side(name, queries, None)
    if gallery.resolve() == query.resolve():
        return Side(name, queries, queries)
    rows = FeatureStore.open(gallery)
    queries.fingerprint.check_same(rows.fingerprint, f"--{name}-query and --{name}-gallery")
    return Side(name, queries, rows)


@dataclass(frozen=True)
class ServingIndex:
    """An index in place of a gallery's features.

    Attributes:
        path: A faiss index file; None: there is none.
        ids: File with the id of each of its rows, one a line; None: they are its numbers.
        parameters: How to search it, ``NAME=NUMBER``.
    """

    path: Path | None
    ids: Path | None
    parameters: Sequence[str]

    def open(self, rows: FeatureStore, *, across: bool) -> IndexedGallery | None:
        """Open the index, if there is one, and look whether it holds these rows.

        Args:
            rows: What it must hold.
            across: Whether all queries are of another model than the rows.

        Raises:
            ValueError: Not an index, or of other rows or in another order; one that maps queries of
                another model, where there are others; parameters that are none, or of no index.
        """
        if self.path is None:
            for option, given in (("parameter", self.parameters), ("ids", self.ids)):
                if given:
                    raise ValueError(f"--index-{option}: expected --index, whose {option} it is")
            return None
        indexed = IndexedGallery.open(
            self.path,
            parameters=_numbers(self.parameters),
            gallery=rows,
            ids=None if self.ids is None else read_id_lines(self.ids),
        )
        if indexed.maps_queries and not across:
            raise ValueError(
                f"{self.path}: maps queries of another model into the space of {rows.path}: "
                "expected these alone, as --query with --across"
            )
        if indexed.note:
            say(f"note: {indexed.note}")
        return indexed


def numbers_to_come(
    metrics: Sequence[str], *, has_new_gallery: bool, has_independent: bool
) -> dict[str, str]:
    """Names that gates may use, and what is missing for those that cannot have a value.

    Args:
        metrics: Of the report.
        has_new_gallery: Whether new/new will be measured.
        has_independent: Whether there is an independent model.
    """
    new = "" if has_new_gallery else "--new-gallery"
    independent = "" if has_independent else "--independent-query"
    entries = {OLD: "", CROSS: "", NEW: new, INDEPENDENT: independent}
    return {
        **{f"{entry}.{metric}": needs for entry, needs in entries.items() for metric in metrics},
        "negative_flip_rate": "",
        "update_gain": independent,
        "self_test_tax": independent or new,
    }


def numbers_of(report: CompatibilityReport) -> dict[str, float | None]:
    """The numbers of a report under the names of `numbers_to_come`.

    Args:
        report: The report.
    """
    return {
        **{f"{entry}.{name}": row[name] for entry, row in report.matrix.items() for name in row},
        "negative_flip_rate": report.negative_flip_rate,
        "update_gain": report.update_gain,
        "self_test_tax": report.self_test_tax,
    }


def evaluate_stores(
    old: Side,
    new: Side,
    independent: Side | None,
    *,
    right: Right,
    ranking: RankingOptions,
    metrics: Sequence[str] | None,
    index: IndexedGallery | None,
    num_bootstrap: int,
    seed: int,
) -> CompatibilityReport:
    """Compare models by their stores; the rows of the old ones decide, the others follow by id.

    Args:
        old: Queries and gallery.
        new: Queries, and maybe a gallery.
        independent: Queries and gallery, or None.
        right: What is right.
        ranking: From `ranking_of`.
        metrics: As `compatibility_report`.
        index: Searched in place of the old gallery's features.
        num_bootstrap: As there.
        seed: As there.

    Raises:
        ValueError: Stores that do not agree, or lack labels or groups; as `compatibility_report`.
        TypeError: As `compatibility_report`.
    """
    assert old.gallery is not None
    return compatibility_report(
        old_query=old.query.features,
        old_gallery=old.gallery.features if index is None else index,
        new_query=ordered(new.query, old.query),
        new_gallery=_ordered_or_none(new.gallery, old.gallery),
        independent_query=None if independent is None else ordered(independent.query, old.query),
        independent_gallery=None
        if independent is None
        else _ordered_or_none(independent.gallery, old.gallery),
        metrics=metrics,
        num_bootstrap=num_bootstrap,
        seed=seed,
        **right,
        **ranking,
    )


def ordered(store: FeatureStore, like: FeatureStore) -> RowSource:
    """Features in the order of another store's ids, left on disk.

    Raises:
        ValueError: Ids without features; the first ones are named.
    """
    if store.ids == like.ids:
        return store.features
    return InOrder(store.features, rows_of_ids(store, like.ids, str(like.path)))


def _ordered_or_none(store: FeatureStore | None, like: FeatureStore) -> RowSource | None:
    return None if store is None else ordered(store, like)


def _numbers(parameters: Sequence[str]) -> dict[str, float]:
    numbers = {}
    for text in parameters:
        name, _, value = text.partition("=")
        try:
            numbers[name] = float(value)
        except ValueError:
            raise ValueError(
                f"--index-parameter: expected NAME=NUMBER, as in nprobe=16, got {text!r}"
            ) from None
    return numbers
