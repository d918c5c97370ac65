# SPDX-License-Identifier: Apache-2.0
"""Is one ranking better than another, or was it the choice of queries?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation.intervals import bootstrap_means, check_bootstrap, interval
from fclearn.evaluation.types import Interval

# Signs drawn at once.
_CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True)
class PairedTest:
    """Two values of a metric for each query, compared.

    Attributes:
        difference: Mean of second - first.
        interval: Bootstrap interval of the difference, over queries.
        p_value: Two-sided, of the hypothesis that the two are exchangeable within each query.
        num_queries: Queries that have both values.
        num_better: Queries where the second is larger.
        num_worse: Queries where it is smaller.
    """

    difference: float
    interval: Interval
    p_value: float
    num_queries: int
    num_better: int
    num_worse: int


def paired_test(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    num_samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    r"""Compare two systems on the same queries by a randomisation test.

    If the systems were alike, each query's difference :math:`d_i` might as well have come out as
    :math:`-d_i`. The p-value is the share of sign assignments whose mean is at least as far from
    zero as the one observed. All :math:`2^n` are tried where that is no more than ``num_samples``;
    else ``num_samples`` are drawn, and :math:`p = (1 + \#) / (1 + n)`, which never is 0.

    Args:
        first: One value per query, shape ``(Q,)``, float64, NaN where skipped: an entry of
            ``RetrievalResult.per_query`` or ``CompatibilityReport.per_query[…]``.
        second: The same queries, shape ``(Q,)``.
        num_samples: Sign assignments, and resamples behind the interval.
        confidence: Of the interval, in (0, 1).
        seed: Of both.

    Raises:
        ValueError: Shapes that differ, no query with both values, arguments out of range.

    Note:
        Tests of several metrics or models are several chances to be wrong: divide the level by
        their number.

    References:
        Smucker, Allan, Carterette, *A Comparison of Statistical Significance Tests for Information
        Retrieval Evaluation*, CIKM 2007.

    Example:
        >>> import numpy as np
        >>> old, new = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.3, 0.3, 0.5, 0.6])
        >>> result = paired_test(old, new)
        >>> round(result.difference, 3), result.p_value, result.num_better
        (0.175, 0.125, 4)
    """
    check_bootstrap(num_samples, confidence, name="num_samples")
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            "first and second: expected one value per query in both, got shapes "
            f"{list(first.shape)} and {list(second.shape)}"
        )
    both = ~(np.isnan(first) | np.isnan(second))
    differences = (second - first)[both]
    if len(differences) == 0:
        raise ValueError("first and second: expected a query with a value in both, got none")
    draws = bootstrap_means(differences[:, None], num_samples, seed)[:, 0]
    return PairedTest(
        difference=float(differences.mean()),
        interval=interval(draws, confidence),
        p_value=_p_value(differences[differences != 0], num_samples, seed),
        num_queries=len(differences),
        num_better=int((differences > 0).sum()),
        num_worse=int((differences < 0).sum()),
    )


def _p_value(differences: NDArray[np.float64], num_samples: int, seed: int) -> float:
    """Of differences other than zero, which change no sum whatever their sign."""
    num = len(differences)
    # Sums that are equal on paper may differ in their last bits.
    observed = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if num < 63 and 2**num <= num_samples:
        signs = 1 - 2.0 * (np.arange(2**num)[:, None] >> np.arange(num) & 1)
        return float((np.abs(signs @ differences) >= observed).mean())
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_ELEMENTS // num)
    extreme = 0
    for start in range(0, num_samples, step):
        signs = rng.integers(0, 2, (min(step, num_samples - start), num)) * 2.0 - 1
        extreme += int((np.abs(signs @ differences) >= observed).sum())
    return (1 + extreme) / (1 + num_samples)
