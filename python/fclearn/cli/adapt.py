# SPDX-License-Identifier: Apache-2.0
"""Verbs ``adapt`` and ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fclearn.cli.console import JsonFlag, emit, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fclearn.adapters import Adapter
    from fclearn.features import FeatureStore
    from fclearn.probe import ProbeResult

_DIRECTIONS = ("new-to-old", "old-to-new")
_BLOCK_ROWS = 1 << 16


def adapt(
    out: Annotated[
        Path, typer.Option(metavar="PATH", help="Adapter to write; with --apply, feature store.")
    ],
    old: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Old features to fit on.")
    ] = None,
    new: Annotated[
        Path | None, typer.Option(metavar="STORE", help="New features of the same items.")
    ] = None,
    adapter: Annotated[
        str,
        typer.Option(help="compat-head, procrustes, ridge, low-rank, mean-shift or mlp."),
    ] = "compat-head",
    direction: Annotated[
        str, typer.Option(help="new-to-old: for queries; old-to-new: for the gallery.")
    ] = "new-to-old",
    clusters: Annotated[
        int | None,
        typer.Option(help="Without labels: k-means clusters of the old features as classes."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check", help="First measure it on a fifth of the classes, held out."
        ),
    ] = True,
    apply: Annotated[
        Path | None,
        typer.Option(metavar="ADAPTER", help="Fit nothing: map a store by this adapter."),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="STORE", help="With --apply: features to map.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Fit an adapter on frozen features: for new models that cannot be trained, such as an API's.

    Fitted from the features of some items by both models, matched by id. New queries, mapped, then
    search the old gallery. Which adapter, and whether one at all: fcl probe tells first.

    The default trains a small head with the compatibility loss and needs the items' classes: the
    old store's labels, or clusters. The file knows which features it takes and refuses others.

    \b
    Examples:
      fcl adapt --old sample/old --new sample/new --out adapter.safetensors
      fcl adapt --apply adapter.safetensors --features queries/new --out queries/mapped
    """
    from fclearn.adapters import load_adapter

    if apply is not None:
        if features is None or old is not None or new is not None:
            raise ValueError("--apply: expected --features, and neither --old nor --new")
        result = _apply(load_adapter(apply), features, out)
    else:
        if old is None or new is None or features is not None:
            raise ValueError("expected --old and --new to fit, or --apply and --features to map")
        result = _fit(old, new, out, adapter, direction, clusters, seed, check=check)
    if json:
        emit(result)


def export(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Of fcl adapt.")],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="adapter.onnx; or an index file, with --index."),
    ],
    index: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="faiss index of the target space to put it before."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write an adapter for other engines: as an ONNX model, or inside a faiss index.

    With --index, the index written takes source features and searches the vectors the given one
    holds; the given file stays as it is. Affine adapters only (all but mlp and compat-head).

    \b
    Examples:
      fcl export adapter.safetensors --out adapter.onnx
      fcl export rotation.safetensors --index gallery.faiss --out gallery-for-new.faiss
    """
    from fclearn.adapters import export as exporting
    from fclearn.adapters import load_adapter

    loaded = load_adapter(adapter)
    if index is None:
        if out.suffix != ".onnx":
            raise ValueError(f"--out: expected a name ending in .onnx, or --index, got {out}")
        exporting.to_onnx(loaded, out)
    else:
        exporting.export_index(loaded, index, out)
    say(f"adapter {loaded.name!r} in {out}")
    if json:
        emit({"adapter": loaded.name, "source_dim": loaded.source_dim, "file": str(out)})


def _fit(
    old_path: Path,
    new_path: Path,
    out: Path,
    name: str,
    direction: str,
    clusters: int | None,
    seed: int,
    *,
    check: bool,
) -> dict[str, object]:
    import numpy as np
    import torch

    from fclearn.cli.alignment import rows_of_ids
    from fclearn.features import FeatureStore
    from fclearn.probe import ADAPTERS, probe
    from fclearn.wording import nearest

    if name not in ADAPTERS:
        raise ValueError(f"--adapter: unknown name {name!r}; {nearest(name, ADAPTERS)}")
    if direction not in _DIRECTIONS:
        raise ValueError(f"--direction: expected one of {list(_DIRECTIONS)}, got {direction!r}")
    stores = {"old": FeatureStore.open(old_path), "new": FeatureStore.open(new_path)}
    old, new = stores.values()
    rows = rows_of_ids(new, old.ids, str(old_path))
    pairs = {"old": np.asarray(old.features), "new": np.asarray(new.features[rows])}
    made = ADAPTERS[name](seed)
    labels = _labels(old, clusters, seed, needed=made.needs_labels or check)
    result: dict[str, object] = {"adapter": name, "direction": direction, "rows": len(old)}
    if check and labels is not None:
        measured = probe(
            old=pairs["old"],
            new=pairs["new"],
            labels=labels,
            groups=old.groups,
            fit_share=0.8,
            adapters=[name],
            budget=0,
            seed=seed,
        )
        result["check"] = _checked(measured, direction)
    source, target = direction.split("-to-")
    made.fit(
        source=pairs[source],
        target=pairs[target],
        labels=None if labels is None else torch.from_numpy(labels),
        source_fingerprint=stores[source].fingerprint,
        target_fingerprint=stores[target].fingerprint,
    )
    made.save(out)
    say(f"adapter {name!r}, {direction}, fitted on {len(old)} pairs, in {out}")
    return {**result, "file": str(out)}


def _labels(
    store: FeatureStore, clusters: int | None, seed: int, *, needed: bool
) -> NDArray[np.int64] | None:
    from fclearn.clusters import kmeans_labels

    if clusters is not None:
        return kmeans_labels(store.features, clusters, seed=seed)
    if needed and store.labels is None:
        raise ValueError(
            f"{store.path}: expected a column 'label' in the manifest, or --clusters (--no-check "
            "with an adapter that needs no labels)"
        )
    return store.labels


def _checked(measured: ProbeResult, direction: str) -> dict[str, object]:
    from fclearn.probe import NEW_TO_OLD, OLD, OLD_TO_NEW

    wanted = {"new-to-old": NEW_TO_OLD, "old-to-new": OLD_TO_NEW}[direction]
    (mapped,) = (way for way in measured.ways if way.direction == wanted)
    (before,) = (way for way in measured.ways if way.name == OLD)
    low, high = mapped.gain_intervals["map"]
    say(
        f"on held-out classes: mAP {100 * mapped.metrics['map']:.1f} %, the old model has "
        f"{100 * before.metrics['map']:.1f} % "
        f"(difference {100 * mapped.gain['map']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])"
    )
    return {"old/old": vars(before), "mapped": vars(mapped)}


def _apply(adapter: Adapter, features: Path, out: Path) -> dict[str, object]:
    from dataclasses import replace

    from fclearn.features import FeatureStore, FeatureWriter, Fingerprint

    source = FeatureStore.open(features)
    if out.resolve() == features.resolve():
        raise ValueError(f"--out: expected another folder than {features}, which stays as it is")
    dim = adapter.transform(source.features[:1], fingerprint=source.fingerprint).shape[1]
    where = adapter.target or Fingerprint("unknown", dim)
    fingerprint = replace(
        where, dim=dim, norm="l2", preprocessing=f"{source.fingerprint.model} by {adapter.name}"
    )
    writer = FeatureWriter(out, len(source), dim, "float32", fingerprint, source=str(source.path))
    for begin, end in writer.missing():
        for first in range(begin, end, _BLOCK_ROWS):
            rows = source.features[first : min(end, first + _BLOCK_ROWS)]
            writer.write(first, adapter.transform(rows, fingerprint=source.fingerprint))
    store = writer.finish(source.manifest)
    say(f"{len(store)} rows of {store.dim} numbers in {out}")
    return {"store": str(out), "rows": len(store), "dim": store.dim, "adapter": adapter.name}
