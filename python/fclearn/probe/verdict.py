# SPDX-License-Identifier: Apache-2.0
"""What to do, by the intervals, in a word and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fclearn.probe.held import ClassCounts
from fclearn.probe.ways import BY_CLASSES, BY_ITEMS, HALFWAY, NEW, NEW_TO_OLD, OLD, ORACLE, Way

#: How much mAP the best adapter may lose, at the lower end of its interval, and still be said to
#: take the place of the old model.
_TOLERANCE = 0.01
#: Gains below a tenth of a point are none: ranks that rounding has changed.
_NOTHING = 0.001
_FEW_QUERIES = 50
_FEW_CLASSES = 20
#: What a split says of adapters beyond what it measures.
_KNOWN = {
    BY_CLASSES: "Adapters were fitted on other classes: of those they know, they may do better.",
    BY_ITEMS: "Adapters were fitted on these classes: of others, they may do worse.",
}
#: Least squares need some pairs for each unknown of a column.
_PAIRS_PER_DIM = 2


@dataclass(frozen=True)
class Advice:
    """As in `ProbeResult`: ``verdict``, ``best``, ``map_suffices`` and ``text``."""

    verdict: str
    best: str
    map_suffices: bool
    text: str


def judge(
    ways: Sequence[Way],
    num_queries: int,
    num_fit: int,
    dim: int,
    num_classes: int | None = None,
    split: str = BY_CLASSES,
) -> Advice:
    """Decide on mAP.

    Args:
        ways: Old/old and new/new among them; the oracle, if it could be measured.
        num_queries: Queries behind them.
        num_fit: Pairs that adapters were fitted on.
        dim: The larger of the two dims between which they map.
        num_classes: Classes of the gallery; None: not known.
        split: What keeps it apart from what adapters were fitted on, one of `SPLITS`.
    """
    by_name = {way.name: way for way in ways if not way.direction}
    old, new, oracle = by_name[OLD], by_name[NEW], by_name.get(ORACLE)
    queries = [way for way in ways if way.direction == NEW_TO_OLD]
    best = max(queries, key=lambda way: way.metrics["map"], default=None)
    suffices = best is not None and best.gain_intervals["map"][0] >= -_TOLERANCE

    def advice(verdict: str, *sentences: str) -> Advice:
        few = [
            f"Only {num_queries} queries counted: read all intervals as rough."
            if num_queries < _FEW_QUERIES
            else "",
            few_classes(num_classes, split),
            _KNOWN[split] if queries and num_classes is not None else "",
            f"Only {num_fit:,} pairs for maps of {dim:,} dims: with more, adapters may do better."
            if queries and num_fit < _PAIRS_PER_DIM * dim
            else "",
        ]
        text = " ".join(sentence for sentence in (*sentences, *few) if sentence)
        return Advice(verdict, "" if best is None else best.name, suffices, text)

    start = (
        f"The new model re-indexed reaches mAP {_percent(new.metrics['map'])}, the old one "
        f"{_percent(old.metrics['map'])}."
    )
    if new.gain_intervals["map"][1] <= _NOTHING or new.gain["map"] <= 0:
        nothing = "It is no better than the old one: there is nothing to gain."
        return advice("stay", start, nothing, _replacement(best, suffices=suffices))
    if best is not None and best.gain_intervals["map"][0] > 0:
        return advice("map", start, _use(best), _left(best, oracle), _halves(ways))
    if new.gain_intervals["map"][0] <= 0:
        doubt = (
            f"These {num_queries:,} queries cannot tell whether it is better: the difference of "
            f"{_points(new.gain['map'])} points has the interval {_interval(new)}. Take more."
        )
        return advice("unclear", start, doubt, _replacement(best, suffices=suffices))
    tried = (
        "No adapter was tried."
        if best is None
        else f"The best adapter of new queries, {best.name}, stops at "
        f"{_percent(best.metrics['map'])}."
    )
    if oracle is None:
        unknown = (
            "Whether the old space has room for better queries cannot be told: no query has two "
            "right rows. Train compatibly on a part, or embed the gallery anew."
        )
        return advice("unclear", start, tried, unknown, _halves(ways))
    ceiling = (
        "A query at the mean of what is right for it would reach "
        f"{_percent(oracle.metrics['map'])} in the old space"
    )
    if oracle.gain_intervals["map"][1] <= 0 or oracle.gain["map"] <= 0:
        closed = f"{ceiling}, no more than old queries do: only embedding the gallery anew helps."
        return advice("reindex", start, tried, closed, _halves(ways))
    return advice(
        "train", start, tried, f"{ceiling}: train the new model compatibly.", _halves(ways)
    )


def few_classes(num_classes: int | None, split: str) -> str:
    """What intervals over queries do not say where the classes held out are few.

    Example:
        >>> few_classes(2, "classes")
        'Only 2 classes were held out: others may change these numbers by more than the intervals.'
        >>> few_classes(100, "classes"), few_classes(2, "items")
        ('', '')
    """
    if split != BY_CLASSES or num_classes is None or num_classes >= _FEW_CLASSES:
        return ""
    return (
        f"Only {num_classes} classes were held out: others may change these numbers by more than "
        "the intervals."
    )


def split_in_words(split: str, counts: ClassCounts | None) -> str:
    """What is measured on, and how it is apart from what is fitted on.

    Args:
        split: One of `SPLITS`.
        counts: Of the classes; None: judgements say what is right.

    Example:
        >>> split_in_words("classes", ClassCounts(18, 12, 0))
        'measured on 12 of the 30 classes, held out: none of their items were fitted on'
        >>> split_in_words("items", ClassCounts(28, 30, 25))
        'measured on held-out items of 30 classes: other items of 25 of them were fitted on'
        >>> split_in_words("items", ClassCounts(30, 30, 30))
        'measured on held-out items of 30 classes: other items of all of them were fitted on'
    """
    if counts is None:
        return "measured by judgements: fitted on items that no asked query judges"
    if split == BY_ITEMS:
        shared = "all" if counts.shared == counts.test else f"{counts.shared:,}"
        return (
            f"measured on held-out items of {counts.test:,} classes: other items of {shared} of "
            "them were fitted on"
        )
    return (
        f"measured on {counts.test:,} of the {counts.test + counts.fit:,} classes, held out: none "
        "of their items were fitted on"
    )


def _replacement(best: Way | None, *, suffices: bool) -> str:
    """What a new model that brings nothing costs whoever must take it."""
    if best is None:
        return ""
    reached = (
        f"new queries on the old gallery reach mAP {_percent(best.metrics['map'])} by {best.name} "
        f"({_points(best.gain['map'])} points, interval {_interval(best)})"
    )
    if suffices:
        return f"If it must replace the old one all the same, a map suffices: {reached}."
    if best.gain_intervals["map"][1] < -_TOLERANCE:
        return f"Nor does a map make it take the old one's place: {reached}."
    return f"Whether a map makes it take the old one's place cannot be told: {reached}."


def _left(best: Way, oracle: Way | None) -> str:
    """What the best map leaves to be had, where the new model brings something."""
    if best.update_gain is None:
        return ""
    share = f"That is {100 * best.update_gain:.0f} % of what re-indexing would bring"
    has_room = oracle is not None and oracle.metrics["map"] > best.metrics["map"]
    if oracle is None or not has_room or best.update_gain >= 1:
        return f"{share}."
    return (
        f"{share}; a query at the mean of what is right for it would reach "
        f"{_percent(oracle.metrics['map'])} in the old space, so training compatibly may bring "
        "more."
    )


def _use(best: Way) -> str:
    text = (
        f"{best.name} brings new queries on the old gallery to {_percent(best.metrics['map'])}, "
        "more than old queries reach: "
    )
    first = best.gain_intervals.get("cmc@1")
    if first is not None and first[1] < 0:
        return text + (
            f"but their first hit gets worse, CMC@1 {100 * best.gain['cmc@1']:+.1f} points. Use it "
            "where the whole list counts, not where the first hit does."
        )
    return text + "it can be used as it is."


def _halves(ways: Sequence[Way]) -> str:
    """What part of the gallery embedded anew would bring, if that is more than nothing."""
    halves = [way for way in ways if way.direction == HALFWAY]
    best = max(halves, key=lambda way: way.metrics["map"], default=None)
    if best is None:
        return ""
    share = f"{100 * best.embedded:.0f} % of the gallery embedded anew and queries by both models"
    if best.gain_intervals["map"][0] <= 0:
        return f"With {share}, nothing beats old queries clearly, either."
    return f"With {share}, {best.name} reaches {_percent(best.metrics['map'])}."


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    # Rounded first, so that no "-0.0" appears.
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def _interval(way: Way) -> str:
    low, high = way.gain_intervals["map"]
    return f"{_points(low)} to {_points(high)}"
