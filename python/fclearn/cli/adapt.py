# SPDX-License-Identifier: Apache-2.0
"""Verbs ``adapt`` and ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fclearn.cli.console import JsonFlag, emit, say
from fclearn.cli.splits import SplitOption, check_split
from fclearn.cli.targets import ReplaceFlag, check_file_target


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
    head: Annotated[
        str | None,
        typer.Option(
            help="Of compat-head: linear, low-rank (beside a frozen rotation) or mlp, which it is "
            "unless said. Of these, faiss takes the first two."
        ),
    ] = None,
    orthogonal: Annotated[
        bool, typer.Option("--orthogonal", help="Of compat-head: its linear part stays a rotation.")
    ] = False,
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
            "--check/--no-check",
            help="First measure it on a fifth of the classes, or with --split items of the items, "
            "held out.",
        ),
    ] = True,
    split: SplitOption = None,
    apply: Annotated[
        Path | None,
        typer.Option(metavar="ADAPTER", help="Fit nothing: map a store by this adapter."),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="STORE", help="With --apply: features to map.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    replace: ReplaceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Fit an adapter on frozen features: for new models that cannot be trained, such as an API's.

    Fitted from the features of some items by both models, matched by id. New queries, mapped, then
    search the old gallery. Which adapter, and whether one at all: fcl probe tells first.

    The default trains a small head (--head, --orthogonal) with the compatibility loss and needs the
    items' classes: of the old store (columns as for fcl eval), or clusters. The file knows its
    direction and which features it takes, and refuses others.

    It is measured first, on classes that were held out (--split classes, as usual), as where the
    gallery will get classes that these items do not have; or on items held out of the same classes
    (--split items), as where it keeps them. What is written is then fitted on all.

    What is there is replaced with --replace alone: an adapter by an adapter, a store by a store.
    With --apply, the same command resumes where it was stopped; once it has ended, it does nothing.

    \b
    Examples:
      fcl adapt --old sample/old --new sample/new --out adapter.safetensors
      fcl adapt --old sample/old --new sample/new --head linear --orthogonal \\
        --out rotation.safetensors
      fcl adapt --old sample/old --new sample/new --split items --out adapter.safetensors
      fcl adapt --apply adapter.safetensors --features queries/new --out queries/mapped
    """
    from fclearn.cli.adapt_run import Fit, Form, apply_adapter, fit_adapter

    if apply is not None:
        if features is None or old is not None or new is not None:
            raise ValueError("--apply: expected --features, and neither --old nor --new")
        if split is not None:
            raise ValueError("--split: expected --old and --new, which are split, not --apply")
        result = apply_adapter(apply, features, out, may_replace=replace)
    else:
        if old is None or new is None or features is not None:
            raise ValueError("expected --old and --new to fit, or --apply and --features to map")
        check_split(split)
        if split is not None and not check:
            raise ValueError("--split: expected --check, which it is of, got --no-check")
        check_file_target(out, "adapter", replace=replace, inputs=[old, new])
        form = Form(adapter, head, orthogonal)
        result = fit_adapter(Fit(old, new, out, form, direction, clusters, seed, check, split))
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

    FILE is overwritten only where it is such an export.

    With --index, the index written takes source features and searches the vectors the given one
    holds; the given file stays as it is. Its rows must be of unit length, as what an adapter
    returns is; codes too coarse to tell are noted, with the lengths they have. Affine adapters
    only: all but mlp, and compat-head if it was fitted with --head linear or low-rank.

    \b
    Examples:
      fcl export adapter.safetensors --out adapter.onnx
      fcl export rotation.safetensors --index gallery.faiss --out gallery-for-new.faiss
    """
    from fclearn.adapters import export as exporting
    from fclearn.adapters import load_adapter

    loaded = load_adapter(adapter)
    if out.exists() and out.samefile(adapter):
        raise ValueError(f"--out: expected another file than {adapter}, which stays as it is")
    if index is None:
        if out.suffix != ".onnx":
            raise ValueError(f"--out: expected a name ending in .onnx, or --index, got {out}")
        exporting.to_onnx(loaded, out)
    else:
        note = exporting.export_index(loaded, index, out)
        if note:
            say(f"note: {note}")
    say(f"adapter {loaded.name!r} in {out}")
    if json:
        emit({"adapter": loaded.name, "source_dim": loaded.source_dim, "file": str(out)})
