# SPDX-License-Identifier: Apache-2.0
"""What `fcl plan` reads: stores, labels, traffic, and the sample it measures on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fclearn.adapters import ForwardMap
from fclearn.backfill import BackfillOrder, MigrationSample, backfill_order
from fclearn.backfill.files import read_labels
from fclearn.backfill.orders import check_traffic
from fclearn.backfill.sample import sample_rows
from fclearn.cli.alignment import rows_of_ids
from fclearn.features import FeatureStore, check_rows

Ints = NDArray[np.int64]
Labels = NDArray[np.generic]


@dataclass(frozen=True)
class PlanOptions:
    """What `fcl plan` was told; see its help."""

    old: Path
    new: Path
    out: Path
    order: str
    compare: Sequence[str]
    budget: float
    labels: Path | None = None
    done: Path | None = None
    traffic: str | None = None
    forward_map: Path | None = None
    old_query: Path | None = None
    new_query: Path | None = None
    use_groups: bool = False
    threshold: float | None = None
    shortlist: int = 100
    gallery_limit: int = 20_000
    query_limit: int = 2_000
    num_random: int = 5
    num_bootstrap: int = 1000
    seed: int = 0
    command: str = ""


def open_store(path: Path) -> FeatureStore:
    """Open a store whose rows can all be compared by the cosine.

    Raises:
        ValueError: One that cannot be used, is empty, or holds NaN, infinite or zero rows.
    """
    store = FeatureStore.open(path)
    if len(store) == 0:
        raise ValueError(f"{store.path}: expected at least one row")
    zeros = check_rows(store, str(store.path))
    if len(zeros):
        raise ValueError(f"{store.path}: row {zeros[0]} has norm zero, so it has no direction")
    # Rows of unit length are ranked alike by all three metrics.
    if store.fingerprint.metric != "cosine" and store.fingerprint.norm != "l2":
        raise ValueError(
            f"{store.path}: expected features compared by the cosine, or of unit length; the "
            f"fingerprint says metric {store.fingerprint.metric!r}, norm "
            f"{store.fingerprint.norm!r}"
        )
    return store


def load_orders(
    options: PlanOptions, old: FeatureStore, labels: Labels
) -> dict[str, BackfillOrder]:
    """Order the whole gallery in every way asked for, by name.

    Args:
        options: Which orders, and where their traffic or forward map is.
        old: The gallery.
        labels: Of its rows.

    Raises:
        ValueError: A column or an option that an order needs; as `backfill_order`.
    """
    traffic = None
    if options.traffic is not None:
        if options.traffic not in old.manifest:
            raise ValueError(
                f"--traffic: expected a column {options.traffic!r} in the manifest of {old.path}, "
                f"found {', '.join(old.manifest)}"
            )
        name = f"{old.path}: column {options.traffic!r}"
        traffic = check_traffic(old.manifest[options.traffic], len(old), name)
    forward = None if options.forward_map is None else ForwardMap.load(options.forward_map)
    names = dict.fromkeys([options.order, *options.compare])
    for name, given, flag in (
        ("traffic", traffic, "--traffic COLUMN"),
        ("predicted-error", forward, "--forward-map FILE"),
    ):
        if name in names and given is None:
            raise ValueError(f"order {name!r} needs {flag}")
    return {
        name: backfill_order(
            name, old, labels=labels, traffic=traffic, forward_map=forward, seed=options.seed
        )
        for name in names
    }


def load_sample(
    options: PlanOptions,
    old: FeatureStore,
    new: FeatureStore,
    labels: Labels,
    old_rows: Ints,
    new_rows: Ints,
) -> MigrationSample:
    """Queries and gallery; without query stores rows of the gallery ask, themselves left out.

    Args:
        options: Query stores, limits, groups.
        old: Old features of the gallery.
        new: New features of some of it.
        labels: Of the rows of ``old``.
        old_rows: Gallery rows to measure on, and
        new_rows: where in ``new`` they are.

    Raises:
        ValueError: Stores that do not agree; as `MigrationSample.build`.
    """
    gallery_old, gallery_new = (
        np.asarray(old.features[old_rows]),
        np.asarray(new.features[new_rows]),
    )
    gallery_labels, gallery_ids = labels[old_rows], [old.ids[row] for row in old_rows]
    gallery_groups = _groups(old, options)
    groups = None if gallery_groups is None else gallery_groups[old_rows]
    if options.old_query is None or options.new_query is None:
        at = sample_rows(len(old_rows), options.query_limit, options.seed + 1)
        return MigrationSample.build(
            old_query=gallery_old[at],
            new_query=gallery_new[at],
            old_gallery=gallery_old,
            new_gallery=gallery_new,
            query_labels=gallery_labels[at],
            gallery_labels=gallery_labels,
            query_ids=[gallery_ids[row] for row in at],
            gallery_ids=gallery_ids,
            query_groups=None if groups is None else groups[at],
            gallery_groups=groups,
        )
    old_query, new_query = (
        FeatureStore.open(options.old_query),
        FeatureStore.open(options.new_query),
    )
    old_query.fingerprint.check_same(old.fingerprint, "--old-query and --old-features")
    new_query.fingerprint.check_same(new.fingerprint, "--new-query and --new-features")
    rows = sample_rows(len(old_query), options.query_limit, options.seed + 1)
    ids = [old_query.ids[row] for row in rows]
    query_groups = _groups(old_query, options)
    return MigrationSample.build(
        old_query=np.asarray(old_query.features[rows]),
        new_query=np.asarray(
            new_query.features[rows_of_ids(new_query, ids, str(options.old_query))]
        ),
        old_gallery=gallery_old,
        new_gallery=gallery_new,
        query_labels=load_labels(old_query, options.labels)[rows],
        gallery_labels=gallery_labels,
        query_ids=ids,
        gallery_ids=gallery_ids,
        query_groups=None if query_groups is None else query_groups[rows],
        gallery_groups=groups,
    )


def load_labels(store: FeatureStore, path: Path | None) -> Labels:
    """Labels of a store's rows, from a csv or else from its manifest.

    Raises:
        ValueError: Neither; as `read_labels`.
    """
    if path is not None:
        return read_labels(path, store.ids)
    if store.labels is None:
        raise ValueError(f"{store.path}: expected a column 'label' in the manifest, or --labels")
    return store.labels


def _groups(store: FeatureStore, options: PlanOptions) -> NDArray[np.int64] | None:
    if not options.use_groups:
        return None
    if store.groups is None:
        raise ValueError(f"{store.path}: --use-groups needs a column 'group' in the manifest")
    return store.groups
