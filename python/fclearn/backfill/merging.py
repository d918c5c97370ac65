# SPDX-License-Identifier: Apache-2.0
"""One ranking out of the answers of several indexes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
METHODS = ("rrf", "score")


def merge_rankings(
    rankings: Sequence[ArrayLike],
    *,
    scores: Sequence[ArrayLike] | None = None,
    method: str = "rrf",
    k: int = 60,
    limit: int | None = None,
) -> tuple[Ints, Floats]:
    r"""Merge the hits of several indexes, for galleries whose spaces cannot be compared.

    While a gallery is re-embedded, the old index answers the old query and the new index the new
    query. ``"rrf"``, reciprocal rank fusion: :math:`\sum_i 1 / (k + r_i(d))` over the lists that
    hold d, with ranks from 1; it needs no scores, and is meant for lists over the *same* items, as
    when the old index keeps every row. ``"score"``: the largest score of d in any list; right for
    two halves of a gallery, once `ScoreCalibration` has put the scores on one scale.

    Args:
        rankings: For each index the hits of every query, best first, shape ``(Q, K_i)``, integer
            ids of items; negative ones are padding.
        scores: Of the hits, same shapes, larger is nearer; for ``"score"``.
        method: ``"rrf"`` or ``"score"``.
        k: Constant of ``"rrf"``, at least 0; larger ones favour agreement over first places.
        limit: Hits to keep per query; None: all.

    Returns:
        Ids, shape ``(Q, L)``, int64, best first, -1 where there are no more, and their merged
        scores, float64, -inf there. Equal ones are ordered by id, lower first.

    Raises:
        TypeError: Rankings that are not integers.
        ValueError: No ranking, shapes that disagree, an id twice in one list, scores missing, NaN
            or superfluous, an unknown method, ``k`` or ``limit`` out of range.

    References:
        Cormack, Clarke & Büttcher, *Reciprocal rank fusion outperforms Condorcet and individual
        rank learning methods*, SIGIR 2009. Fox & Shaw, *Combination of multiple searches*, TREC-2
        1994 (CombMAX). Seo et al., *Metric compatible training for online backfilling in
        large-scale retrieval*, WACV 2025 (merging two half-galleries by distance).

    Example:
        >>> ids, fused = merge_rankings([[[7, 3, 5]], [[3, 9, -1]]], k=60)
        >>> ids.tolist(), fused.round(4).tolist()
        ([[3, 7, 9, 5]], [[0.0325, 0.0164, 0.0161, 0.0159]])
    """
    if method not in METHODS:
        raise ValueError(f"method: expected 'rrf' or 'score', got {method!r}")
    if (method == "score") != (scores is not None):
        need = "scores are needed" if scores is None else "scores are not used"
        raise ValueError(f"scores: with method={method!r} {need}")
    if k < 0:
        raise ValueError(f"k: expected at least 0, got {k}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1, got {limit}")
    lists = _lists(rankings)
    values = (
        [np.broadcast_to(1 / (k + np.arange(1.0, 1 + part.shape[1])), part.shape) for part in lists]
        if scores is None
        else _values(scores, lists)
    )
    ids, worth = np.concatenate(lists, axis=1), np.concatenate(values, axis=1)
    # One item's entries stand together, padding last, and each item's first one collects them.
    order = np.argsort(np.where(ids < 0, np.iinfo(np.int64).max, ids), axis=1, kind="stable")
    ids, worth = np.take_along_axis(ids, order, 1), np.take_along_axis(worth, order, 1)
    worth = np.where(ids < 0, -np.inf, worth)
    first = np.ones(ids.shape, dtype=bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    for shift in range(1, len(lists)):
        same = np.zeros(ids.shape, dtype=bool)
        same[:, :-shift] = first[:, :-shift] & (ids[:, shift:] == ids[:, :-shift])
        same &= ids >= 0
        query, column = np.nonzero(same)
        other = worth[query, column + shift]
        worth[query, column] = (
            np.maximum(worth[query, column], other)
            if method == "score"
            else worth[query, column] + other
        )
    worth = np.where(first & (ids >= 0), worth, -np.inf)
    best = np.argsort(-worth, axis=1, kind="stable")[:, : limit or ids.shape[1]]
    ids, worth = np.take_along_axis(ids, best, 1), np.take_along_axis(worth, best, 1)
    used = np.isfinite(worth).any(axis=0)
    width = int(used.sum()) if limit is None else ids.shape[1]
    ids = np.where(np.isneginf(worth), -1, ids)
    return ids[:, :width], worth[:, :width]


def _lists(rankings: Sequence[ArrayLike]) -> list[Ints]:
    if not len(rankings):
        raise ValueError("rankings: expected at least one, got none")
    lists: list[Ints] = []
    for at, given in enumerate(rankings):
        array = np.asarray(given)
        if array.size == 0:
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu":
            raise TypeError(f"rankings[{at}]: expected integer ids, got {array.dtype}")
        if array.ndim != 2 or (lists and len(array) != len(lists[0])):
            rows = f"[{len(lists[0])}, K]" if lists else "[Q, K]"
            raise ValueError(
                f"rankings[{at}]: expected shape {rows}, one row per query, got {list(array.shape)}"
            )
        array = array.astype(np.int64)
        ordered = np.sort(array, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if twice.any():
            query, column = np.argwhere(twice)[0]
            raise ValueError(
                f"rankings[{at}]: expected each id once per query, got {ordered[query, column]} "
                f"twice for query {query}"
            )
        lists.append(array)
    return lists


def _values(scores: Sequence[ArrayLike], lists: list[Ints]) -> list[Floats]:
    values = [np.asarray(given, dtype=np.float64) for given in scores]
    shapes = [list(part.shape) for part in lists]
    if [list(value.shape) for value in values] != shapes:
        raise ValueError(
            f"scores: expected the shapes of the rankings, {shapes}, got "
            f"{[list(value.shape) for value in values]}"
        )
    for at, (value, part) in enumerate(zip(values, lists, strict=True)):
        if not np.isfinite(value[part >= 0]).all():
            raise ValueError(f"scores[{at}]: expected finite numbers, got a NaN or infinity")
    return values
