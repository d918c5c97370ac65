# SPDX-License-Identifier: Apache-2.0
"""The queries and the gallery rows that `fcl plan` measures on, and what is right among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from fclearn.backfill import MigrationSample
from fclearn.backfill.sample import sample_rows
from fclearn.cli.alignment import chosen_rows, rows_of_ids
from fclearn.cli.console import say
from fclearn.cli.eval_rules import groups_of
from fclearn.cli.eval_show import say_without_class
from fclearn.cli.plan_inputs import Labels, PlanOptions
from fclearn.evaluation import Qrels
from fclearn.features import FeatureStore
from fclearn.features.classes import has_class

Ints = NDArray[np.int64]


class _Right(TypedDict, total=False):
    """What is right, as arguments of `MigrationSample.build`."""

    query_labels: Labels
    gallery_labels: Labels
    positives: Sequence[Sequence[int]]
    grades: Sequence[Sequence[float]]


class _Gallery(TypedDict):
    """Its rows, as arguments of `MigrationSample.build`."""

    old_gallery: NDArray[np.floating]
    new_gallery: NDArray[np.floating]


@dataclass(frozen=True)
class Measured:
    """What is measured on.

    Attributes:
        sample: Queries and gallery rows.
        rows: Rows of the old store that the gallery rows are, shape ``(G,)``.
        num_missing: Pairs of a query and a relevant row that is not among them, with judgements.
    """

    sample: MigrationSample
    rows: Ints
    num_missing: int = 0


def load_sample(
    options: PlanOptions, old: FeatureStore, new: FeatureStore, labels: Sequence[Labels] | None
) -> Measured:
    """Queries and gallery; without query stores rows of the gallery ask, themselves left out.

    Args:
        options: Query stores, judgements, limits, groups.
        old: Old features of the gallery.
        new: New features of some of it.
        labels: As `load_labels` has them; None only with judgements.

    Rows without a class are not measured on, as nobody knows whether a pair of them is right.

    Raises:
        ValueError: Stores and judgements that do not agree, no row with a class; as
            `MigrationSample.build`.
    """
    qrels = None if options.qrels is None else Qrels.read(options.qrels)
    both = rows_of_ids(old, new.ids, str(options.new))
    known = np.arange(len(new))
    if qrels is None and labels is not None:
        known = np.flatnonzero(has_class(labels[0][both]))
        if not len(known):
            raise ValueError(
                f"{options.labels or old.path}: expected a class for some of the {len(new)} rows "
                f"of {new.path}, found none; say classes by --labels, or what is right by --qrels"
            )
        if len(known) < len(new):
            say(
                f"{old.path}: {len(new) - len(known)} of the {len(new)} rows with new features "
                "have no class; they are in the plan, but not measured on"
            )
    new_rows = known[
        chosen_rows([new.ids[row] for row in known], options.gallery_limit, options.seed, qrels)
    ]
    rows = both[new_rows]
    gallery: _Gallery = {
        "old_gallery": np.asarray(old.features[rows]),
        "new_gallery": np.asarray(new.features[new_rows]),
    }
    ids, groups = [old.ids[row] for row in rows], _groups(old, options)
    groups = None if groups is None else groups[rows]
    if options.old_query is None or options.new_query is None:
        assert labels is not None
        at = sample_rows(len(rows), options.query_limit, options.seed + 1)
        sample = MigrationSample.build(
            old_query=gallery["old_gallery"][at],
            new_query=gallery["new_gallery"][at],
            query_labels=labels[0][rows][at],
            gallery_labels=labels[0][rows],
            query_ids=[ids[row] for row in at],
            gallery_ids=ids,
            query_groups=None if groups is None else groups[at],
            gallery_groups=groups,
            **gallery,
        )
        return Measured(sample, rows)
    old_query, new_query = (
        FeatureStore.open(options.old_query),
        FeatureStore.open(options.new_query),
    )
    old_query.fingerprint.check_same(old.fingerprint, "--old-query and --old-features")
    new_query.fingerprint.check_same(new.fingerprint, "--new-query and --new-features")
    missing = 0
    right: _Right
    if qrels is None:
        assert labels is not None
        asking = np.flatnonzero(has_class(labels[1]))
        say_without_class(len(old_query) - len(asking), old_query)
        at = asking[sample_rows(len(asking), options.query_limit, options.seed + 1)]
        right = {
            "query_labels": labels[1][at],
            "gallery_labels": labels[0][rows],
        }
    else:
        at, right, missing = _judged(qrels, old_query.ids, ids, options)
    asked = [old_query.ids[row] for row in at]
    query_groups = _groups(old_query, options)
    # Ids of judgements are of two kinds, queries and documents: equal ones mean nothing.
    has_own = qrels is None or options.exclude_self
    sample = MigrationSample.build(
        old_query=np.asarray(old_query.features[at]),
        new_query=np.asarray(
            new_query.features[rows_of_ids(new_query, asked, str(options.old_query))]
        ),
        query_ids=asked if has_own else None,
        gallery_ids=ids if has_own else None,
        query_groups=None if query_groups is None else query_groups[at],
        gallery_groups=groups,
        **gallery,
        **right,
    )
    return Measured(sample, rows, missing)


def _judged(
    qrels: Qrels, query_ids: Sequence[str], gallery_ids: Sequence[str], options: PlanOptions
) -> tuple[Ints, _Right, int]:
    """Queries to ask, those with something right first, what is right, and what is not there.

    Raises:
        ValueError: As `Qrels.relevance`.
    """
    relevance = qrels.relevance(query_ids, gallery_ids)
    order = np.random.default_rng(options.seed + 1).permutation(len(query_ids))
    order = order[np.argsort(relevance.counts[order] == 0, kind="stable")]
    at = np.sort(order[: options.query_limit])
    pairs = [relevance.positives(int(query)) for query in at]
    right: _Right = {
        "positives": [rows.tolist() for rows, _ in pairs],
        "grades": [grades.tolist() for _, grades in pairs],
    }
    return at, right, sum(len(relevance.missing(int(query))) for query in at)


def _groups(store: FeatureStore, options: PlanOptions) -> NDArray[np.generic] | None:
    return groups_of(store) if options.use_groups else None
