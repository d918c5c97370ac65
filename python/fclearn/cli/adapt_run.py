# SPDX-License-Identifier: Apache-2.0
"""Fit an adapter on stores, and map stores by one."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fclearn.adapters import Adapter, CompatHead, load_adapter
from fclearn.cli.alignment import check_directions, rows_of_ids
from fclearn.cli.console import say
from fclearn.cli.cosine_rows import check_fingerprint, check_store
from fclearn.cli.eval_show import say_skipped, say_without_class
from fclearn.cli.splits import other_split
from fclearn.cli.targets import check_store_target, is_made, store_source
from fclearn.clusters import kmeans_labels
from fclearn.features import FeatureStore, FeatureWriter, Fingerprint
from fclearn.features.classes import NoClassError, class_numbers, has_class, row_classes
from fclearn.probe import (
    ADAPTERS,
    BY_CLASSES,
    BY_ITEMS,
    NEW_TO_OLD,
    OLD,
    OLD_TO_NEW,
    ProbeResult,
    probe,
)
from fclearn.probe.verdict import few_classes
from fclearn.wording import nearest

_DIRECTIONS = ("new-to-old", "old-to-new")
_BLOCK_ROWS = 1 << 16
_FIT_SHARE = 0.8  # of the classes or items, to measure an adapter on the others first


@dataclass(frozen=True)
class Form:
    """Which adapter.

    Attributes:
        name: Of the adapter.
        head: Form of a compat-head; None: the usual one.
        orthogonal: Whether a compat-head's linear part stays a rotation.
    """

    name: str
    head: str | None
    orthogonal: bool

    def maker(self) -> Callable[[int], Adapter]:
        """What makes it, given a seed.

        Raises:
            ValueError: An unknown name or form, or a form of another adapter.
        """
        if self.name not in ADAPTERS:
            raise ValueError(
                f"--adapter: unknown name {self.name!r}; {nearest(self.name, ADAPTERS)}"
            )
        if self.name != CompatHead.name:
            if self.head is not None or self.orthogonal:
                raise ValueError(
                    f"--head, --orthogonal: expected --adapter compat-head, got {self.name!r}"
                )
            return ADAPTERS[self.name]
        options = {"head": self.head or "mlp", "orthogonal": self.orthogonal}
        CompatHead(**options)  # type: ignore[arg-type]
        return lambda seed: CompatHead(seed=seed, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fit:
    """What to fit, on what.

    Attributes:
        old: Old features.
        new: New features of the same items.
        out: File to write.
        form: Which adapter.
        direction: ``"new-to-old"`` or ``"old-to-new"``.
        clusters: How many, in place of classes.
        seed: Of everything random.
        check: Whether to measure it first on what is held out.
        split: What is held out for that; None: as `fclearn.probe.probe`.
    """

    old: Path
    new: Path
    out: Path
    form: Form
    direction: str
    clusters: int | None
    seed: int
    check: bool
    split: str | None


def fit_adapter(options: Fit) -> dict[str, object]:
    """Fit an adapter, maybe after measuring it, write it, and say so.

    Returns:
        For JSON.

    Raises:
        ValueError: Options or stores that do not agree, or that the cosine cannot judge; as
            `Adapter.fit` and `probe`.
        OSError: The file cannot be written.
    """
    name, direction, seed = options.form.name, options.direction, options.seed
    make = options.form.maker()
    if direction not in _DIRECTIONS:
        raise ValueError(f"--direction: expected one of {list(_DIRECTIONS)}, got {direction!r}")
    stores = {"old": FeatureStore.open(options.old), "new": FeatureStore.open(options.new)}
    old, new = stores.values()
    for store in (old, new):
        check_store(store)
    rows = rows_of_ids(new, old.ids, str(options.old))
    pairs = {"old": np.asarray(old.features), "new": np.asarray(new.features[rows])}
    made = make(seed)
    labels = _labels(old, options.clusters, seed, needed=made.needs_labels or options.check)
    known = np.arange(len(old)) if labels is None else np.flatnonzero(has_class(labels))
    # Without a class a pair can still be fitted on, but by no adapter that needs one.
    fitted = known if made.needs_labels else np.arange(len(old))
    if made.needs_labels or options.check:
        _say_without_class(old, len(known), len(fitted))
    result: dict[str, object] = {"adapter": name, "direction": direction, "rows": len(fitted)}
    if options.check and labels is not None:
        named = _some(pairs, known)
        for side, at in (("old", known), ("new", rows[known])):
            check_directions(named[side], stores[side].ids, stores[side].path, at)
        try:
            measured = probe(
                old=named["old"],
                new=named["new"],
                labels=labels[known],
                groups=None if old.groups is None else old.groups[known],
                split=options.split,
                fit_share=_FIT_SHARE,
                adapters={name: make},
                budget=0,
                seed=seed,
            )
        except ValueError as error:
            if not str(error).startswith(("labels:", "query_labels:")):
                raise
            by = options.split or BY_CLASSES
            other = "" if by == BY_ITEMS else f"--split {BY_ITEMS} holds out items, "
            raise ValueError(
                f"cannot be measured on held-out {by} first: {error} ({other}--no-check fits "
                "without)"
            ) from error
        if name in measured.left_out:
            raise ValueError(f"--adapter {name}: {measured.left_out[name]}")
        if options.clusters is not None:
            say(f"{options.clusters:,} clusters of old features in place of classes")
        result |= _checked(measured, direction)
    source, target = direction.split("-to-")
    fit_on = _some(pairs, fitted)
    made.fit(
        source=fit_on[source],
        target=fit_on[target],
        labels=torch.from_numpy(labels[fitted])
        if made.needs_labels and labels is not None
        else None,
        source_fingerprint=stores[source].fingerprint,
        target_fingerprint=stores[target].fingerprint,
    )
    made.direction = direction
    made.save(options.out)
    say(f"adapter {name!r}, {direction}, fitted on {len(fitted)} pairs, in {options.out}")
    return {**result, "file": str(options.out)}


def _labels(
    store: FeatureStore, clusters: int | None, seed: int, *, needed: bool
) -> NDArray[np.int64] | None:
    if clusters is not None:
        return kmeans_labels(store.features, clusters, seed=seed)
    instead = "--clusters (--no-check with an adapter that needs no labels)"
    try:
        (classes,) = row_classes(store, instead=instead)
    except NoClassError:
        if needed:
            raise
        return None
    return class_numbers(classes)


def _some(
    pairs: dict[str, NDArray[np.floating]], rows: NDArray[np.int64]
) -> dict[str, NDArray[np.floating]]:
    """Some rows of both sides; all of them as they are, without another copy."""
    if len(rows) == len(pairs["old"]):
        return pairs
    return {side: features[rows] for side, features in pairs.items()}


def _say_without_class(store: FeatureStore, num_known: int, num_fitted: int) -> None:
    if num_fitted == num_known:
        say_without_class(len(store) - num_known, store)
    else:
        say(
            f"{store.path}: {len(store) - num_known} of {len(store)} rows have no class; they are "
            "fitted on, but not measured on"
        )


def _checked(measured: ProbeResult, direction: str) -> dict[str, object]:
    """Say what was measured, and on what; returned for JSON."""
    wanted = {"new-to-old": NEW_TO_OLD, "old-to-new": OLD_TO_NEW}[direction]
    (mapped,) = (way for way in measured.ways if way.direction == wanted)
    (before,) = (way for way in measured.ways if way.name == OLD)
    low, high = mapped.gain_intervals["map"]
    say_skipped(measured.num_skipped)
    say(f"first {measured.split_text}")
    say(
        f"there, {measured.num_queries:,} queries among {measured.num_gallery:,} rows: mAP "
        f"{100 * mapped.metrics['map']:.1f} % by the adapter, "
        f"{100 * before.metrics['map']:.1f} % by the old model alone "
        f"(difference {100 * mapped.gain['map']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])"
    )
    if doubt := few_classes(measured.num_test_classes, measured.split):
        say(doubt)
    say(other_split(measured.split))
    return {
        "split": measured.split,
        "split_text": measured.split_text,
        "check": {"old/old": vars(before), "mapped": vars(mapped)},
    }


def apply_adapter(
    path: Path, features: Path, out: Path, *, may_replace: bool = False
) -> dict[str, object]:
    """Map a store by the adapter in a file, resumable, and say so; once it has ended, do nothing.

    Args:
        path: Of the adapter.
        features: Store to map.
        out: Store to write.
        may_replace: Whether a store may be there; the mapped one itself is then made again.

    Returns:
        For JSON.

    Raises:
        ValueError: Another thing at ``out``; no adapter; features of another model; an adapter to
            features that the cosine cannot judge; a partial store that another adapter began.
        OSError: The store cannot be written.
    """
    adapter = load_adapter(path)
    source = FeatureStore.open(features)
    # Half of a store by one adapter is not gone on with by another of the same name.
    checksum = f"{zlib.crc32(path.read_bytes()):08x}"
    made_of = f"by the adapter of checksum {checksum} from {store_source(features)}"
    if not may_replace and is_made(out, made_of):
        say(f"{out} has these rows by this adapter already; --replace maps them again")
        return _applied(adapter, FeatureStore.open(out), out)
    check_store_target(out, replace=may_replace, inputs=[path, features])
    dim = adapter.transform(source.features[:1], fingerprint=source.fingerprint).shape[1]
    where = adapter.target or Fingerprint("unknown", dim)
    # Mapped rows have unit length: they stand for such rows of the target, or for their directions.
    check_fingerprint(where, f"adapter {adapter.name!r}, where it leads")
    fingerprint = replace(
        where, dim=dim, norm="l2", preprocessing=f"{source.fingerprint.model} by {adapter.name}"
    )
    writer = FeatureWriter(out, len(source), dim, "float32", fingerprint, source=made_of)
    for begin, end in writer.missing():
        for first in range(begin, end, _BLOCK_ROWS):
            rows = source.features[first : min(end, first + _BLOCK_ROWS)]
            writer.write(first, adapter.transform(rows, fingerprint=source.fingerprint))
    store = writer.finish(source.manifest, source.manifest_format)
    say(f"{len(store)} rows of {store.dim} numbers in {out}")
    return _applied(adapter, store, out)


def _applied(adapter: Adapter, store: FeatureStore, out: Path) -> dict[str, object]:
    return {
        "store": str(out),
        "rows": len(store),
        "dim": store.dim,
        "adapter": adapter.name,
        "direction": adapter.direction or None,
    }
