# SPDX-License-Identifier: Apache-2.0
"""Retrieval metrics as functions of the ranks of the positives."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: What `evaluate_retrieval` knows; ``k`` is any positive integer.
METRIC_NAMES = ("map", "map@k", "map@r", "cmc@k", "recall@k", "precision@k", "ndcg@k", "mrr")

_ALL_RANKS = np.iinfo(np.int64).max
_PATTERN = re.compile(r"(?P<name>map|cmc|recall|precision|ndcg)@(?P<k>[1-9]\d*)")


@dataclass(frozen=True)
class Ranks:
    """Ranks of the positives of some queries, from 1, in ascending order query by query.

    Attributes:
        query: Which query a rank belongs to, shape ``(P,)``, int64, ascending.
        rank: Its rank among all gallery rows that are not excluded, shape ``(P,)``, int64.
        counts: Positives of each query, all >= 1, shape ``(n,)``, int64; P is their sum.
    """

    query: NDArray[np.int64]
    rank: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def hits(self) -> NDArray[np.int64]:
        """Positives at this rank or better, shape ``(P,)``: 1, 2, … within each query."""
        ends = np.cumsum(self.counts)
        hits = np.arange(1, len(self.rank) + 1) - np.repeat(ends - self.counts, self.counts)
        return np.asarray(hits, dtype=np.int64)

    @property
    def first(self) -> NDArray[np.int64]:
        """Rank of the best positive of each query, shape ``(n,)``."""
        return np.asarray(self.rank[np.cumsum(self.counts) - self.counts], dtype=np.int64)


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the metric names, without repeats.

    Raises:
        TypeError: A single string instead of a sequence.
        ValueError: No name, or an unknown one; the nearest valid name is proposed.
    """
    if isinstance(metrics, str):
        raise TypeError(f"metrics: expected a sequence of names, got the string {metrics!r}")
    names = tuple(dict.fromkeys(metrics))
    if not names:
        raise ValueError(f"metrics: expected at least one of {', '.join(METRIC_NAMES)}")
    for name in names:
        if name not in {"map", "map@r", "mrr"} and not _PATTERN.fullmatch(str(name)):
            raise ValueError(
                f"metrics: unknown metric {name!r}; did you mean {_nearest(str(name))!r}? "
                f"Known: {', '.join(METRIC_NAMES)}"
            )
    return names


def metric_values(name: str, ranks: Ranks) -> NDArray[np.float64]:
    r"""One metric for each query, shape ``(n,)``; ``name`` as checked by `check_metrics`.

    With R positives of a query at ranks :math:`r_1 < … < r_R`:

    * ``map``: average precision over all ranks, :math:`(1/R) Σ_j j / r_j`;
    * ``map@k``: :math:`(1/\min(R, k)) Σ_{r_j ≤ k} j / r_j`; ``map@r``: the same with k = R;
    * ``cmc@k``: 1 if :math:`r_1 ≤ k`; ``recall@k``: share of the positives at ranks ≤ k;
      ``precision@k``: positives at ranks ≤ k, over k;
    * ``ndcg@k``: :math:`Σ_{r_j ≤ k} 1/\log_2(1 + r_j)` over its maximum; ``mrr``: :math:`1/r_1`.
    """
    counts = ranks.counts
    if name == "mrr":
        return np.asarray(1.0 / ranks.first, dtype=np.float64)
    stem, _, cut = name.partition("@")
    # Every other metric looks at the ranks up to k, which may differ by query.
    k = counts if cut == "r" else np.full_like(counts, int(cut) if cut else _ALL_RANKS)
    if stem == "cmc":
        return (ranks.first <= k).astype(np.float64)
    within = ranks.rank <= k[ranks.query]
    if stem == "map":
        gains, best = within * (ranks.hits / ranks.rank), np.minimum(counts, k)
    elif stem == "ndcg":
        gains, reachable = within / np.log2(1.0 + ranks.rank), np.minimum(counts, k)
        best = np.cumsum(1.0 / np.log2(np.arange(2.0, int(reachable.max()) + 2.0)))[reachable - 1]
    else:
        gains, best = within.astype(np.float64), counts if stem == "recall" else k
    # bincount adds in order, so a query's sum does not depend on its neighbours.
    sums = np.bincount(ranks.query, weights=gains, minlength=len(counts))
    return np.asarray(sums / best, dtype=np.float64)


def _nearest(name: str) -> str:
    stem, k = re.fullmatch(r"(.*?)[@_ ]*(\d*)", name.lower(), re.DOTALL).groups()  # type: ignore[union-attr]
    stems = sorted({known.partition("@")[0] for known in METRIC_NAMES})
    best = (difflib.get_close_matches(stem, stems, n=1, cutoff=0.0) or ["map"])[0]
    if best == "mrr" or (best == "map" and not k):
        return best
    return f"{best}@{max(int(k or 1), 1)}"
