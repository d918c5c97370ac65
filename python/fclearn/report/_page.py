# SPDX-License-Identifier: Apache-2.0
"""The page of an upgrade: what its numbers look like to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fclearn.evaluation import metric_title
from fclearn.report._numbers import Row, Table, bounds, cell, number, row, signed
from fclearn.report._pictures import StoredExample
from fclearn.report._template import Json, fill

_MEANINGS = {
    "old/old": "the system as it is",
    "new/old": "the upgrade, gallery untouched",
    "new/new": "new model, everything re-indexed",
    "independent/independent": "trained without compatibility, re-indexed",
}
# Shown elsewhere on the page, or too long for it.
_NOT_FACTS = frozenset(
    {
        "verdict", "primary", "matrix", "differences", "update_gain", "update_gains",
        "self_test_tax", "self_test_taxes", "negative_flip_rate", "intervals", "num_queries",
        "num_skipped", "num_missing", "num_gallery", "num_bootstrap", "confidence",
        "bootstrap_seed", "histories",
    }
)  # fmt: skip


def render(
    data: Mapping[str, Json],
    examples: Sequence[StoredExample],
    gain_uri: str,
    curve_uris: Mapping[str, str],
) -> str:
    """The page as HTML.

    Args:
        data: Content of ``report.json``.
        examples: Queries to look at.
        gain_uri: Picture of the update gain.
        curve_uris: Pictures of training curves by title.
    """
    matrix, intervals = data["matrix"], data["intervals"]
    names = list(matrix["old/old"])
    models = ", ".join(data["histories"])
    confidence = f"{100 * data['confidence']:.0f}%"
    caption = (
        f"Metrics in percent, with {confidence} intervals over {data['num_queries']:,} queries "
        f"({data['num_gallery']:,} gallery rows{skipped(data)})."
    )
    return fill(
        "report.html.j2",
        data,
        kind="upgrade report",
        hidden=_NOT_FACTS,
        verdict=data["verdict"],
        tiles=_tiles(data),
        confidence=confidence,
        num_bootstrap=f"{data['num_bootstrap']:,}",
        table=Table(
            label="Table of metrics",
            caption=caption,
            columns=["query / gallery", *(metric_title(name) for name in names)],
            bodies=[
                [
                    row(
                        key,
                        [cell(entry[name], intervals[key][name]) for name in names],
                        _MEANINGS.get(key, ""),
                        marked=key == "new/old",
                    )
                    for key, entry in matrix.items()
                ],
                _derived(data, names),
            ],
        ),
        has_goal="independent/independent" in matrix,
        figures={
            "gain": {"uri": gain_uri, "alt": _gain_alt(matrix, data["primary"])},
            "curves": [
                {"uri": uri, "alt": f"{title} over epochs of the models: {models}"}
                for title, uri in curve_uris.items()
            ],
        },
        curve_note=_curve_note(data["histories"]),
        examples=examples,
    )


def _tiles(data: Mapping[str, Json]) -> list[dict[str, str]]:
    name = data["primary"]
    cross, intervals = data["matrix"]["new/old"][name], data["intervals"]
    change = data["differences"]["new/old - old/old"][name]
    tiles = [
        {
            "name": f"{metric_title(name)} of new/old",
            "value": number(cross),
            "unit": "%",
            "note": f"{signed(change)} points against old/old "
            + bounds(intervals["new/old - old/old"][name], sign=True),
        }
    ]
    if "update_gain" in intervals:
        gain = data["update_gain"]
        note = "independent is not better than old"
        if gain is not None:
            note = f"of what full re-indexing brings {bounds(intervals['update_gain'][name])}"
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
                "value": signed(tax),
                "unit": "points",
                "note": f"{note} {bounds(intervals['self_test_tax'][name], sign=True)}",
            }
        )
    tiles.append(
        {
            "name": "Negative flips",
            "value": number(data["negative_flip_rate"]),
            "unit": "%",
            "note": "of queries lose a right first hit "
            + bounds(intervals["negative_flip_rate"]["cmc@1"]),
        }
    )
    return tiles


def _derived(data: Mapping[str, Json], names: Sequence[str]) -> list[Row]:
    intervals, change = data["intervals"], "new/old - old/old"
    rows = [
        row(
            "new/old − old/old",
            [
                cell(data["differences"][change][name], intervals[change][name], sign=True)
                for name in names
            ],
            "gain at once, in points",
        )
    ]
    for label, meaning, values, key in (
        ("update gain", "share of what re-indexing brings, in %", "update_gains", "update_gain"),
        ("self-test tax", "cost of compatibility, in points", "self_test_taxes", "self_test_tax"),
    ):
        if key in intervals:
            sign = key == "self_test_tax"
            cells = [
                cell(data[values].get(name), intervals[key][name], sign=sign) for name in names
            ]
            rows.append(row(label, cells, meaning))
    return rows


def skipped(data: Mapping[str, Json]) -> str:
    """How many queries had nothing to find, and what could not be found, to go on a sentence."""
    count, missing = data["num_skipped"], data["num_missing"]
    text = f"; {count:,} queries without a match skipped" if count else ""
    return (
        f"{text}; {missing:,} relevant rows not in the gallery count as lost" if missing else text
    )


def _gain_alt(matrix: Mapping[str, Mapping[str, float]], name: str) -> str:
    values = ", ".join(f"{key} {number(row[name])}%" for key, row in matrix.items())
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
