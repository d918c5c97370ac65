# SPDX-License-Identifier: Apache-2.0
"""What `fcl plan` is told, and what it orders by: the gallery, labels, traffic, forward maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fclearn.adapters import ForwardMap
from fclearn.backfill import ORDERS, BackfillOrder, backfill_order
from fclearn.backfill.files import read_labels
from fclearn.backfill.orders import check_traffic
from fclearn.cli.alignment import check_directions
from fclearn.cli.cosine_rows import check_store
from fclearn.clusters import kmeans_labels
from fclearn.features import FeatureStore
from fclearn.features.classes import NoClassError, row_classes

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
    clusters: int | None = None
    done: Path | None = None
    traffic: str | None = None
    forward_map: Path | None = None
    old_query: Path | None = None
    new_query: Path | None = None
    qrels: Path | None = None
    exclude_self: bool = False
    use_groups: bool = False
    threshold: float | None = None
    shortlist: int = 100
    gallery_limit: int = 20_000
    query_limit: int = 2_000
    num_random: int = 5
    num_bootstrap: int = 1000
    seed: int = 0
    command: str = ""

    def check(self) -> None:
        """Refuse options that are out of range, or that do not go together.

        Raises:
            ValueError: Such options.
        """
        if not 0 < self.budget <= 1:
            raise ValueError(
                f"--budget: expected a share of the gallery in (0, 1], got {self.budget}"
            )
        for name, value, least in (
            ("--gallery-limit", self.gallery_limit, 1),
            ("--query-limit", self.query_limit, 1),
            ("--shortlist", self.shortlist, 1),
            ("--num-random", self.num_random, 2),
            ("--num-bootstrap", self.num_bootstrap, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if (self.old_query is None) != (self.new_query is None):
            raise ValueError("--old-query and --new-query: expected both or neither")
        if self.qrels is not None and self.old_query is None:
            raise ValueError("--qrels: expected --old-query and --new-query, which it judges for")
        if self.clusters is not None and self.qrels is not None and self.labels is not None:
            raise ValueError(
                "--clusters: expected no --labels beside --qrels, as orders know classes by one or "
                "the other"
            )
        if self.qrels is None and self.exclude_self:
            raise ValueError(
                "--exclude-self: expected --qrels; with labels, rows with the query's id are "
                "always left out"
            )


def open_store(path: Path) -> FeatureStore:
    """Open a store whose rows can all be compared by the cosine.

    Raises:
        ValueError: One that cannot be used, is empty, or holds NaN, infinite or zero rows.
    """
    store = FeatureStore.open(path)
    if len(store) == 0:
        raise ValueError(f"{store.path}: expected at least one row")
    check_directions(store, store.ids, store.path)
    check_store(store)
    return store


def load_orders(
    options: PlanOptions, old: FeatureStore, labels: Labels | None
) -> dict[str, BackfillOrder]:
    """Order the whole gallery in every way asked for, by name.

    Args:
        options: Which orders, and where their traffic or forward map is.
        old: The gallery.
        labels: Of its rows, unless clusters take their place; None: unknown.

    Raises:
        ValueError: A column or an option that an order needs; as `backfill_order` and
            `kmeans_labels`.
        ModuleNotFoundError: Clusters are asked for, and faiss is missing.
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
    asks_classes = [name for name in names if name in ORDERS and "labels" in ORDERS[name].needs]
    if options.clusters is not None and asks_classes:
        labels = kmeans_labels(old, options.clusters, seed=options.seed)
    for name, given, flag in (
        ("traffic", traffic, "--traffic COLUMN"),
        ("predicted-error", forward, "--forward-map FILE"),
    ):
        if name in names and given is None:
            raise ValueError(f"order {name!r} needs {flag}")
    if labels is None and asks_classes:
        others = ", ".join(one for one in ORDERS if "labels" not in ORDERS[one].needs)
        raise ValueError(
            f"order {asks_classes[0]!r} needs labels, --labels or one class for each row in the "
            f"manifest of {old.path}, or --clusters in their place; without them there are {others}"
        )
    return {
        name: backfill_order(
            name, old, labels=labels, traffic=traffic, forward_map=forward, seed=options.seed
        )
        for name in names
    }


def load_labels(options: PlanOptions, old: FeatureStore) -> list[Labels] | None:
    """Labels of the gallery's rows, and of the queries if these are not judged.

    Args:
        options: A csv of labels, judgements, the queries.
        old: The gallery.

    Returns:
        Each of shape ``(N,)``; None if nobody knows and, by judgements, nobody needs to.

    Raises:
        NoClassError: Stores without classes.
        ValueError: As `read_labels`.
    """
    stores = [old]
    if options.old_query is not None and options.qrels is None:
        stores.append(FeatureStore.open(options.old_query))
    if options.labels is not None:
        return [read_labels(options.labels, store.ids) for store in stores]
    try:
        return row_classes(*stores, instead="--labels")
    except NoClassError:
        # Judgements say what is right; then only orders need labels, and not all of them do.
        if options.qrels is None:
            raise
        return None
