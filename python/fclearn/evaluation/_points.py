# SPDX-License-Identifier: Apache-2.0
"""What is asked of a threshold, and what it lets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fclearn.evaluation.types import Interval


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and what it lets through.

    Attributes:
        wanted: Share of impostors that may be accepted.
        threshold: Scores that reach it are accepted.
        false_rate: Share of impostors accepted, at most ``wanted``.
        true_rate: Share of genuine ones accepted.
        is_resolved: Whether there are at least 1 / ``wanted`` impostors: with fewer, the threshold
            stands above all of them, and says little about such a rate.
        interval: Bootstrap interval of ``true_rate`` over queries, each resample with the threshold
            that is right for it; None where the threshold was given.
    """

    wanted: float
    threshold: float
    false_rate: float
    true_rate: float
    is_resolved: bool
    interval: Interval | None = None


def check_rates(rates: Sequence[float], name: str) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: No rate, or one outside (0, 1).
    """
    if not len(rates):
        raise ValueError(f"{name}: expected at least one rate")
    for rate in rates:
        if not 0 < rate < 1:
            raise ValueError(f"{name}: expected rates in (0, 1), got {rate}")
