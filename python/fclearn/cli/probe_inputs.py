# SPDX-License-Identifier: Apache-2.0
"""What ``fcl probe`` takes from stores and judgements."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from fclearn.cli.alignment import check_directions, chosen_rows, rows_of_ids
from fclearn.cli.cosine_rows import check_store
from fclearn.cli.eval_rules import groups_of
from fclearn.cli.eval_show import say_without_class
from fclearn.evaluation import Qrels
from fclearn.features import FeatureStore
from fclearn.features.classes import has_class, row_classes
from fclearn.probe import Judgements, ProbeQueries

_INSTEAD = "judgements of real queries: --qrels with --old-query and --new-query"


@dataclass(frozen=True)
class ProbeStores:
    """Options of ``fcl probe`` about what it reads.

    Attributes:
        old: Old features of the items.
        new: New ones.
        old_query: Real queries by the old model, or None.
        new_query: By the new one; with the other, or neither.
        qrels: Judgements of the queries, in place of labels.
        exclude_self: With judgements: leave out gallery rows with the query's id.
        use_groups: Leave out gallery rows of the query's own group.
        limit: Most items.
        seed: Of their choice.
    """

    old: Path
    new: Path
    old_query: Path | None
    new_query: Path | None
    qrels: Path | None
    exclude_self: bool
    use_groups: bool
    limit: int
    seed: int

    def check(self) -> None:
        """Refuse options that do not go together.

        Raises:
            ValueError: Such options.
        """
        if self.limit < 1:
            raise ValueError(f"--limit: expected at least 1, got {self.limit}")
        if (self.old_query is None) != (self.new_query is None):
            raise ValueError("--old-query and --new-query: expected both or neither")
        if self.qrels is not None and self.old_query is None:
            raise ValueError("--qrels: expected --old-query and --new-query, which it judges for")
        if self.qrels is None and self.exclude_self:
            raise ValueError(
                "--exclude-self: expected --qrels; with labels, rows with the query's id are "
                "always left out"
            )


class ProbeInputs(TypedDict):
    """Arguments of `fclearn.probe.probe`."""

    old: NDArray[np.floating]
    new: NDArray[np.floating]
    labels: NDArray[np.generic] | None
    groups: NDArray[np.generic] | None
    queries: ProbeQueries | None
    judgements: Judgements | None


def read_inputs(options: ProbeStores) -> ProbeInputs:
    """Open the stores and align them.

    Raises:
        ValueError: Stores that do not agree, that the cosine cannot judge, or that lack labels or
            groups; a file of judgements that is none.
    """
    old, new = FeatureStore.open(options.old), FeatureStore.open(options.new)
    asked = None
    if options.old_query is not None and options.new_query is not None:
        asked = FeatureStore.open(options.old_query), FeatureStore.open(options.new_query)
        old.fingerprint.check_same(asked[0].fingerprint, "--old and --old-query")
        new.fingerprint.check_same(asked[1].fingerprint, "--new and --new-query")
    for store in (old, new, *(asked or ())):
        check_store(store)
    qrels = None if options.qrels is None else Qrels.read(options.qrels)
    labels = None
    known = np.arange(len(old))
    if qrels is None:
        labels = row_classes(*([old] if asked is None else [old, asked[0]]), instead=_INSTEAD)
        known = _rows_with_class(old, labels[0])
    rows = known[chosen_rows([old.ids[row] for row in known], options.limit, options.seed, qrels)]
    ids = [old.ids[row] for row in rows]
    # Ids of judgements are of two kinds, queries and documents: equal ones mean nothing.
    has_own = options.use_groups or options.exclude_self or (asked is not None and qrels is None)
    queries = None
    if asked is not None:
        same = rows_of_ids(asked[1], asked[0].ids, str(options.old_query))
        asking = np.arange(len(same)) if labels is None else _rows_with_class(asked[0], labels[1])
        queries = ProbeQueries(
            _part(asked[0], asking),
            _part(asked[1], same[asking]),
            None if labels is None else labels[1][asking],
            _own(asked[0], use_groups=options.use_groups)[asking] if has_own else None,
        )
    return {
        "old": _part(old, rows),
        "new": _part(new, rows_of_ids(new, ids, str(options.old))),
        "labels": None if labels is None else labels[0][rows],
        "groups": _own(old, use_groups=options.use_groups)[rows] if has_own else None,
        "queries": queries,
        "judgements": Judgements(qrels, asked[0].ids, ids) if qrels and asked else None,
    }


def _rows_with_class(store: FeatureStore, classes: NDArray[np.generic]) -> NDArray[np.int64]:
    """Rows that can be fitted on and measured; says how many cannot."""
    rows = np.flatnonzero(has_class(classes))
    say_without_class(len(store) - len(rows), store)
    return rows


def _part(store: FeatureStore, rows: NDArray[np.int64]) -> NDArray[np.floating]:
    """Some rows of a store, each with a direction."""
    part = np.asarray(store.features[rows])
    check_directions(part, store.ids, store.path, rows)
    return part


def _own(store: FeatureStore, *, use_groups: bool) -> NDArray[np.generic]:
    """What a query and the gallery rows left out for it share: a group, or an id."""
    return groups_of(store) if use_groups else np.asarray(store.ids)
