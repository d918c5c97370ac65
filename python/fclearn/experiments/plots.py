# SPDX-License-Identifier: Apache-2.0
"""Plots of a comparison."""

from __future__ import annotations

from matplotlib.figure import Figure

from fclearn.experiments.summary import Estimate, Summary

_BAR, _DEFAULT, _GREY = "#8aa0b8", "#c0562f", "#666666"
_INCHES_PER_BAR = 0.32


def plot_update_gain(summary: Summary) -> Figure:
    """Bars of the update gain with intervals, best on top; methods without one are left out."""
    rows = [
        (method.name, method.estimates["update_gain", "map"])
        for method in reversed(summary.methods)
        if method.estimates["update_gain", "map"].value is not None
        # Trained without compatibility, far below zero: it would squeeze the others.
        and method.name != "independent"
    ]
    figure = Figure(figsize=(7, 1.2 + _INCHES_PER_BAR * len(rows)), layout="constrained")
    axis = figure.subplots()
    for place, (name, gain) in enumerate(rows):
        colour = _DEFAULT if name == summary.reference else _BAR
        axis.barh(place, 100 * (gain.value or 0), color=colour, height=0.7)
        if gain.interval is not None:
            axis.plot([100 * bound for bound in gain.interval], [place, place], color="black")
        for value in gain.values if len(gain.values) > 1 else ():
            axis.plot(100 * (value or 0), place, ".", color="black", markersize=4)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.axvline(0, color=_GREY, linewidth=1)
    axis.set_xlabel("update gain on mAP, % (line: 95 % interval, dots: seeds)")
    axis.grid(axis="x", alpha=0.3)
    return figure


def plot_cross_against_self(summary: Summary) -> Figure:
    """New/old over new/new on mAP; up and to the right is better."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    for method in summary.methods:
        cross = method.estimates["new/old", "map"].value
        own = method.estimates["new/new", "map"].value
        if cross is None or own is None or method.name == "independent":
            continue
        colour = _DEFAULT if method.name == summary.reference else _BAR
        axis.plot(100 * own, 100 * cross, "o", color=colour)
        axis.annotate(
            method.name, (100 * own, 100 * cross), (4, 4), textcoords="offset points", fontsize=8
        )
    for key, label, draw in (
        ("old/old", "old/old", axis.axhline),
        ("independent/independent", "independent", axis.axvline),
    ):
        value = _percent(summary.baselines[key, "map"])
        draw(value, color=_GREY, linestyle="--", linewidth=1, label=f"{label} {value:.1f}")
    axis.set_xlabel("new/new, mAP in %")
    axis.set_ylabel("new/old, mAP in %")
    axis.margins(x=0.12)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return figure


def _percent(estimate: Estimate) -> float:
    assert estimate.value is not None
    return 100 * estimate.value
