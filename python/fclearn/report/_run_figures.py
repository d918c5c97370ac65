# SPDX-License-Identifier: Apache-2.0
"""Figures of chains and of several runs, as PNG files in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from fclearn.report._figures import ENTRIES, QUIET, STYLES, TEXT, as_png, short, tidy

# Apart for the colour-blind (Okabe & Ito), as dark as a line on white has to be.
_SERIES = (
    ("#0072b2", "o"), ("#b4530a", "s"), ("#00795a", "^"), ("#9b4f7d", "D"), ("#5b6472", "v"),
)  # fmt: skip


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
        colour, marker = _SERIES[j % len(_SERIES)]
        places = range(j, len(models))
        values = [100 * float(matrix[i][j] or 0) for i in places]
        ends = [intervals[f"{models[i]}/{older}"] for i in places]
        # Beside each other, so that intervals of one query model can be told apart.
        at = [i + 0.06 * (j - (len(models) - 1) / 2) for i in places]
        for x, (low, high) in zip(at, ends, strict=True):
            axes.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=1.2)
        label = f"gallery of {short(older)}"
        axes.plot(at, values, color=colour, marker=marker, markersize=6, label=label)
    axes.set_xticks(range(len(models)), [short(name) for name in models])
    axes.set_xlim(-0.4, len(models) - 0.6)
    axes.set_xlabel("queries of")
    axes.set_ylabel(f"{title}, %")
    axes.legend(frameon=False, fontsize=9)
    tidy(axes, grid="y")
    return as_png(figure)


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
        colour, marker = STYLES[ENTRIES[entry][1]]
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
    axes.set_yticks(range(len(names)), [short(name, 28) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color="#e4e8ee", linewidth=0.8)
    axes.set_xlabel(f"{title}, %")
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    tidy(axes, grid="x")
    return as_png(figure)


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
            axes.plot([100 * bounds[0], 100 * bounds[1]], [at, at], color=TEXT, linewidth=1.5)
        text = "undefined" if found is None else f"{100 * value:.0f}%".replace("-", "−")
        axes.annotate(
            text, (100 * max(end, 0.0), at), (6, 0), textcoords="offset points", va="center",
            color=TEXT,
        )  # fmt: skip
    axes.axvline(0, color=QUIET, linewidth=1)
    axes.set_yticks(range(len(names)), [short(name, 28) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel("update gain, % of what re-indexing with the independent model brings")
    tidy(axes, grid="x")
    return as_png(figure)


def ways_figure(names: Sequence[str], values: Sequence[tuple[float, Sequence[float]]]) -> bytes:
    """The mAP of the ways of a probe, the first one being what others are compared with.

    Args:
        names: Of the ways, ``(W,)``.
        values: mAP with its interval.
    """
    figure = Figure(figsize=(7.2, 0.32 * len(names) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(100 * values[0][0], color=STYLES["old"][0], linewidth=1, linestyle=(0, (3, 3)))
    for at, (value, (low, high)) in enumerate(values):
        colour, marker = STYLES["old" if at == 0 else "new"]
        axes.plot([100 * low, 100 * high], [at, at], color=colour, linewidth=2)
        axes.plot(100 * value, at, marker, color=colour, markersize=7)
        axes.annotate(
            f"{100 * value:.1f}", (100 * max(value, high), at), (6, 0),
            textcoords="offset points", va="center", color=TEXT,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [short(name, 32) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel("mAP, %")
    tidy(axes, grid="x")
    return as_png(figure)
