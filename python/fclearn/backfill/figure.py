# SPDX-License-Identifier: Apache-2.0
"""The gain of a partial backfill as a picture."""

from __future__ import annotations

import io
import os

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fclearn._files import replacing
from fclearn.backfill.curve import RANDOM, BackfillCurve
from fclearn.evaluation import metric_title

# Apart for the colour-blind (Okabe & Ito); random order is grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = "os^Dv*"
_GREY = "#5b6472"


def draw_curve(
    path: str | os.PathLike[str], curve: BackfillCurve, *, budget: float | None = None
) -> None:
    """Write a PNG, whole or not at all: one panel per metric, one line per order.

    Args:
        path: File to write.
        curve: What `backfill_curve` found.
        budget: Share of the gallery to mark.

    Raises:
        OSError: The folder cannot be made or written.
    """
    metrics = list(curve.random_band)
    figure = Figure(figsize=(5.4 * len(metrics), 3.8), layout="constrained")
    for at, metric in enumerate(metrics):
        axes = figure.add_subplot(1, len(metrics), at + 1)
        _panel(axes, curve, metric)
        _mark(axes, budget)
        if at == 0:
            axes.legend(frameon=False, fontsize=9, loc="upper left")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def curve_panel(curve: BackfillCurve, metric: str, *, budget: float | None = None) -> bytes:
    """One metric's panel of `draw_curve`, as PNG in memory.

    Args:
        curve: What `backfill_curve` found.
        metric: One of its metrics.
        budget: Share of the gallery to mark.
    """
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    _panel(axes, curve, metric)
    _mark(axes, budget)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()


def _mark(axes: Axes, budget: float | None) -> None:
    if budget is not None:
        axes.axvline(100 * budget, color=_GREY, linewidth=0.8, linestyle=":")


def _panel(axes: Axes, curve: BackfillCurve, metric: str) -> None:
    percent = [100 * value for value in curve.fractions]
    band = curve.random_band[metric]
    axes.fill_between(
        percent,
        [100 * low for low, _ in band],
        [100 * high for _, high in band],
        color=_GREY,
        alpha=0.2,
        linewidth=0,
    )
    named = 0
    for name, curves in curve.orders.items():
        values = [100 * value for value in curves[metric].values]
        if name == RANDOM:
            label = f"random, {curve.num_random} seeds"
            axes.plot(percent, values, color=_GREY, linestyle="--", label=label)
            continue
        axes.plot(
            percent,
            values,
            color=_COLOURS[named % len(_COLOURS)],
            marker=_MARKERS[named % len(_MARKERS)],
            markersize=4,
            label=name,
        )
        named += 1
    axes.set_xlabel("gallery re-embedded, %")
    axes.set_ylabel(f"{metric_title(metric)}, %")
    axes.set_xlim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
