# SPDX-License-Identifier: Apache-2.0
"""The metrics of a partial backfill."""

from __future__ import annotations

import re
from collections.abc import Sequence


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the names, without repeats.

    Raises:
        ValueError: None, or another than ``map``, ``cmc@k``, ``ndcg`` and ``ndcg@k``.
    """
    names = tuple(dict.fromkeys(metrics))
    for name in names:
        if not re.fullmatch(r"map|ndcg|(cmc|ndcg)@[1-9]\d*", name):
            raise ValueError(f"metrics: expected 'map', 'cmc@k' or 'ndcg@k', got {name!r}")
    if not names:
        raise ValueError("metrics: expected at least one of 'map', 'cmc@k' and 'ndcg@k'")
    return names
