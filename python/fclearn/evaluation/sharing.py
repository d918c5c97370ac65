# SPDX-License-Identifier: Apache-2.0
"""Queries that several processes share: who ranks which, and how they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation._keys import Ints


@dataclass(frozen=True)
class Share:
    """One process's share.

    Attributes:
        own: Of some queries those that this process ranks.
        merged: Values per query ``(Q,)``, NaN where another process has it -> those of all.
    """

    own: Callable[[Ints], Ints]
    merged: Callable[[NDArray[np.float64]], NDArray[np.float64]]


_share: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def shared(share: Share) -> Iterator[None]:
    """While it lasts, queries are shared.

    Example:
        >>> even = Share(lambda queries: queries[::2], lambda values: values)
        >>> with shared(even):
        ...     own_queries(np.arange(5)).tolist()
        [0, 2, 4]
    """
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def own_queries(queries: Ints) -> Ints:
    """Those of some queries that this process ranks: all, unless they are shared."""
    share = _share.get()
    return queries if share is None else share.own(queries)


def merged(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values per query of all processes."""
    share = _share.get()
    return values if share is None else share.merged(values)
