# SPDX-License-Identifier: Apache-2.0
"""The page: what a report's numbers look like to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import yaml

from fclearn.evaluation import metric_title
from fclearn.report._pictures import StoredExample

_MEANINGS = {
    "old/old": "the system as it is",
    "new/old": "the upgrade, gallery untouched",
    "new/new": "new model, everything re-indexed",
    "independent/independent": "trained without compatibility, re-indexed",
}
# Shown elsewhere on the page, or too long for it.
_NOT_FACTS = frozenset(
    {
        "verdict", "matrix", "differences", "update_gain", "update_gains", "self_test_tax",
        "self_test_taxes", "negative_flip_rate", "intervals", "num_queries", "num_skipped",
        "num_gallery", "num_bootstrap", "confidence", "bootstrap_seed", "histories", "title",
        "command", "config", "data",
    }
)  # fmt: skip

# The values of report.json: JSON has no narrower type.
Json = Any


def render(
    data: Mapping[str, Json],
    examples: Sequence[StoredExample],
    gain_uri: str,
    curve_uris: Mapping[str, str],
) -> str:
    """Fill the template; every inserted string is escaped.

    Args:
        data: Content of ``report.json``.
        examples: Queries to look at.
        gain_uri: Picture of the update gain.
        curve_uris: Pictures of training curves by title.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fclearn.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    matrix, intervals = data["matrix"], data["intervals"]
    names = list(matrix["old/old"])
    models = ", ".join(data["histories"])
    return environment.get_template("report.html.j2").render(
        title=str(data.get("title", "Upgrade report")),
        data=data.get("data"),
        verdict=data["verdict"],
        tiles=_tiles(data),
        confidence=f"{100 * data['confidence']:.0f}%",
        num_queries=f"{data['num_queries']:,}",
        num_gallery=f"{data['num_gallery']:,}",
        num_skipped=f"{data['num_skipped']:,}" if data["num_skipped"] else "",
        num_bootstrap=f"{data['num_bootstrap']:,}",
        metrics=[metric_title(name) for name in names],
        rows=[
            {
                "key": key,
                "label": key,
                "meaning": _MEANINGS.get(key, ""),
                "cells": [_cell(row[name], intervals[key][name]) for name in names],
            }
            for key, row in matrix.items()
        ],
        derived=_derived(data, names),
        has_goal="independent/independent" in matrix,
        figures={
            "gain": {"uri": gain_uri, "alt": _gain_alt(matrix, data.get("primary", "map"))},
            "curves": [
                {"uri": uri, "alt": f"{title} over epochs of the models: {models}"}
                for title, uri in curve_uris.items()
            ],
        },
        curve_note=_curve_note(data["histories"]),
        examples=examples,
        command=data.get("command"),
        facts=_facts(data),
        config=yaml.safe_dump(data["config"], sort_keys=False) if data.get("config") else "",
    )


def _tiles(data: Mapping[str, Json]) -> list[dict[str, str]]:
    name = data.get("primary", "map")  # reports of earlier releases do not say
    cross, intervals = data["matrix"]["new/old"][name], data["intervals"]
    change = data["differences"]["new/old - old/old"][name]
    tiles = [
        {
            "name": f"{metric_title(name)} of new/old",
            "value": _number(cross),
            "unit": "%",
            "note": f"{_signed(change)} points against old/old "
            + _bounds(intervals["new/old - old/old"][name], signed=True),
        }
    ]
    if "update_gain" in intervals:
        gain = data["update_gain"]
        note = "independent is not better than old"
        if gain is not None:
            note = f"of what full re-indexing brings {_bounds(intervals['update_gain'][name])}"
        tiles.append(
            {
                "name": "Update gain",
                "value": "undefined" if gain is None else f"{100 * gain:.0f}".replace("-", "−"),
                "unit": "" if gain is None else "%",
                "note": note,
            }
        )
    if data["self_test_tax"] is not None:
        tax = data["self_test_tax"]
        note = "what compatibility costs" if tax > 0 else "negative: compatibility helped"
        tiles.append(
            {
                "name": "Self-test tax",
                "value": _signed(tax),
                "unit": "points",
                "note": f"{note} {_bounds(intervals['self_test_tax']['map'], signed=True)}",
            }
        )
    tiles.append(
        {
            "name": "Negative flips",
            "value": _number(data["negative_flip_rate"]),
            "unit": "%",
            "note": "of queries lose a right first hit "
            + _bounds(intervals["negative_flip_rate"]["cmc@1"]),
        }
    )
    return tiles


def _derived(data: Mapping[str, Json], names: Sequence[str]) -> list[dict[str, Json]]:
    intervals, rows = data["intervals"], []
    differences = data["differences"]["new/old - old/old"]
    rows.append(
        {
            "label": "new/old − old/old",
            "meaning": "gain at once, in points",
            "cells": [
                _cell(differences[name], intervals["new/old - old/old"][name], signed=True)
                for name in names
            ],
        }
    )
    for label, meaning, values, key in (
        ("update gain", "share of what re-indexing brings, in %", "update_gains", "update_gain"),
        ("self-test tax", "cost of compatibility, in points", "self_test_taxes", "self_test_tax"),
    ):
        if key in intervals:
            signed = key == "self_test_tax"
            cells = [
                _cell(data[values].get(name), intervals[key][name], signed=signed) for name in names
            ]
            rows.append({"label": label, "meaning": meaning, "cells": cells})
    return rows


def _cell(
    value: float | None, bounds: Sequence[float] | None, signed: bool = False
) -> dict[str, str]:
    text = "–" if value is None else (_signed(value) if signed else _number(value))
    return {"value": text, "bounds": "" if value is None else _bounds(bounds, signed=signed)}


def _number(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", "−")


def _signed(value: float) -> str:
    # Rounded first, so that no "−0.0" appears.
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")


def _bounds(bounds: Sequence[float] | None, signed: bool = False) -> str:
    if bounds is None:
        return ""
    low, high = (_signed(bound) if signed else _number(bound) for bound in bounds)
    return f"[{low},\N{NO-BREAK SPACE}{high}]"


def _gain_alt(matrix: Mapping[str, Mapping[str, float]], name: str) -> str:
    values = ", ".join(f"{key} {_number(row[name])}%" for key, row in matrix.items())
    title = metric_title(name)
    return f"Dot plot of {title} with intervals: {values}. All values are in the table above."


def _curve_note(histories: Mapping[str, Mapping[str, Sequence[float | None]]]) -> str:
    parts = []
    for name, history in histories.items():
        seconds = [value for value in history.get("seconds", ()) if value is not None]
        epochs = len(history.get("epoch", ()))
        if epochs and seconds:
            parts.append(f"{name}: {epochs} epochs in {sum(seconds):.0f} s")
    return "; ".join(parts) + "." if parts else ""


def _facts(data: Mapping[str, Json]) -> list[tuple[str, str]]:
    """Flatten what was said about the run into name and value."""
    pairs: list[tuple[str, str]] = []

    def add(name: str, value: Json) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                add(f"{name}, {key}", item)
        elif isinstance(value, list):
            pairs.append((name, ", ".join(map(str, value))))
        elif value is not None:
            pairs.append((name, str(value)))

    versions = data.get("versions")
    if isinstance(versions, Mapping):
        pairs.append(("versions", ", ".join(f"{key} {value}" for key, value in versions.items())))
    if not isinstance(data.get("data"), str):
        add("data", data.get("data"))
    for key, value in data.items():
        if key not in _NOT_FACTS and key != "versions":
            add(key.replace("_", " "), value)
    return pairs
