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
# Apart for the colour-blind (Okabe & Ito), as dark as a line on white has to be.
SERIES = (
    ("#0072b2", "o"), ("#b4530a", "s"), ("#00795a", "^"), ("#9b4f7d", "D"), ("#5b6472", "v"),
)  # fmt: skip
_ENTRIES = {
    "old/old": ("old queries, old gallery", "old"),
    "new/old": ("new queries, old gallery", "new"),
    "new/new": ("new queries, new gallery", "new"),
    "independent/independent": ("independent model, re-indexed", "independent"),
}
_TEXT, _QUIET, _RIGHT = "#1c2430", "#667085", "#157347"

Table = Mapping[str, Mapping[str, float]]
Bounds = Mapping[str, Mapping[str, Sequence[float] | None]]
History = Mapping[str, Sequence[float | None]]


def gain_figure(
    matrix: Table, intervals: Bounds, update_gain: float | None, metric: str = "map"
) -> bytes:
    """The entries of the matrix on one axis, with the update gain as an arrow."""
    entries = [key for key in _ENTRIES if key in matrix]
    figure = Figure(figsize=(8, 0.5 * len(entries) + 1.0), layout="constrained")
    axes = figure.add_subplot()
    old, cross = 100 * matrix["old/old"][metric], 100 * matrix["new/old"][metric]
    goal = matrix.get("independent/independent")
    if goal is not None and 100 * goal[metric] > old:
        axes.axvspan(old, 100 * goal[metric], color="#eef2f6", zorder=0)
    for at, key in enumerate(entries):
        value = 100 * matrix[key][metric]
        colour, marker = STYLES[_ENTRIES[key][1]]
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
            color=_TEXT, fontweight="bold" if key == "new/old" else "normal",
        )  # fmt: skip
    axes.axvline(old, color=STYLES["old"][0], linewidth=1, linestyle=(0, (3, 3)), zorder=0.5)
    text = f"{cross - old:+.1f} points".replace("-", "−")
    if update_gain is not None:
        text += f" = update gain {100 * update_gain:.0f}%".replace("-", "−")
    axes.annotate("", (cross, 0.5), (old, 0.5), arrowprops={"arrowstyle": "->", "color": _TEXT})
    axes.set_yticks(range(len(entries)), [_ENTRIES[key][0] for key in entries])
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.margins(x=0.12)
    # The text stands on the side of the arrow that has more room.
    left, right = axes.get_xlim()
    at_left = min(old, cross) - left > right - max(old, cross)
    axes.annotate(
        text, (min(old, cross) if at_left else max(old, cross), 0.5), (-8 if at_left else 8, 0),
        textcoords="offset points", ha="right" if at_left else "left", va="center", color=_TEXT,
    )  # fmt: skip
    axes.set_xlabel(f"{metric_title(metric)}, %")
    _tidy(axes, grid="x")
    return _png(figure)


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
    axes.set_title(title, loc="left", fontsize=10.5, color=_TEXT)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    _tidy(axes, grid="y")
    return _png(figure)


def chain_figure(
    models: Sequence[str],
    matrix: Sequence[Sequence[float | None]],
    intervals: Mapping[str, Sequence[float]],
    title: str,
) -> bytes:
    """What the queries of each model find in one gallery, one line per gallery."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for j, older in enumerate(models):
        colour, marker = SERIES[j % len(SERIES)]
        places = range(j, len(models))
        values = [100 * float(matrix[i][j] or 0) for i in places]
        ends = [intervals[f"{models[i]}/{older}"] for i in places]
        # Beside each other, so that intervals of one query model can be told apart.
        at = [i + 0.06 * (j - (len(models) - 1) / 2) for i in places]
        for x, (low, high) in zip(at, ends, strict=True):
            axes.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=1.2)
        label = f"gallery of {_short(older)}"
        axes.plot(at, values, color=colour, marker=marker, markersize=6, label=label)
    axes.set_xticks(range(len(models)), [_short(name) for name in models])
    axes.set_xlim(-0.4, len(models) - 0.6)
    axes.set_xlabel("queries of")
    axes.set_ylabel(f"{title}, %")
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes, grid="y")
    return _png(figure)


def runs_figure(
    names: Sequence[str],
    entries: Mapping[str, Sequence[tuple[float, Sequence[float] | None] | None]],
    title: str,
) -> bytes:
    """The entries of several upgrades, one line per run.

    Args:
        names: Of the runs, ``(R,)``.
        entries: By entry of the matrix, for every run the value with its interval, or None.
        title: Of the metric.
    """
    figure = Figure(figsize=(7.2, 0.85 * len(names) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (entry, column) in enumerate(entries.items()):
        colour, marker = STYLES[_ENTRIES[entry][1]]
        hollow = entry == "new/new"
        drawn = False
        for run, found in enumerate(column):
            if found is None:
                continue
            value, bounds = found
            at = run + 0.18 * (number - (len(entries) - 1) / 2)  # beside each other
            if bounds is not None:
                axes.plot([100 * bounds[0], 100 * bounds[1]], [at, at], color=colour, linewidth=2)
            axes.plot(
                100 * value, at, marker, color=colour, markersize=8, linestyle="",
                markerfacecolor="white" if hollow else colour, label=None if drawn else entry,
            )  # fmt: skip
            drawn = True
    axes.set_yticks(range(len(names)), [_short(name, 28) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color="#e4e8ee", linewidth=0.8)
    axes.set_xlabel(f"{title}, %")
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    _tidy(axes, grid="x")
    return _png(figure)


def gains_figure(
    names: Sequence[str], gains: Sequence[tuple[float, Sequence[float] | None] | None]
) -> bytes:
    """Update gains of several upgrades as bars."""
    figure = Figure(figsize=(7.2, 0.5 * len(names) + 1.0), layout="constrained")
    axes = figure.add_subplot()
    for at, found in enumerate(gains):
        value, bounds = found or (0.0, None)
        axes.barh(at, 100 * value, color=STYLES["new"][0], height=0.55)
        end = value
        if bounds is not None:
            end = max(value, bounds[1])
            axes.plot([100 * bounds[0], 100 * bounds[1]], [at, at], color=_TEXT, linewidth=1.5)
        text = "undefined" if found is None else f"{100 * value:.0f}%".replace("-", "−")
        axes.annotate(
            text, (100 * max(end, 0.0), at), (6, 0), textcoords="offset points", va="center",
            color=_TEXT,
        )  # fmt: skip
    axes.axvline(0, color=_QUIET, linewidth=1)
    axes.set_yticks(range(len(names)), [_short(name, 28) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel("update gain, % of what re-indexing with the independent model brings")
    _tidy(axes, grid="x")
    return _png(figure)


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
        axes.set_title(_short(example["label"]), fontsize=8, color=_TEXT)
        axes.set_xlabel(example["note"], fontsize=8, color=_QUIET)
        for row, (title, hits) in enumerate((("old", example["old"]), ("new", example["new"]))):
            label = figure.add_subplot(grid[row, 1])
            label.axis("off")
            label.text(0.95, 0.5, title, ha="right", va="center", fontsize=9, color=_TEXT)
            for column, hit in enumerate(hits):
                _show_hit(figure.add_subplot(grid[row, 2 + column]), hit)
    return _png(figure)


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


def _short(text: str, length: int = 18) -> str:
    # A $ would start a formula.
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


def _tidy(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right", "left" if grid == "x" else "bottom"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c5ccd6")
    axes.grid(axis="x" if grid == "x" else "y", color="#e4e8ee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_TEXT, length=0)
    axes.xaxis.label.set_color(_QUIET)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()
