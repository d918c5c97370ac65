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
_SAMPLES = 128
# Share of them that may be strays: a gallery of which some rows were embedded anew.
# Measured of 16 kinds of index over five of data: none in the right order, 0.01 of rows kept as
# bfloat16; of 16-bit codes a share of 0.35 to 0.5 where half of the rows moved, but 0.13 where rows
# of a class were side by side.
_MOST_STRAYS = 0.1
# A vector is a stray where another row is nearer to it than its own by more than its codes lose,
# or where so many rows are nearer, however coarse the codes.
_MOST_NEARER = 0.25
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


def match_gallery(parts: IndexParts, gallery: FeatureStore, ids: Sequence[str] | None) -> Match:
    """Find the gallery row of each vector of an index, and look whether it is.

    Args:
        parts: Of the index.
        gallery: Whose rows the index holds.
        ids: Id of each vector by its number; where the index has other numbers than 0 … N - 1, in
            the order they were added. None: the numbers are ids of the gallery, or its rows.

    Raises:
        ValueError: Other sizes, ids that the gallery lacks or that repeat, or rows in another
            order; vectors that are not finite.
    """
    name = parts.name
    base, dims = parts.base, [*(one.d_in for one in parts.transforms), parts.base.d]
    if int(base.ntotal) != len(gallery) or gallery.dim not in dims:
        raise ValueError(
            f"{name}: expected the {len(gallery)} x {gallery.dim} rows of {gallery.path}, found "
            f"{base.ntotal} x {dims[0]}"
        )
    ways = list(_ways(parts, gallery, ids))
    levels = [at for at, dim in enumerate(dims) if dim == gallery.dim]
    sample = parts.sample(_SAMPLES)
    if sample is None:
        kind = type(base).__name__
        note = f"{name}: {kind} gives no vectors back, the order of its rows was not checked"
        return Match(ways[0], levels[0] > 0, note)
    numbers, vectors = sample
    for way in ways:
        own = numbers if way is None else np.searchsorted(way[0], numbers)
        near = np.clip(own + np.array([[0], [-1], [1]]), 0, len(gallery) - 1)
        rows = np.asarray(gallery.features[near if way is None else way[1][near]], dtype=np.float32)
        fits = [fit for level in levels for fit in _fits(parts, level, rows, vectors)]
        # How it was made is how its vectors are nearest, even where an adapter moves little.
        distance, strays, _ = min(fits)
        if strays <= _MOST_STRAYS:
            # A transform that moves nothing is no adapter, whatever rounding says.
            slack = _TIE * float(np.linalg.norm(vectors, axis=1).mean())
            level = min(level for other, _, level in fits if other <= distance + slack)
            return Match(way, level > 0)
    by = "in their order" if ways[-1] is None else "by their ids"
    raise ValueError(
        f"{name}: expected the rows of {gallery.path} {by}, found vectors that are nearer to other "
        f"rows: {_REMEDY}" + (" that are those of the store" if ids is not None else "")
    )


def _ways(
    parts: IndexParts, gallery: FeatureStore, ids: Sequence[str] | None
) -> Iterator[tuple[Ints, Ints] | None]:
    """What the numbers of the index may mean, the likeliest first."""
    name = parts.name
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
    if all(str(number) in row_of for number in known.tolist()):
        yield _by_text(known, [str(number) for number in known.tolist()], row_of, gallery, name)
    elif numbers is not None:
        raise ValueError(
            f"{name}: expected the ids of {gallery.path}, as {some(gallery.ids)}, found "
            f"{some([one for one in map(str, known.tolist()) if one not in row_of])}: {_REMEDY}"
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


def _fits(
    parts: IndexParts, level: int, rows: Vectors, vectors: Vectors
) -> Iterator[tuple[float, float, int]]:
    """How far vectors are from their own rows, and the share of strays, by what was added.

    Args:
        parts: Of the index.
        level: How many of its transforms the rows are behind.
        rows: Of the gallery, ``(3, n, D')``: the own ones, those before and those after them.
        vectors: Of the index, ``(n, D)``.
    """
    raw, unit = _behind(parts, level, rows), _behind(parts, level, _unit(rows))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    # Rows as the gallery has them, unit ones, or those of other lengths, as the index has.
    for given in (raw, unit, _unit(unit) * lengths):
        yield *_judge(parts, given, vectors), level


def _judge(parts: IndexParts, given: Vectors, vectors: Vectors) -> tuple[float, float]:
    """Mean distance of vectors to their own rows, and the share of them that are strays.

    Args:
        parts: Of the index, whose codes tell which rows a vector may be of.
        given: Rows as they would be added, ``(3, n, D)``: the own ones, those before, those after.
        vectors: Of the index, ``(n, D)``.
    """
    coded = parts.coded(given.reshape(-1, given.shape[-1]))
    if coded is None:  # nor is it known what codes would lose
        held, lost = given, np.full(len(vectors), np.inf)
    else:
        held = coded.reshape(given.shape)
        lost = np.linalg.norm(held[0] - given[0], axis=1)
    slack = _TIE * np.linalg.norm(vectors, axis=1)
    distances = np.stack([np.linalg.norm(held[0] - one, axis=1) for one in vectors])
    own = np.diag(distances)
    beside = np.linalg.norm(held[1:] - vectors, axis=2).min(axis=0)
    nearest = np.minimum(distances.min(axis=1), beside)
    strays = nearest < own - np.maximum(slack, lost)
    strays |= (distances < (own - slack)[:, None]).sum(axis=1) > _MOST_NEARER * (len(own) - 1)
    # Exactly as the row beside is coded: rows that moved by one, however alike they are.
    strays |= (beside <= slack) & (beside < own - slack)
    return float(own.mean()), float(strays.mean())


def _behind(parts: IndexParts, level: int, rows: Vectors) -> Vectors:
    """Rows of any shape as the base has them, behind the transforms from a level on."""
    flat = np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]))
    for transform in parts.transforms[level:]:
        flat = transform.apply(flat)
    return flat.reshape(*rows.shape[:-1], -1)


def _unit(rows: Vectors) -> Vectors:
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), _TINY)
    return unit
