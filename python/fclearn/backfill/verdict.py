# SPDX-License-Identifier: Apache-2.0
"""What a plan comes to, in plain words."""

from __future__ import annotations

from dataclasses import dataclass

from fclearn.backfill.curve import RANDOM, BackfillCurve
from fclearn.backfill.sample import NEW
from fclearn.backfill.serving import TWO_RRF, ServingTable


@dataclass(frozen=True)
class PlanVerdict:
    """A decision and its reasons, on mAP.

    Attributes:
        status: ``"backfill"``: the budget is worth spending, and can be served meanwhile;
            ``"wait"``: at this budget nothing beats leaving the gallery alone;
            ``"stay"``: the new gallery would be no better than what there is.
        order: ``"better"``, ``"worse"`` or ``"no different"`` than random order, by the interval.
        serving: Name of the best way to serve the half-migrated gallery.
        gain_share: Share of what the whole backfill brings that the budget brings, along the
            curve; None where the whole brings nothing.
        text: All of it in words.
    """

    status: str
    order: str
    serving: str
    gain_share: float | None
    text: str


def judge_plan(curve: BackfillCurve, table: ServingTable, order: str, budget: float) -> PlanVerdict:
    """Decide by the intervals.

    Args:
        curve: With ``order`` among its orders.
        table: Of the ways to serve the gallery once the budget is spent in this order.
        order: Name of the order.
        budget: Share of the gallery, one of the curve's fractions.
    """
    area = curve.orders[order]["map"]
    values, steps = area.values, round(budget * curve.num_gallery) / curve.num_gallery
    at_budget = values[curve.fractions.index(steps)]
    whole = values[-1] - values[0]
    share = (at_budget - values[0]) / whole if whole > 0 else None
    baseline, new = table.ways[table.baseline], table.ways[NEW]
    best = table.ways[table.best]
    text = (
        f"The gallery as it is reaches mAP {_percent(baseline.metrics['map'])} ({table.baseline}), "
        f"embedded anew as a whole {_percent(new.metrics['map'])}. "
    )
    if new.gain_intervals["map"][0] <= 0:
        status = "stay"
        text += "That is no clear gain: there is nothing to migrate for. "
    elif best.gain_intervals["map"][0] > 0:
        status = "backfill"
        text += (
            f"With {_percent(budget)} embedded anew in the order {order!r}, served as "
            f"{table.best}, it reaches {_percent(best.metrics['map'])} "
            f"({_points(best.gain['map'], best.gain_intervals['map'])})"
            + (f", {_percent(share)} of the way along the curve. " if share is not None else ". ")
        )
    else:
        status = "wait"
        text += (
            f"With {_percent(budget)} embedded anew, the best way to serve it, {table.best}, "
            f"reaches {_percent(best.metrics['map'])}, no clear gain over leaving it alone "
            f"({_points(best.gain['map'], best.gain_intervals['map'])}): keep serving "
            f"{table.baseline} until more is done. "
        )
    word, advice = _against_random(curve, order)
    text += advice + _beside(curve, order)
    rrf = table.ways.get(TWO_RRF)
    if rrf is not None and table.best != TWO_RRF and rrf.gain_intervals["map"][1] < 0:
        text += (
            "Do not merge two indexes by reciprocal ranks here: that reaches "
            f"{_percent(rrf.metrics['map'])}."
        )
    return PlanVerdict(status, word, table.best, share, text.strip())


def _against_random(curve: BackfillCurve, order: str) -> tuple[str, str]:
    found = curve.orders[order]["map"]
    low, high = found.gain_interval
    gap = f"{_percent(found.area)}, {_points(found.gain, found.gain_interval)}"
    if order == RANDOM:
        return "no different", "Random order is the baseline itself. "
    if low > 0:
        text = f"The order {order!r} beats random order: area {gap}"
        if found.share_of_ideal is not None:
            text += f", {_percent(found.share_of_ideal)} of what doing all rows at once would add"
        return "better", text + ". "
    if high < 0:
        return "worse", f"The order {order!r} is worse than random order: area {gap}. Use another. "
    return "no different", f"The order {order!r} is no better than random order: area {gap}. "


def _beside(curve: BackfillCurve, order: str) -> str:
    """The other orders, each against random order: none is measured against another."""
    others = [
        f"{name!r} {_percent(found['map'].area)}, "
        f"{_points(found['map'].gain, found['map'].gain_interval)}"
        for name, found in curve.orders.items()
        if name not in {order, RANDOM}
    ]
    return (
        f"Beside it, area and difference to random order: {'; '.join(others)}. " if others else ""
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float, bounds: tuple[float, float]) -> str:
    return f"{100 * value:+.1f} points [{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]"
