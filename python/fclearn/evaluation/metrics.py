# SPDX-License-Identifier: Apache-2.0
r"""Registry of retrieval metrics: each a function of the ranks of a query's positives.

Notation of all formulas: a query has R positives, of grades :math:`g_1 … g_R` (1 where relevance is
not graded); those found stand at ranks :math:`r_1 < r_2 < …`, counted from 1 over the gallery rows
that are not excluded. Where scores are equal, the lower gallery row ranks first.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_NOT_FOUND = np.iinfo(np.int64).max
_ALL_RANKS = _NOT_FOUND - 1


@dataclass(frozen=True)
class Ranks:
    """Ranks of the positives of some queries, from 1, in ascending order query by query.

    Attributes:
        query: Which query a rank belongs to, shape ``(P,)``, int64, ascending.
        rank: Its rank among all gallery rows that are not excluded, shape ``(P,)``, int64.
        counts: Positives of each query, all >= 1, shape ``(n,)``, int64: those in ``rank``, and
            those that were not found or are not in the gallery.
        grades: Grade of each rank, shape ``(P,)``; None: all are 1.
        ideal: Grades of all positives, query by query, best first, shape ``(sum of counts,)``;
            None: all are 1.
    """

    query: NDArray[np.int64]
    rank: NDArray[np.int64]
    counts: NDArray[np.int64]
    grades: Floats | None = None
    ideal: Floats | None = None

    @property
    def found(self) -> NDArray[np.int64]:
        """Positives that have a rank, shape ``(n,)``."""
        return np.bincount(self.query, minlength=len(self.counts))

    @property
    def hits(self) -> NDArray[np.int64]:
        """Positives at this rank or better, shape ``(P,)``: 1, 2, … within each query."""
        return _count_within(self.found)

    @property
    def first(self) -> NDArray[np.int64]:
        """Rank of the best positive of each query, shape ``(n,)``; the largest integer if none."""
        best = np.full(len(self.counts), _NOT_FOUND)
        first = np.flatnonzero(self.hits == 1)
        best[self.query[first]] = self.rank[first]
        return best


def average_precision(ranks: Ranks, k: NDArray[np.int64]) -> Floats:
    r"""``map``, ``map@k`` and ``map@r``: :math:`\frac{1}{\min(R, k)} \sum_{r_j ≤ k} j / r_j`.

    ``map`` counts all ranks (Buckley & Voorhees, *Retrieval System Evaluation*, 2005, as trec_eval
    has it); ``map@k`` divides by what is reachable (Weyand et al., *Google Landmarks Dataset v2*,
    CVPR 2020); ``map@r`` has k = R (Musgrave, Belongie, Lim, *A Metric Learning Reality Check*,
    ECCV 2020).
    """
    gains = (ranks.rank <= k[ranks.query]) * (ranks.hits / ranks.rank)
    return _sums(ranks, gains) / np.minimum(ranks.counts, k)


def trapezoid_precision(ranks: Ranks, k: NDArray[np.int64]) -> Floats:
    r"""``map_trapezoid``: the area under precision over recall by the trapezoidal rule.

    :math:`\frac{1}{2R} \sum_j \left( \frac{j - 1}{r_j - 1} + \frac{j}{r_j} \right)`, the first
    fraction 1 where :math:`r_j = 1`: what the Oxford and Paris benchmarks report as mAP (Philbin et
    al., CVPR 2007; Radenović et al., *Revisiting Oxford and Paris*, CVPR 2018).
    """
    before = np.where(ranks.rank == 1, 1.0, (ranks.hits - 1) / np.maximum(ranks.rank - 1, 1))
    gains = (ranks.rank <= k[ranks.query]) * (before + ranks.hits / ranks.rank)
    return _sums(ranks, gains) / (2 * ranks.counts)


def match(ranks: Ranks, k: NDArray[np.int64]) -> Floats:
    """``cmc@k``: 1 if :math:`r_1 ≤ k`, else 0.

    A point of the cumulative match characteristic (Moon & Phillips, *Computational and Performance
    Aspects of PCA-based Face-Recognition Algorithms*, 2001). Metric learning calls it recall@k.
    """
    return (ranks.first <= k).astype(np.float64)


def recall(ranks: Ranks, k: NDArray[np.int64]) -> Floats:
    r"""``recall@k``: :math:`|\{j : r_j ≤ k\}| / R`, the share of the positives (as trec_eval)."""
    return _sums(ranks, (ranks.rank <= k[ranks.query]).astype(np.float64)) / ranks.counts


def precision(ranks: Ranks, k: NDArray[np.int64]) -> Floats:
    r"""``precision@k``: :math:`|\{j : r_j ≤ k\}| / k`; ``precision@r`` has k = R: R-precision.

    Ranks beyond the end of a short gallery count as misses (as trec_eval).
    """
    return _sums(ranks, (ranks.rank <= k[ranks.query]).astype(np.float64)) / k


def discounted_gain(ranks: Ranks, k: NDArray[np.int64]) -> Floats:
    r"""``ndcg`` and ``ndcg@k``: :math:`\sum_{r_j ≤ k} g_j / \log_2(1 + r_j)` over its maximum.

    The gain is the grade itself (Järvelin & Kekäläinen, *Cumulated Gain-based Evaluation of IR
    Techniques*, 2002, with trec_eval's discount), not :math:`2^g - 1`.
    """
    gains = (ranks.rank <= k[ranks.query]) / np.log2(1.0 + ranks.rank)
    reachable = np.minimum(ranks.counts, k)
    if ranks.grades is None or ranks.ideal is None:
        discounts = 1.0 / np.log2(np.arange(2.0, int(reachable.max()) + 2.0))
        return np.asarray(_sums(ranks, gains) / np.cumsum(discounts)[reachable - 1])
    place = _count_within(ranks.counts)
    query = np.repeat(np.arange(len(ranks.counts)), ranks.counts)
    best = (place <= k[query]) * ranks.ideal / np.log2(1.0 + place)
    ideal = np.bincount(query, weights=best, minlength=len(ranks.counts))
    return _sums(ranks, gains * ranks.grades) / ideal


def reciprocal_rank(ranks: Ranks, k: NDArray[np.int64]) -> Floats:
    r"""``mrr`` and ``mrr@k``: :math:`1 / r_1`, 0 if :math:`r_1 > k`.

    Voorhees, *The TREC-8 Question Answering Track Report*, 1999.
    """
    first = ranks.first
    return np.asarray(np.where(first <= k, 1.0 / first, 0.0))


@dataclass(frozen=True)
class Metric:
    """An entry of the registry.

    Attributes:
        values: One value per query, shape ``(n,)``, from ranks and the last rank that counts.
        cuts: What may stand behind the ``@``: ``""`` (nothing: all ranks count), ``"k"`` for any
            positive integer, ``"r"`` for the number of positives.
    """

    values: Callable[[Ranks, NDArray[np.int64]], Floats]
    cuts: tuple[str, ...]


METRICS = {
    "map": Metric(average_precision, ("", "k", "r")),
    "map_trapezoid": Metric(trapezoid_precision, ("",)),
    "cmc": Metric(match, ("k",)),
    "recall": Metric(recall, ("k",)),
    "precision": Metric(precision, ("k", "r")),
    "ndcg": Metric(discounted_gain, ("", "k")),
    "mrr": Metric(reciprocal_rank, ("", "k")),
}

#: What `evaluate_retrieval` knows; ``k`` is any positive integer.
METRIC_NAMES = tuple(
    f"{stem}@{cut}" if cut else stem for stem, metric in METRICS.items() for cut in metric.cuts
)


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
        stem, _, cut = str(name).partition("@")
        kind = "k" if re.fullmatch(r"[1-9]\d*", cut) else cut
        if stem not in METRICS or kind not in METRICS[stem].cuts or str(name).endswith(("@", "@k")):
            raise ValueError(
                f"metrics: unknown metric {name!r}; did you mean {_nearest(str(name))!r}? "
                f"Known: {', '.join(METRIC_NAMES)}"
            )
    return names


def deepest_rank(name: str, counts: NDArray[np.int64]) -> int | None:
    """Ranks beyond this one do not matter to a metric; None: all of them do.

    Args:
        name: As checked by `check_metrics`.
        counts: Positives of each query.

    Example:
        >>> [deepest_rank(name, np.array([2, 7])) for name in ("map@100", "map@r", "mrr")]
        [100, 7, None]
    """
    cut = name.partition("@")[2]
    if cut == "r":
        return int(counts.max())
    return int(cut) if cut else None


def metric_values(name: str, ranks: Ranks) -> Floats:
    """One metric for each query, shape ``(n,)``; ``name`` as checked by `check_metrics`."""
    stem, _, cut = name.partition("@")
    counts = ranks.counts
    k = counts if cut == "r" else np.full_like(counts, int(cut) if cut else _ALL_RANKS)
    return METRICS[stem].values(ranks, k)


def _sums(ranks: Ranks, gains: Floats) -> Floats:
    # bincount adds in order, so a query's sum does not depend on its neighbours.
    sums = np.bincount(ranks.query, weights=gains, minlength=len(ranks.counts))
    return np.asarray(sums, dtype=np.float64)


def _count_within(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """1, 2, … for each of ``counts`` elements, one after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(1, total + 1) - np.repeat(ends - counts, counts)


def _nearest(name: str) -> str:
    stem, k = re.fullmatch(r"(.*?)[@_ ]*(\d*)", name.lower(), re.DOTALL).groups()  # type: ignore[union-attr]
    best = (difflib.get_close_matches(stem, sorted(METRICS), n=1, cutoff=0.0) or ["map"])[0]
    if "" in METRICS[best].cuts and not k:
        return best
    return f"{best}@{max(int(k or 1), 1)}"
