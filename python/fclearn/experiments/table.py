# SPDX-License-Identifier: Apache-2.0
"""Table and plots of a comparison, from its records and nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fclearn._files import replacing
from fclearn.experiments.markdown import MarkedPage, percent, table_row, write_text
from fclearn.experiments.plots import plot_cross_against_self, plot_update_gain
from fclearn.experiments.records import Record, load_records
from fclearn.experiments.summary import (
    PAIRED,
    QUANTITIES,
    Estimate,
    MethodSummary,
    Summary,
    summarise,
)

TABLE, GAIN_PLOT, CROSS_PLOT = "table.md", "update_gain.png", "cross_self.png"
BEGIN, END = "<!-- bench-methods: begin -->", "<!-- bench-methods: end -->"
_HEADINGS = ("n/o mAP", "n/o CMC@1", "n/n mAP", "n/n CMC@1", "update gain", "tax", "flips")
_GIVEN = {
    "feature_cache": "old features",
    "old_model": "old model to ask",
    "old_scores": "old scores",
    "old_classifier": "old classifier",
    "independent_features": "independent model's features",
}
_CLASSES = {
    "extended": "extended classes",
    "open": "open classes",
    "extended-data": "extended data of the same classes",
    "open-data": "open data of the same classes",
}
_BASELINES = {
    "old/old": "old model, old gallery",
    "independent/independent": "independent model, re-indexed",
    "ceiling": "ceiling of the old space",
}


def write_summary(
    folder: str | os.PathLike[str], insert: str | os.PathLike[str] | None = None
) -> Summary:
    """Write ``table.md`` and two plots beside the records of a folder.

    Args:
        folder: The folder of `fclearn.experiments.benchmark.bench_methods`.
        insert: A markdown file whose part between the markers is replaced by the same.

    Returns:
        What they show.

    Raises:
        ValueError: No records, records of different settings, a file without the markers.
        OSError: A file cannot be read or written.
    """
    path = Path(folder)
    records = load_records(path)
    summary = summarise(records)
    page = None if insert is None else MarkedPage.read(insert, BEGIN, END)
    for name, plot in ((GAIN_PLOT, plot_update_gain), (CROSS_PLOT, plot_cross_against_self)):
        with replacing(path / name) as temporary:
            plot(summary).savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    write_text(path / TABLE, render(summary, records))
    if page is not None:
        page.write(render(summary, records, os.path.relpath(path, page.path.parent)))
    return summary


def render(summary: Summary, records: Sequence[Record], plots: str = ".") -> str:
    """The comparison as markdown.

    Args:
        summary: Of the records.
        records: Say what was compared, and with which versions.
        plots: Folder of the plots, as links in the text need it.
    """
    width = len(_HEADINGS)
    lines = [
        _setting(records),
        "",
        table_row(["method", "given, beside labels", *_HEADINGS, "seeds"]),
        table_row(["---"] * 2 + ["---:"] * width + ["---"]),
        *(_baseline(summary, key) for key in _BASELINES),
        *(_method(method) for method in summary.methods),
    ]
    others = [method for method in summary.methods if method.gains]
    if others:
        lines += [
            "",
            f"Differences to `{summary.reference}`, query by query, in points; 95 % bootstrap "
            "intervals over the queries of these seeds; last column: n/o mAP seed by seed.",
            "",
            table_row(["method", *_HEADINGS[: len(PAIRED)], "each seed"]),
            table_row(["---", *["---:"] * len(PAIRED), "---"]),
            *(_gains(method) for method in others),
        ]
    for name, alt in (
        (GAIN_PLOT, "Update gain of each method with intervals"),
        (CROSS_PLOT, "Cross-test against self-test of each method"),
    ):
        lines += ["", f"![{alt}]({Path(plots, name).as_posix()})"]
    return "\n".join(lines) + "\n"


def _setting(records: Sequence[Record]) -> str:
    config, data = records[0]["config"], records[0]["data"]
    seeds = sorted({record["config"]["train"]["seed"] for record in records})
    old, new, test = (data[name] for name in ("old", "new", "test"))
    items = "texts" if config["dataset"] == "wordnet" else "images"
    model = f"old model ({config['old_encoder']}, {config['old_dim']} dims)"
    network = f"({config['new_encoder']}, {config['new_dim']} dims)"
    if items == "texts":
        network = f"(a head on frozen {network[1:]}"
    if old["classes"]:
        trained = (
            f"{config['dataset']}, {_CLASSES[config['classes']]}. For seed {seeds[0]} the {model} "
            f"was trained on {old['classes']} classes ({old['images']} {items}), new models "
            f"{network} on {new['classes']} ({new['images']} {items})"
        )
    else:
        trained = (
            f"{config['dataset']}. The {model} is frozen and was trained by others. For seed "
            f"{seeds[0]} new models {network} were trained on {new['classes']} classes "
            f"({new['images']} {items})"
        )
    facts = [
        f"Data: {trained}, and tested on {test['classes']} held-out classes ({test['images']} "
        f"{items}, each a query). {config['train']['epochs']} epochs for every model, every method "
        "at its defaults."
    ]
    if config.get("labels") == "clusters":
        facts.append("Without labels: new models know clusters of the old features in their place.")
    if config["label_noise"]:
        facts.append(f"Label noise in the new training set: {100 * config['label_noise']:g} %.")
    if config["images_per_class"]:
        facts.append(f"At most {config['images_per_class']} images a class in it.")
    versions = {f"{k} {v}" for record in records for k, v in record["versions"].items()}
    facts.append(
        "Numbers in percent, flips: share of queries whose first hit was right and no longer is. "
        "Mean over the seeds with a 95 % interval: Student's t over seeds; where there is only "
        "one, bootstrap over its queries. "
        f"{', '.join(sorted(versions))}."
    )
    return " ".join(facts)


def _baseline(summary: Summary, key: str) -> str:
    cells = [_cell(summary.baselines[key, metric]) for metric in ("map", "cmc@1")]
    blank = ["–", "–"]
    placed = blank + cells if key.startswith("independent") else cells + blank
    seeds = ", ".join(map(str, summary.seeds))
    return table_row([f"*{_BASELINES[key]}*", "–", *placed, *["–"] * 3, seeds])


def _method(method: MethodSummary) -> str:
    given = ", ".join(_GIVEN[need] for need in method.given if need != "labels") or "nothing"
    cells = [_cell(method.estimates[quantity]) for quantity in QUANTITIES]
    return table_row([f"`{method.name}`", given, *cells, ", ".join(map(str, method.seeds))])


def _gains(method: MethodSummary) -> str:
    cells = [_cell(method.gains[quantity], signed=True) for quantity in PAIRED]
    each = [percent(value, "+.1f") for value in method.gains[PAIRED[0]].values]
    return table_row([f"`{method.name}`", *cells, ", ".join(each)])


def _cell(estimate: Estimate, *, signed: bool = False) -> str:
    form = "+.1f" if signed else ".1f"
    text = percent(estimate.value, form)
    if estimate.value is not None and estimate.interval is not None:
        text += f" [{', '.join(percent(bound, form) for bound in estimate.interval)}]"
    return text
