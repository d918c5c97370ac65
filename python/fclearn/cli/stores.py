# SPDX-License-Identifier: Apache-2.0
"""Verbs ``pull``, ``push`` and ``rollback``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fclearn.cli.console import JsonFlag, emit, say
from fclearn.cli.options import read_names

_STORE_HELP = (
    "faiss:FILE, parquet:FILE?column=C, qdrant:FOLDER_OR_URL?collection=C, "
    "postgresql://HOST/DB?table=T&column=C, milvus:FILE_OR_URL?collection=C."
)
_BATCH = Annotated[int, typer.Option(min=1, help="Rows at a time.")]
_PAYLOAD = typer.Option(metavar="COLUMNS", help="Further columns, by commas.")
_SECONDS_BETWEEN_LINES = 5.0


def pull(
    store: Annotated[str, typer.Argument(metavar="STORE", help=_STORE_HELP)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Feature store to write.")],
    model: Annotated[
        str | None, typer.Option(help="What made the vectors, if the store does not say.")
    ] = None,
    payload: Annotated[str, _PAYLOAD] = "",
    drop_invalid: Annotated[
        bool, typer.Option("--drop-invalid", help="Leave out rows with NaN or infinite numbers.")
    ] = False,
    batch_size: _BATCH = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Read the vectors of a store that serves into a feature store.

    The store is only read. Rows without a vector are left out. Stopped at any instant, the same
    command resumes. What the store does not say about its vectors, --model does.

    \b
    Examples:
      fcl pull "qdrant:runs/qdrant?collection=items" --model resnet-v1 --out runs/old
      fcl pull "postgresql://me@db/shop?table=items&column=embedding" --payload label \\
        --model resnet-v1 --out runs/old
    """
    from fclearn.stores import open_store
    from fclearn.stores import pull as pull_rows

    with open_store(store) as opened:
        if dry_run:
            info = opened.info()
            if info is None:
                raise ValueError(f"store {opened.url}: no such file, collection, table or column")
            made_by = info.fingerprint.model if info.fingerprint else "unknown"
            say(
                f"{info.count} vectors of {info.dim} numbers ({info.dtype}), compared by "
                f"{info.metric or 'whoever asks'}, made by {made_by}; "
                f"{info.count * info.dim * (2 if info.dtype == 'float16' else 4):,} bytes"
            )
            result: dict[str, object] = {
                **vars(info),
                "fingerprint": info.fingerprint and info.fingerprint.to_dict(),
            }
        else:
            written = pull_rows(
                opened,
                out,
                model=model,
                payload=read_names(payload),
                batch_size=batch_size,
                drop_invalid=drop_invalid,
                progress=_progress("read"),
            )
            say(
                f"{len(written)} rows of {written.dim} numbers, compared by "
                f"{written.fingerprint.metric}, in {out}"
            )
            result = {
                "store": str(out),
                "rows": len(written),
                "dim": written.dim,
                "fingerprint": written.fingerprint.to_dict(),
            }
    if json:
        emit(result)


def push(
    features: Annotated[Path, typer.Argument(metavar="FEATURES", help="Feature store.")],
    store: Annotated[str, typer.Argument(metavar="STORE", help=_STORE_HELP)],
    ids: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Only these: plan.csv (its budget), or one id a line."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite vectors that are there; they are kept.")
    ] = False,
    payload: Annotated[str, _PAYLOAD] = "",
    journal: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Else beside the features.")
    ] = None,
    batch_size: _BATCH = 1000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, count, write nothing.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Write features into a store that serves, beside what is there; fcl rollback undoes it.

    By default the column, collection or file is new, and old vectors are never touched. With
    --replace vectors that are there are overwritten; the journal keeps the old ones. Everything
    is checked before anything is written. Stopped at any instant, the same command resumes,
    and nothing is lost or doubled.

    \b
    Examples:
      fcl push runs/new "postgresql://me@db/shop?table=items&column=embedding_v2"
      fcl push runs/new "qdrant:runs/qdrant?collection=items" --ids plan/plan.csv --replace
    """
    from fclearn.features import FeatureStore
    from fclearn.stores import open_store, read_ids
    from fclearn.stores import push as push_rows

    with open_store(store) as opened:
        result = push_rows(
            FeatureStore.open(features),
            opened,
            ids=None if ids is None else read_ids(ids),
            replace=replace,
            dry_run=dry_run,
            journal=journal,
            payload=read_names(payload),
            batch_size=batch_size,
            progress=_progress("written"),
        )
    for note in result.notes:
        say(f"note: {note}")
    verb = "would be written" if dry_run else "written"
    if result.already_done:
        verb = "written before: nothing to do"
    say(f"{result.rows} rows, {result.inserted} new and {result.replaced} replaced, {verb}")
    if not dry_run:
        say(f"undo it by: fcl rollback {result.journal}")
    if json:
        emit(result.to_dict())


def rollback(
    journal: Annotated[Path, typer.Argument(metavar="JOURNAL", help="Folder that fcl push named.")],
    store: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="The store, if its name needs a password."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also rows that somebody changed after the push.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, count, write nothing.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Undo a push, finished or not: what it added is removed, what it replaced is put back.

    Refuses, and touches nothing, where rows were changed by somebody else after the push.

    \b
    Examples:
      fcl rollback runs/new.push-1a2b3c4d
    """
    from fclearn.stores import Journal, open_store
    from fclearn.stores import rollback as undo

    book = Journal(journal)
    if not book.settings:
        raise ValueError(f"{journal}: expected the journal of a push, found none")
    with open_store(store or str(book.settings["store"])) as opened:
        if str(opened.url) != book.settings["store"]:
            raise ValueError(f"--store: expected {book.settings['store']}, got {opened.url}")
        result = undo(book, opened, force=force, dry_run=dry_run, progress=_progress("undone"))
    verb = "would be" if dry_run else "are"
    say(f"{result.restored} rows {verb} put back, {result.removed} {verb} removed")
    if json:
        emit(vars(result))


def _progress(done: str) -> Callable[[int, int], None]:
    """Says how far it is, every few seconds."""
    last = time.monotonic()

    def report(count: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{count:,} of {total:,} {done}")

    return report
