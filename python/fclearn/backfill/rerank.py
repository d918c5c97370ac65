# SPDX-License-Identifier: Apache-2.0
"""Two stages: the old index finds a shortlist, the new vectors that exist already reorder it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from fclearn.backfill.calibration import ScoreCalibration
from fclearn.evaluation import top_hits
from fclearn.features import FeatureSource, as_features, as_tensor

Ints = NDArray[np.int64]
_QUERIES_AT_ONCE = 256


def rerank_shortlist(
    ids: ArrayLike,
    old_scores: ArrayLike,
    new_scores: ArrayLike,
    *,
    calibration: ScoreCalibration | None = None,
) -> Ints:
    """Reorder shortlists of the old index by new scores, where there are any.

    Without a calibration the two kinds of score are never compared: rows that have a new vector
    trade places among themselves, best first, and the others stay where they are. With one, old
    scores are put on the scale of the new ones and all rows are sorted together.

    Args:
        ids: Hits of every query, best first, shape ``(Q, K)``; negative ones are padding, last.
        old_scores: Their scores, shape ``(Q, K)``.
        new_scores: By the new query and the new vector, NaN where there is none, ``(Q, K)``.
        calibration: From old scores to the scale of the new ones.

    Returns:
        Ids in their new order, shape ``(Q, K)``, int64. Equal scores keep the old order.

    Raises:
        ValueError: Shapes that disagree.

    Example:
        >>> nan = float("nan")
        >>> rerank_shortlist([[4, 8, 6, 2]], [[0.9, 0.8, 0.7, 0.6]], [[0.1, nan, 0.3, 0.2]])
        array([[6, 8, 2, 4]])
    """
    rows = np.asarray(ids, dtype=np.int64)
    old, new = np.asarray(old_scores, np.float64), np.asarray(new_scores, np.float64)
    if rows.ndim != 2 or old.shape != rows.shape or new.shape != rows.shape:
        raise ValueError(
            "ids, old_scores, new_scores: expected one shape [Q, K], got "
            f"{list(rows.shape)}, {list(old.shape)}, {list(new.shape)}"
        )
    has_new = np.isfinite(new) & (rows >= 0)
    if calibration is not None:
        worth = np.where(has_new, new, calibration.transform(old))
        worth = np.where(rows < 0, -np.inf, worth)
        order = np.argsort(-worth, axis=1, kind="stable")
        return np.asarray(np.take_along_axis(rows, order, 1))
    # The columns of rows with a new vector, in order, are filled with these rows by new score.
    best = np.argsort(np.where(has_new, -new, np.inf), axis=1, kind="stable")
    places = np.argsort(~has_new, axis=1, kind="stable")
    result: Ints = rows.copy()
    movable = np.sort(has_new, axis=1)[:, ::-1]
    query, column = np.nonzero(movable)
    result[query, places[query, column]] = rows[query, best[query, column]]
    return result


def two_stage_rerank(
    *,
    old_query: FeatureSource,
    old_gallery: FeatureSource,
    new_query: FeatureSource,
    new_gallery: FeatureSource,
    new_rows: ArrayLike,
    k: int = 100,
    calibration: ScoreCalibration | None = None,
) -> Ints:
    """Find the k best rows of the old gallery, then reorder them by the new vectors there are.

    Needs no compatibility: old is compared with old, new with new. The shortlist bounds what it
    can gain: what the old model does not find, it does not either.

    Args:
        old_query: Shape ``(Q, D_old)``.
        old_gallery: All rows, shape ``(G, D_old)``.
        new_query: The same queries, shape ``(Q, D_new)``.
        new_gallery: Rows re-embedded so far, shape ``(M, D_new)``, and
        new_rows: which rows of the gallery they are, shape ``(M,)``, integers in [0, G), each once.
        k: Length of the shortlist.
        calibration: As in `rerank_shortlist`.

    Returns:
        Gallery rows, shape ``(Q, k)``, int64, best first, by the cosine; -1 where G < k.

    Raises:
        TypeError: Features that are not floating, rows that are not integers.
        ValueError: Shapes that disagree, rows out of range or twice, NaN or infinite features.

    References:
        Matveeva et al., *High accuracy retrieval with multiple nested ranker*, SIGIR 2006
        (reranking in stages).

    Example:
        >>> import numpy as np
        >>> old = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> new = np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> two_stage_rerank(old_query=old[:1], old_gallery=old, new_query=new[1:],
        ...                  new_gallery=new, new_rows=[0, 1], k=2)
        array([[1, 0]])
    """
    size, num_queries = len(as_features(old_gallery, "old_gallery")), len(as_features(old_query))
    if len(as_features(new_query, "new_query")) != num_queries:
        raise ValueError(
            f"new_query: expected one row per old query ({num_queries}), got "
            f"{len(as_features(new_query))}"
        )
    place = _places(new_rows, size, len(as_features(new_gallery, "new_gallery")))
    unit = _unit(new_gallery, "new_gallery")
    if as_features(new_query).shape[1] != unit.shape[1]:
        raise ValueError(
            f"new_query: expected {unit.shape[1]} dims as new_gallery has, got "
            f"{as_features(new_query).shape[1]}"
        )
    if len(unit) == 0:
        unit = torch.zeros(1, unit.shape[1])  # something to gather from, masked below
    lists = []
    for start in range(0, num_queries, _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        asked = as_tensor(old_query, part)
        hits = top_hits(asked, old_gallery, k)
        old_rows = as_tensor(old_gallery, hits.clip(0).reshape(-1)).view(*hits.shape, -1)
        old_scores = torch.einsum(
            "qd,qkd->qk", F.normalize(asked, dim=1), F.normalize(old_rows, dim=2)
        ).numpy()
        at = np.where(hits >= 0, place[hits.clip(0)], -1)
        rows = unit[torch.from_numpy(at.clip(0))]
        new_scores = torch.einsum("qd,qkd->qk", _unit(new_query, "new_query", part), rows).numpy()
        new_scores = np.where(at >= 0, new_scores, np.nan)
        lists.append(rerank_shortlist(hits, old_scores, new_scores, calibration=calibration))
    return np.concatenate(lists) if lists else np.empty((0, k), dtype=np.int64)


def _places(new_rows: ArrayLike, size: int, count: int) -> Ints:
    """For every gallery row its place among the new vectors, or -1."""
    rows = np.asarray(new_rows)
    rows = rows if rows.size else rows.astype(np.int64)
    if rows.dtype.kind not in "iu":
        raise TypeError(f"new_rows: expected integers, got {rows.dtype}")
    if rows.shape != (count,):
        raise ValueError(
            f"new_rows: expected one for each of the {count} rows of new_gallery, got shape "
            f"{list(rows.shape)}"
        )
    if count and not 0 <= rows.min() <= rows.max() < size:
        raise ValueError(
            f"new_rows: expected rows in [0, {size}), got {rows.min()} to {rows.max()}"
        )
    place = np.full(size, -1, dtype=np.int64)
    place[rows] = np.arange(count)
    twice = rows[place[rows] != np.arange(count)]
    if len(twice):
        raise ValueError(f"new_rows: expected each row once, got {twice[0]} twice")
    return place


def _unit(features: FeatureSource, name: str, part: slice = slice(None)) -> torch.Tensor:
    rows = as_tensor(features, part)
    bad = (~rows.isfinite().all(1)).nonzero()
    if len(bad):
        row = (part.start or 0) + int(bad[0])
        raise ValueError(f"{name}: row {row} holds a NaN or infinite value")
    return F.normalize(rows, dim=1)
