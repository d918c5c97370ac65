# SPDX-License-Identifier: Apache-2.0
"""Figures of the concept pages, computed by the library itself when the pages are built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from fclearn import KnnGraph, PseudoClassifier

_COLOURS = ("#1f6f8b", "#c8553d")


def draw(folder: Path) -> None:
    """Write all figures as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (("upgrade", _upgrade()), ("walk", _walk()), ("logits", _logits())):
        # Neither a date nor random ids: the same figure is the same file.
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")


def _upgrade() -> Figure:
    """Which query meets which gallery, before and after."""
    figure = Figure(figsize=(7, 2.6))
    axes = figure.add_subplot()
    axes.axis("off")
    axes.set(xlim=(0, 10), ylim=(0, 4))
    boxes = {
        "old query": (0.3, 2.6, 0),
        "new query": (0.3, 0.6, 1),
        "old gallery\n(what you have)": (6.6, 2.6, 0),
        "new gallery\n(backfill)": (6.6, 0.6, 1),
    }
    for text, (x, y, colour) in boxes.items():
        width = 2.2 if x < 1 else 3.0
        axes.add_patch(Rectangle((x, y), width, 0.9, color=_COLOURS[colour], alpha=0.25))
        axes.text(x + width / 2, y + 0.45, text, ha="center", va="center", fontsize=9)
    for start, end, text, style in (
        (3.05, 3.05, "old/old", "-"),
        (1.05, 2.85, "new/old, if compatible", "-"),
        (1.0, 1.0, "new/new", "--"),
    ):
        arrow = FancyArrowPatch(
            (2.6, start), (6.5, end), arrowstyle="->", mutation_scale=14, linestyle=style
        )
        axes.add_patch(arrow)
        # A little above the arrow, along it.
        axes.text(
            *(4.5, (start + end) / 2 + 0.12, text),
            **{"ha": "center", "rotation": np.degrees(np.arctan2(end - start, 3.9))},
            **{"rotation_mode": "anchor", "transform_rotates_text": True, "fontsize": 8},
        )
    return figure


def _walk() -> Figure:
    """Class means of features with outliers, plain and refined by a walk within the classes."""
    rng = np.random.default_rng(3)
    angles = np.concatenate(
        [rng.normal(0.5, 0.12, 20), rng.uniform(1.0, 3.0, 9), rng.normal(2.6, 0.12, 20)]
    )
    labels = torch.tensor([0] * 29 + [1] * 20)
    features = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1)).float()
    plain = PseudoClassifier.from_means(features, labels)
    graph = KnnGraph.build(features, 10, labels=labels).normalize(temperature=0.05)
    refined = plain.refine(graph, 0.9)
    figure = Figure(figsize=(7, 3.4))
    for place, (title, prototypes) in enumerate(
        (("class means", plain.prototypes), ("refined by a walk", refined.prototypes))
    ):
        axes = figure.add_subplot(1, 2, place + 1)
        _circle(axes, features, labels, prototypes)
        axes.set_title(title, fontsize=10)
    return figure


def _circle(
    axes: Axes, features: torch.Tensor, labels: torch.Tensor, prototypes: torch.Tensor
) -> None:
    for label, colour in enumerate(_COLOURS):
        rows = features[labels == label]
        axes.scatter(rows[:, 0], rows[:, 1], s=12, color=colour, alpha=0.6)
        x, y = prototypes[label].tolist()
        axes.text(
            0.6 * x + 0.05, 0.6 * y - 0.05, f"{np.degrees(np.arctan2(y, x)):.0f}°", fontsize=8
        )
        axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "lw": 2})
    axes.set(xlim=(-1.15, 1.15), ylim=(-0.1, 1.15), aspect="equal", xticks=[], yticks=[])


def _logits() -> Figure:
    """Memory of the logits of a batch against the number of rows of the classifier."""
    classes = np.logspace(3, 7, 50)
    figure = Figure(figsize=(5, 3))
    axes = figure.add_subplot()
    for batch, colour in zip((256, 1024), _COLOURS, strict=True):
        axes.loglog(classes, 4 * batch * classes / 1e9, color=colour, label=f"batch of {batch}")
    axes.set(xlabel="rows of the (pseudo) classifier", ylabel="GB of float32 logits")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure
