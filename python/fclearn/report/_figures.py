# SPDX-License-Identifier: Apache-2.0
"""The figures of a report, as PNG files in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fclearn.evaluation import metric_title
from fclearn.report._pictures import StoredExample, StoredHit, decode

#: Colours that stay apart for the colour-blind; each model also has its marker.
STYLES = {
    "old": ("#5b6472", "s"),
    "new": ("#0b6e99", "o"),
    "independent": ("#b4530a", "D"),
}
#: Entries of the matrix: in words, and whose colour they have.
ENTRIES = {
    "old/old": ("old queries, old gallery", "old"),
    "new/old": ("new queries, old gallery", "new"),
    "new/new": ("new queries, new gallery", "new"),
    "independent/independent": ("independent model, re-indexed", "independent"),
}
TEXT, QUIET, _RIGHT = "#1c2430", "#667085", "#157347"

Table = Mapping[str, Mapping[str, float]]
Bounds = Mapping[str, Mapping[str, Sequence[float] | None]]
History = Mapping[str, Sequence[float | None]]


def gain_figure(
    matrix: Table, intervals: Bounds, update_gain: float | None, metric: str = "map"
) -> bytes:
    """The entries of the matrix on one axis, with the update gain as an arrow."""
    entries = [key for key in ENTRIES if key in matrix]
    figure = Figure(figsize=(8, 0.5 * len(entries) + 1.0), layout="constrained")
    axes = figure.add_subplot()
    old, cross = 100 * matrix["old/old"][metric], 100 * matrix["new/old"][metric]
    goal = matrix.get("independent/independent")
    if goal is not None and 100 * goal[metric] > old:
        axes.axvspan(old, 100 * goal[metric], color="#eef2f6", zorder=0)
    for at, key in enumerate(entries):
        value = 100 * matrix[key][metric]
        colour, marker = STYLES[ENTRIES[key][1]]
        bounds = intervals.get(key, {}).get(metric)
        end = value
        if bounds is not None:
            low, end = 100 * bounds[0], 100 * bounds[1]
            axes.plot([low, end], [at, at], color=colour, linewidth=2, solid_capstyle="butt")
        hollow = key == "new/new"
        face = "white" if hollow else colour
        axes.plot(value, at, marker, color=colour, markerfacecolor=face, markersize=9)
        axes.annotate(
            f"{value:.1f}", (end, at), (8, 0), textcoords="offset points", va="center",
            color=TEXT, fontweight="bold" if key == "new/old" else "normal",
        )  # fmt: skip
    axes.axvline(old, color=STYLES["old"][0], linewidth=1, linestyle=(0, (3, 3)), zorder=0.5)
    text = f"{cross - old:+.1f} points".replace("-", "−")
    if update_gain is not None:
        text += f" = update gain {100 * update_gain:.0f}%".replace("-", "−")
    axes.annotate("", (cross, 0.5), (old, 0.5), arrowprops={"arrowstyle": "->", "color": TEXT})
    axes.set_yticks(range(len(entries)), [ENTRIES[key][0] for key in entries])
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.margins(x=0.12)
    # The text stands on the side of the arrow that has more room.
    left, right = axes.get_xlim()
    at_left = min(old, cross) - left > right - max(old, cross)
    axes.annotate(
        text, (min(old, cross) if at_left else max(old, cross), 0.5), (-8 if at_left else 8, 0),
        textcoords="offset points", ha="right" if at_left else "left", va="center", color=TEXT,
    )  # fmt: skip
    axes.set_xlabel(f"{metric_title(metric)}, %")
    tidy(axes, grid="x")
    return as_png(figure)


def curve_figure(
    histories: Mapping[str, History], column: str, title: str, factor: float = 1.0
) -> bytes | None:
    """One column of the histories over epochs, one line per model.

    Models in which it is always zero have no such thing and no line; without any line, None.
    """
    figure = Figure(figsize=(3.7, 2.9), layout="constrained")
    axes = figure.add_subplot()
    drawn = False
    for number, (name, history) in enumerate(histories.items()):
        pairs = [
            (epoch, factor * value)
            for epoch, value in zip(history.get("epoch", ()), history.get(column, ()), strict=False)
            if epoch is not None and value is not None
        ]
        if not any(value for _, value in pairs):
            continue
        drawn = True
        colour, marker = STYLES.get(name, (f"C{number}", "^"))
        epochs, values = zip(*pairs, strict=True)
        axes.plot(
            epochs, values, color=colour, marker=marker, markevery=max(1, len(pairs) // 6),
            markersize=5, linewidth=1.8, label=name,
        )  # fmt: skip
    if not drawn:
        return None
    axes.set_title(title, loc="left", fontsize=10.5, color=TEXT)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    tidy(axes, grid="y")
    return as_png(figure)


def examples_figure(examples: Sequence[StoredExample]) -> bytes:
    """Each query with its hits in two rows, right ones framed and ticked."""
    width = max(len(row) for example in examples for row in (example["old"], example["new"]))
    figure = Figure(figsize=(0.85 * (width + 2), 2.05 * len(examples)))
    outer = figure.add_gridspec(len(examples), 1, left=0.01, right=0.99, top=0.99, bottom=0.01)
    for at, example in enumerate(examples):
        grid = outer[at].subgridspec(
            2, width + 2, width_ratios=[1.3, 0.9, *[1] * width], hspace=0.08, wspace=0.12
        )
        axes = figure.add_subplot(grid[:, 0])
        _show(axes, example["image"])
        axes.set_title(short(example["label"]), fontsize=8, color=TEXT)
        axes.set_xlabel(example["note"], fontsize=8, color=QUIET)
        for row, (title, hits) in enumerate((("old", example["old"]), ("new", example["new"]))):
            label = figure.add_subplot(grid[row, 1])
            label.axis("off")
            label.text(0.95, 0.5, title, ha="right", va="center", fontsize=9, color=TEXT)
            for column, hit in enumerate(hits):
                _show_hit(figure.add_subplot(grid[row, 2 + column]), hit)
    return as_png(figure)


def _show(axes: Axes, uri: str) -> None:
    axes.imshow(decode(uri), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#c5ccd6")


def _show_hit(axes: Axes, hit: StoredHit) -> None:
    _show(axes, hit["image"])
    if hit["correct"]:
        for side in axes.spines.values():
            side.set_color(_RIGHT)
            side.set_linewidth(2.5)
        axes.text(
            1, 1, "✓", transform=axes.transAxes, ha="right", va="top", fontsize=8, color="white",
            bbox={"facecolor": _RIGHT, "edgecolor": "none", "pad": 1},
        )  # fmt: skip


def short(text: str, length: int = 18) -> str:
    """A name that fits a figure."""
    # A $ would start a formula.
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


def tidy(axes: Axes, grid: str) -> None:
    """Lines along one axis, no frame."""
    axes.spines[["top", "right", "left" if grid == "x" else "bottom"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c5ccd6")
    axes.grid(axis="x" if grid == "x" else "y", color="#e4e8ee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT, length=0)
    axes.xaxis.label.set_color(QUIET)


def as_png(figure: Figure) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()
