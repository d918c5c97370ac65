# SPDX-License-Identifier: Apache-2.0
"""What to do, by the intervals, in a word and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fclearn.probe.ways import HALFWAY, NEW, NEW_TO_OLD, OLD, ORACLE, Way


@dataclass(frozen=True)
class Advice:
    """As in `ProbeResult`: ``verdict``, ``best`` and ``text``."""

    verdict: str
    best: str
    text: str


def judge(ways: Sequence[Way]) -> Advice:
    """Decide on mAP.

    Args:
        ways: Old/old, new/new and the oracle among them.
    """
    by_name = {way.name: way for way in ways if not way.direction}
    old, new, oracle = by_name[OLD], by_name[NEW], by_name[ORACLE]
    queries = [way for way in ways if way.direction == NEW_TO_OLD]
    best = max(queries, key=lambda way: way.metrics["map"], default=None)
    name = "" if best is None else best.name
    text = (
        f"The new model re-indexed reaches mAP {_percent(new.metrics['map'])}, the old one "
        f"{_percent(old.metrics['map'])}. "
    )
    if new.gain_intervals["map"][1] <= 0 or new.gain["map"] <= 0:
        text += "It is no better than the old one: there is nothing to gain."
        return Advice("stay", name, text)
    if best is not None and best.gain_intervals["map"][0] > 0:
        return Advice("map", name, text + _use(best) + _halves(ways))
    text += (
        "No adapter was tried. "
        if best is None
        else f"The best adapter of new queries, {name}, stops at {_percent(best.metrics['map'])}. "
    )
    text += (
        "A query at its class's own mean would reach "
        f"{_percent(oracle.metrics['map'])} in the old space"
    )
    if oracle.gain_intervals["map"][1] <= 0 or oracle.gain["map"] <= 0:
        text += ", no more than old queries do: only embedding the gallery anew helps."
        return Advice("reindex", name, text + _halves(ways))
    return Advice("train", name, text + ": train the new model compatibly." + _halves(ways))


def _use(best: Way) -> str:
    text = (
        f"{best.name} brings new queries on the old gallery to {_percent(best.metrics['map'])}, "
        "more than old queries reach: it can be used as it is."
    )
    first = best.gain_intervals.get("cmc@1")
    if first is not None and first[1] < 0:
        text += (
            f" The first hit, however, gets worse: CMC@1 {100 * best.gain['cmc@1']:+.1f} points."
        )
    return text


def _halves(ways: Sequence[Way]) -> str:
    """What part of the gallery embedded anew would bring, if that is more than nothing."""
    halves = [way for way in ways if way.direction == HALFWAY]
    best = max(halves, key=lambda way: way.metrics["map"], default=None)
    if best is None:
        return ""
    share = f"{100 * best.embedded:.0f} % of the gallery embedded anew and queries by both models"
    if best.gain_intervals["map"][0] <= 0:
        return f" With {share}, nothing beats old queries clearly, either."
    return f" With {share}, {best.name} reaches {_percent(best.metrics['map'])}."


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
