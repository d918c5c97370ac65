# SPDX-License-Identifier: Apache-2.0
"""Which row of a gallery each vector of an index is: by ids, and looked at on a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fclearn._faiss_index import IndexParts
from fclearn.evaluation.types import Ints
from fclearn.features import FeatureStore
from fclearn.wording import some

# Vectors that are looked at.
_SAMPLES = 32
# Share of them that may be nearer to another row than to their own, where they are whole: a gallery
# of which some rows were embedded anew.
_MOST_STRAYS = 0.1
# Mean share of other rows that may be nearer than the own one, where they are codes: half of them
# are in a wrong order, few in the right one, however coarse.
_MOST_NEARER = 0.35
# Of the length of a vector: rows that are as near as this to each other are copies, and a vector
# kept as bfloat16 may be as far from its row.
_TIE = 4e-3
_TINY = float(np.finfo(np.float32).tiny)
_REMEDY = "give the id of each of its rows (ids; --index-ids FILE)"

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """How an index and a gallery belong together.

    Attributes:
        rows: The index's numbers, ascending, and the gallery row of each; None: they are the rows.
        maps_queries: Whether the index takes queries of another space than the gallery's, as one
            with an adapter before it does.
        note: What could not be checked, or ``""``.
    """

    rows: tuple[Ints, Ints] | None
    maps_queries: bool
    note: str = ""


def match_gallery(
    parts: IndexParts, gallery: FeatureStore, ids: Sequence[str] | None, name: str
) -> Match:
    """Find the gallery row of each vector of an index, and look whether it is.

    Args:
        parts: Of the index.
        gallery: Whose rows the index holds.
        ids: Id of each vector by its number; where the index has other numbers than 0 … N - 1, in
            the order they were added. None: the numbers are ids of the gallery, or its rows.
        name: Of the index, for messages.

    Raises:
        ValueError: Other sizes, ids that the gallery lacks or that repeat, or rows in another
            order.
    """
    base, dims = parts.base, [*(one.d_in for one in parts.transforms), parts.base.d]
    if int(base.ntotal) != len(gallery) or gallery.dim not in dims:
        raise ValueError(
            f"{name}: expected the {len(gallery)} x {gallery.dim} rows of {gallery.path}, found "
            f"{base.ntotal} x {base.d}"
        )
    ways = list(_ways(parts, gallery, ids, name))
    levels = [at for at, dim in enumerate(dims) if dim == gallery.dim]
    sample = parts.sample(_SAMPLES)
    if sample is None:
        kind = type(base).__name__
        note = f"{name}: {kind} gives no vectors back, the order of its rows was not checked"
        return Match(ways[0], levels[0] > 0, note)
    numbers, vectors = sample
    for way in ways:
        own = numbers if way is None else way[1][np.searchsorted(way[0], numbers)]
        rows = np.asarray(gallery.features[own], dtype=np.float32)
        fits = [
            (distance, level) for level in levels for distance in _fits(parts, level, rows, vectors)
        ]
        if fits:
            # An adapter that moves little fits with and without: the nearer one is how it was made.
            return Match(way, min(fits)[1] > 0)
    by = "in their order" if ways[-1] is None else "by their ids"
    raise ValueError(
        f"{name}: expected the rows of {gallery.path} {by}, found vectors that are nearer to other "
        f"rows: {_REMEDY}" + (" that are those of the store" if ids is not None else "")
    )


def _ways(
    parts: IndexParts, gallery: FeatureStore, ids: Sequence[str] | None, name: str
) -> Iterator[tuple[Ints, Ints] | None]:
    """What the numbers of the index may mean, the likeliest first."""
    row_of = {one: row for row, one in enumerate(gallery.ids)}
    numbers, count = parts.numbers(), len(gallery)
    if ids is not None:
        if len(ids) != count or (numbers is not None and parts.id_map is None):
            raise ValueError(
                f"{name}: expected an id for each of {count} rows"
                + (f", got {len(ids)} ids" if len(ids) != count else " that have an order")
            )
        yield _by_text(np.arange(count) if numbers is None else numbers, ids, row_of, gallery, name)
        return
    known = np.arange(count) if numbers is None else numbers
    texts = [str(number) for number in known.tolist()]
    if all(text in row_of for text in texts):
        yield _by_text(known, texts, row_of, gallery, name)
    elif numbers is not None:
        raise ValueError(
            f"{name}: expected the ids of {gallery.path}, as {some(gallery.ids)}, found "
            f"{some([text for text in texts if text not in row_of])}: {_REMEDY}"
        )
    if numbers is None:
        yield None


def _by_text(
    numbers: Ints,
    texts: Sequence[str],
    row_of: dict[str, int],
    gallery: FeatureStore,
    name: str,
) -> tuple[Ints, Ints]:
    """Rows by the id of each number."""
    missing = [text for text in texts if text not in row_of]
    if missing:
        raise ValueError(
            f"{name}: expected ids of {gallery.path}, got {len(missing)} others: {some(missing)}"
        )
    for values in (numbers.tolist(), texts):
        if len(set(values)) != len(values):
            seen: set[object] = set()
            again = [one for one in values if one in seen or seen.add(one)]  # type: ignore[func-returns-value]
            raise ValueError(f"{name}: expected each id once, got repeats: {some(again)}")
    order = np.argsort(numbers)
    return numbers[order], np.array([row_of[text] for text in texts], dtype=np.int64)[order]


def _fits(parts: IndexParts, level: int, rows: Vectors, vectors: Vectors) -> Iterator[float]:
    """Mean distance of vectors to their own rows, of each form of the rows that fits.

    Args:
        parts: Of the index.
        level: How many of its transforms the rows are behind.
        rows: Of the gallery, ``(n, D')``.
        vectors: Of the index, ``(n, D)``.
    """
    for unit in (True, False):
        given = _unit(rows) if unit else rows
        for transform in parts.transforms[level:]:
            given = transform.apply(np.ascontiguousarray(given))
        held = _unit(vectors) if unit else vectors
        given = _unit(given) if unit else given
        distances = np.linalg.norm(held[:, None] - given[None], axis=2)
        own = np.diag(distances)
        slack = _TIE * np.linalg.norm(held, axis=1)
        nearer = distances < (own - slack)[:, None]
        if parts.is_whole:
            fits = nearer.any(axis=1).mean() <= _MOST_STRAYS
        else:
            fits = nearer.sum() <= _MOST_NEARER * len(own) * max(1, len(own) - 1)
        if fits:
            yield float(own.mean() / max(np.linalg.norm(held, axis=1).mean(), _TINY))


def _unit(rows: Vectors) -> Vectors:
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)
    return unit
