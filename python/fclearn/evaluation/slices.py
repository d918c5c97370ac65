# SPDX-License-Identifier: Apache-2.0
"""Where a ranking is worst, or lost most: by class, by domain, by any column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation.intervals import bootstrap_means, check_bootstrap, interval
from fclearn.evaluation.types import Interval


@dataclass(frozen=True)
class Slice:
    """Queries that share a value, and how they fare.

    Attributes:
        name: The value they share.
        num_queries: Queries with a value of the metric; a mean of few means little.
        mean: Of the metric.
        change: Mean of the metric less that of the baseline; None without one.
        interval: Bootstrap interval of the change, or of the mean; None for a single query.
    """

    name: str
    num_queries: int
    mean: float
    change: float | None
    interval: Interval | None

    def to_dict(self) -> dict[str, object]:
        """All fields, as JSON values."""
        return asdict(self)


def worst_slices(
    values: NDArray[np.float64],
    slices: Sequence[object] | NDArray[np.generic],
    *,
    baseline: NDArray[np.float64] | None = None,
    n: int = 10,
    min_queries: int = 1,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Slice]:
    """The slices of lowest mean, or those that lost most against a baseline, worst first.

    Args:
        values: A metric of each query, shape ``(Q,)``, float64, NaN where skipped: an entry of
            ``RetrievalResult.per_query``.
        slices: What each query belongs to, shape ``(Q,)``: its class, domain, month; compared as
            text.
        baseline: The metric of the same queries before, shape ``(Q,)``.
        n: Most slices to return.
        min_queries: Leave out slices with fewer queries.
        num_bootstrap: Resamples of a slice's queries behind each interval.
        confidence: Of the intervals, in (0, 1).
        seed: Of the resamples.

    Returns:
        At most ``n`` slices; equal ones in the order of their names.

    Raises:
        ValueError: Shapes that differ, or arguments out of range.

    Note:
        The worst of many slices look worse than they are, by the choice itself: intervals are for
        each slice alone.

    Example:
        >>> import numpy as np
        >>> values = np.array([1.0, 0.5, 0.25, 0.25])
        >>> [(s.name, s.mean, s.num_queries) for s in worst_slices(values, ["a", "a", "b", "b"])]
        [('b', 0.25, 2), ('a', 0.75, 2)]
    """
    check_bootstrap(num_bootstrap, confidence)
    for name, count in (("n", n), ("min_queries", min_queries)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    names = np.array([str(one) for one in slices])
    values = np.asarray(values, np.float64)
    before = None if baseline is None else np.asarray(baseline, np.float64)
    for argument, array in (("slices", names), ("baseline", before)):
        if array is not None and array.shape != values.shape:
            raise ValueError(
                f"{argument}: expected one for each of the {len(values)} values, got shape "
                f"{list(array.shape)}"
            )
    compared = values if before is None else values - before
    counted = np.flatnonzero(~np.isnan(compared))
    unique, number = np.unique(names[counted], return_inverse=True)
    counts = np.bincount(number, minlength=len(unique))
    means = np.bincount(number, weights=compared[counted], minlength=len(unique)) / counts
    order = np.argsort(means, kind="stable").tolist()
    chosen = [at for at in order if counts[at] >= min_queries][:n]
    found = []
    for place in chosen:
        rows = counted[number == place]
        draws = bootstrap_means(compared[rows][:, None], num_bootstrap, seed)[:, 0]
        found.append(
            Slice(
                name=str(unique[place]),
                num_queries=len(rows),
                mean=float(values[rows].mean()),
                change=None if before is None else float(means[place]),
                interval=interval(draws, confidence) if len(rows) > 1 else None,
            )
        )
    return found
