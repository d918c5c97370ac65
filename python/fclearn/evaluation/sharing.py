# SPDX-License-Identifier: Apache-2.0
"""Queries that several processes share: who ranks which, and how they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation.types import Ints

#: Values per query ``(Q,)`` by metric, NaN for queries that were not ranked.
Values = dict[str, NDArray[np.float64]]
#: Ranks some queries.
Rank = Callable[[Ints], Values]
#: Gets the queries, what ranks some of them, and what makes this evaluation the one it is (JSON
#: values); returns the values of all of them.
Share = Callable[[Ints, Rank, Mapping[str, object]], Values]

_share: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def shared(share: Share) -> Iterator[None]:
    """While it lasts, evaluations leave it to ``share`` which queries this process ranks.

    Example:
        >>> def ranked(queries):
        ...     return {"cmc@1": np.where(np.isin(np.arange(4), queries), 1.0, np.nan)}
        >>> with shared(lambda queries, rank, facts: rank(queries[::2])):
        ...     values_of(np.arange(4), ranked, {})["cmc@1"].tolist()
        [1.0, nan, 1.0, nan]
    """
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def values_of(queries: Ints, rank: Rank, facts: Mapping[str, object]) -> Values:
    """Values of the queries, each ranked by this process, unless they are shared."""
    share = _share.get()
    return rank(queries) if share is None else share(queries, rank, facts)
