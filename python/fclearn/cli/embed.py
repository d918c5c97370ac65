# SPDX-License-Identifier: Apache-2.0
"""Verb ``embed``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fclearn._launch import under_torchrun
from fclearn.cli.console import JsonFlag, emit, say
from fclearn.cli.targets import ReplaceFlag, check_store_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fclearn.features import FeatureStore, Fingerprint


def embed(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Output folder of fcl train.")],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="icons, fashion-mnist[:test], a folder with one folder per class, or a .csv or "
            ".parquet manifest.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="STORE", help="Feature store to write.")],
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Only this class; may be given again."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 256,
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    replace: ReplaceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Embed images with a trained model into a feature store.

    Images are brought to the size and channels the model was trained on. Under torchrun, each
    process embeds its share (on its own GPU). A store is a folder with
    features.npy, a manifest (id, label, class name, and path of image files) and the model's
    fingerprint. Stopped at any instant, the same command resumes; once it has ended, it does
    nothing. Another store that is there is replaced with --replace alone.

    \b
    Examples:
      fcl embed runs/old icons --out runs/old-features
      fcl embed runs/new photos/test --out runs/new-test --dtype float16
    """
    import dataclasses

    from fclearn.cli.devices import choose_device
    from fclearn.cli.images import load_images, parse_source
    from fclearn.embedding import embed as embed_images
    from fclearn.features import FeatureStore
    from fclearn.model_folder import load_model

    if dtype not in {"float32", "float16"}:
        raise ValueError(f"--dtype: expected float32 or float16, got {dtype!r}")
    encoder, card = load_model(model)
    source = parse_source(data, classes or [])
    files = source.kind in {"folder", "manifest"}
    short_side = card.short_side if files else None
    source = dataclasses.replace(source, size=card.size, grey=card.grey, short_side=short_side)
    images = load_images(source)
    if images.channels != card.channels:
        raise ValueError(
            f"data: the model takes {card.channels} channels, {data} has {images.channels}"
        )
    if not replace and _is_done(out, card.fingerprint, images.ids, dtype):
        say(f"{out} has these rows by this model already; --replace embeds them again")
        store = FeatureStore.open(out)
        if json:
            emit(_facts(store, out))
        return
    check_store_target(out, replace=replace, inputs=[model, Path(data)])
    if under_torchrun():
        from fclearn.distributed import joined_world
        from fclearn.distributed.embedding import embed_by_all

        with joined_world(device) as world:
            store = embed_by_all(
                encoder,
                images,
                out,
                fingerprint=card.fingerprint,
                world=world,
                batch_size=batch_size,
                dtype=dtype,
            )
    else:
        store = embed_images(
            encoder,
            images,
            out,
            fingerprint=card.fingerprint,
            batch_size=batch_size,
            device=choose_device(device),
            dtype=dtype,
        )
    say(f"{len(store)} rows of {store.dim} numbers in {out}")
    if json:
        emit(_facts(store, out))


def _is_done(out: Path, fingerprint: Fingerprint, ids: Sequence[str], dtype: str) -> bool:
    """Whether a run of this very command has ended: its fingerprint has a digest of the weights."""
    from fclearn.features import FeatureStore

    try:
        store = FeatureStore.open(out)
    except (OSError, ValueError):
        return False
    same_rows = list(store.ids) == list(ids) and store.features.dtype == dtype
    return same_rows and store.fingerprint == fingerprint


def _facts(store: FeatureStore, out: Path) -> dict[str, object]:
    return {
        "store": str(out),
        "rows": len(store),
        "dim": store.dim,
        "fingerprint": store.fingerprint.to_dict(),
    }
