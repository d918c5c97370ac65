# SPDX-License-Identifier: Apache-2.0
"""``fcl eval`` under torchrun: processes share the queries, and what is done is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from fclearn._launch import under_torchrun


@contextmanager
def shared_queries(stores: Sequence[Path | None], rest: object) -> Iterator[None]:
    """Under torchrun, each process ranks its share of the queries; pieces of them are kept.

    They lie beside the first store until the end, under a name made of the stores, which must not
    change, and the ``rest`` of what the numbers depend on.

    Args:
        stores: All files given, None where there is none.
        rest: Options that change numbers.
    """
    if not under_torchrun():
        yield
        return
    from fclearn.distributed import joined_world
    from fclearn.distributed.evaluation import evaluating_by_all

    given = [store for store in stores if store is not None]
    facts = repr(([_facts(store) for store in given], [store is None for store in stores], rest))
    key = hashlib.sha256(facts.encode()).hexdigest()[:12]
    first = given[0] if given else Path("stores")
    scratch = first.with_name(f".{first.name}.eval-{key}")
    verdict = None
    with joined_world("cpu") as world, evaluating_by_all(world, scratch):
        try:
            yield
        except typer.Exit as failed:  # a gate, when everything is evaluated: pieces may go
            verdict = failed
    if verdict is not None:
        raise verdict


def _facts(path: Path) -> tuple[str, int, int] | None:
    """Tells a store or file from what it was before."""
    for file in (path / "features.npy", path):
        if file.exists():
            stat = file.stat()
            return str(path), stat.st_size, stat.st_mtime_ns
    return None
