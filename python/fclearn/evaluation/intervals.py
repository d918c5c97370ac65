# SPDX-License-Identifier: Apache-2.0
"""Bootstrap over queries: how far a mean could have come out otherwise with other queries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation.types import Interval

# Draws held at once.
_CHUNK_ELEMENTS = 2**22


def bootstrap_means(
    values: NDArray[np.float64], num_bootstrap: int, seed: int
) -> NDArray[np.float64]:
    """Means of resampled rows; all columns share the draws, so their differences are paired.

    Args:
        values: One row per query, one column per quantity, shape ``(Q, M)``.
        num_bootstrap: Number of resamples, of Q rows each, with replacement.
        seed: Of the draws; equal seeds give equal results.

    Returns:
        Shape ``(num_bootstrap, M)``.

    Example:
        >>> import numpy as np
        >>> bootstrap_means(np.array([[1.0, 2.0], [1.0, 2.0]]), num_bootstrap=2, seed=0)
        array([[1., 2.],
               [1., 2.]])
    """
    rng = np.random.default_rng(seed)
    num_rows = len(values)
    return np.concatenate(
        [times @ values / num_rows for times in _times_drawn(num_rows, num_bootstrap, rng)]
    )


def times_drawn(is_first: NDArray[np.bool_], num_bootstrap: int, seed: int) -> NDArray[np.uint8]:
    """How often each resample has each row, where rows are two samples that are drawn apart.

    Args:
        is_first: Whether a row is of the first sample, shape ``(Q,)``; either may be empty.
        num_bootstrap: Number of resamples; each has as many rows of either sample as there are.
        seed: Of the draws; equal seeds give equal results.

    Returns:
        Shape ``(num_bootstrap, Q)``. A byte holds them: of n rows drawn n times, one comes up k
        times with a probability below 1 / k!.

    Example:
        >>> import numpy as np
        >>> times_drawn(np.array([True, False, False, True]), 3, seed=0)[:, [0, 3]].sum(axis=1)
        array([2, 2, 2], dtype=uint64)
    """
    rng = np.random.default_rng(seed)
    times = np.empty((num_bootstrap, len(is_first)), dtype=np.uint8)
    for rows in (np.flatnonzero(is_first), np.flatnonzero(~is_first)):
        start = 0
        for part in _times_drawn(len(rows), num_bootstrap, rng) if len(rows) else ():
            times[start : start + len(part), rows] = part
            start += len(part)
    return times


def _times_drawn(
    num_rows: int, num_bootstrap: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """How often each row is in each of a chunk of resamples, shape ``(size, num_rows)``."""
    step = max(1, _CHUNK_ELEMENTS // num_rows)
    for start in range(0, num_bootstrap, step):
        size = min(step, num_bootstrap - start)
        draws = rng.integers(0, num_rows, (size, num_rows))
        draws += np.arange(size)[:, None] * num_rows
        times = np.bincount(draws.reshape(-1), minlength=size * num_rows)
        yield times.reshape(size, num_rows)


def interval(samples: NDArray[np.float64], confidence: float) -> Interval:
    """Percentile interval of one-dimensional samples."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)


def check_bootstrap(num_bootstrap: int, confidence: float, *, name: str = "num_bootstrap") -> None:
    """Refuse what no interval can be made of.

    Args:
        num_bootstrap: Resamples.
        confidence: Of the interval.
        name: Argument to name in the message about the resamples.

    Raises:
        ValueError: Fewer than one resample, or a confidence outside (0, 1).
    """
    if num_bootstrap < 1:
        raise ValueError(f"{name}: expected at least 1, got {num_bootstrap}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence}")
