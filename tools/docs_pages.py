# SPDX-License-Identifier: Apache-2.0
"""Pages of the documentation that are made of the registry of methods and of measured results.

No number on them is written by hand: methods' from ``bench/results/methods``, kernels' from
``bench/results/*.json``. Sphinx calls this before it reads the pages (``docs/conf.py``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fclearn.experiments.records import load_records
from fclearn.experiments.summary import MethodSummary, Summary, summarise
from fclearn.methods import METHODS, MethodSpec, Need
from fclearn.methods.base import NEW_CLASSIFIER_DEFAULTS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
NOTES = ROOT / "docs" / "method_notes"
_QUANTITIES = {
    ("new/old", "map"): "mAP, new queries in the old gallery (n/o)",
    ("new/old", "cmc@1"): "CMC@1, n/o",
    ("new/new", "map"): "mAP, new queries in a new gallery (n/n)",
    ("new/new", "cmc@1"): "CMC@1, n/n",
    ("update_gain", "map"): "update gain",
    ("self_test_tax", "map"): "self-test tax",
    ("negative_flip_rate", "cmc@1"): "negative flips",
}


def write_pages(folder: Path) -> None:
    """Write a page per method, their index, and the page of measurements."""
    methods = folder / "methods"
    methods.mkdir(parents=True, exist_ok=True)
    summary = summarise(load_records(RESULTS / "methods" / "icons"))
    for spec in METHODS.values():
        _write(methods / f"{spec.name}.md", method_page(spec, summary))
    _write(methods / "index.md", method_index(summary))
    _write(folder / "performance.md", performance_page(RESULTS))


def method_page(spec: MethodSpec, summary: Summary) -> str:
    """Idea, formula, needs, settings, when to use it, and what was measured."""
    own = {key: spec.defaults[key] for key in spec.defaults if key not in NEW_CLASSIFIER_DEFAULTS}
    settings = [f"`{key}`: {value}" for key, value in {**own, **NEW_CLASSIFIER_DEFAULTS}.items()]
    return "\n\n".join(
        [
            f"# {spec.name}",
            f"{spec.title}. {spec.source}.",
            "## Idea",
            # Docstrings are reStructuredText, but |x| in them is a length, not a substitution.
            f"```{{eval-rst}}\n{_escaped(spec.idea)}\n```",
            (NOTES / f"{spec.name}.md").read_text(encoding="utf-8").strip(),
            "## Needs",
            "\n".join(f"- {need.value}" for need in spec.needs) or "Nothing.",
            "## Settings",
            "\n".join(f"- {line}" for line in settings),
            f"```bash\nfcl train --config cfg.yaml method.name={spec.name}\n```",
            "## Measured",
            _measured(spec.name, summary),
            "",
        ]
    )


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _measured(name: str, summary: Summary) -> str:
    found = next((method for method in summary.methods if method.name == name), None)
    if found is None:
        return "Not yet: `fcl bench-methods` has no record of it in `bench/results/methods/icons`."
    lines = ["| quantity | percent [95 % interval] |", "|---|---:|"]
    for quantity, words in _QUANTITIES.items():
        lines.append(f"| {words} | {_percent(found, quantity)} |")
    old = summary.baselines["old/old", "map"].value
    seeds = ", ".join(map(str, found.seeds))
    text = f"Icon fonts, held-out classes, seeds {seeds}"
    if old is not None:
        text += f"; old queries in the old gallery: mAP {100 * old:.1f}"
    return (
        f"{text}. How, and all methods beside each other: [methods compared](../../methods.md).\n\n"
        + "\n".join(lines)
    )


def _percent(method: MethodSummary, quantity: tuple[str, str]) -> str:
    estimate = method.estimates[quantity]
    if estimate.value is None:
        return "–"
    text = f"{100 * estimate.value:.1f}"
    if estimate.interval is not None:
        text += f" [{', '.join(f'{100 * bound:.1f}' for bound in estimate.interval)}]"
    return text.replace("-", "−")


def method_index(summary: Summary) -> str:
    """What each method needs, with its measured gain, and the table of contents."""
    measured = {method.name: method for method in summary.methods}
    lines = ["| method | needs beside labels | n/o mAP |", "|---|---|---:|"]
    for spec in METHODS.values():
        more = [n.name.lower().replace("_", " ") for n in spec.needs if n is not Need.LABELS]
        value = _percent(measured[spec.name], ("new/old", "map")) if spec.name in measured else "–"
        lines.append(f"| [{spec.name}]({spec.name}.md) | {', '.join(more)} | {value} |")
    contents = "\n".join(METHODS)
    return (
        "# Methods\n\nOne page each: idea, formula, needs, when to use it, what was measured.\n\n"
        + "\n".join(lines)
        + f"\n\n```{{toctree}}\n:hidden:\n\n{contents}\n```\n"
    )


def performance_page(results: Path) -> str:
    """Every committed measurement of the kernels, as tables."""
    parts = [
        "# Performance",
        "Made of `bench/results/*.json` when these pages are built. A ratio is the time of a peer "
        "over ours, measured beside each other (`make bench` repeats it). What the floors are and "
        "why: [readout](../readout.md), [kNN](../knn.md).",
        "## Against peers, on the CPU",
        *(
            _cpu(json.loads((results / name).read_text(encoding="utf-8")))
            for name in ("cpu.json", "cpu_xeon.json")
        ),
        _accuracy(json.loads((results / "accuracy.json").read_text(encoding="utf-8"))),
        _out_of_core(json.loads((results / "out_of_core.json").read_text(encoding="utf-8"))),
        _endurance(json.loads((results / "endurance.json").read_text(encoding="utf-8"))),
        "## Time and memory against the number of classes",
        "![Time and memory against classes](../../bench/results/classes.png)",
        "## Time of the walk and of the kNN graph against nodes and columns",
        "![Time against nodes and columns](../../bench/results/graphs.png)",
        "",
    ]
    return "\n\n".join(parts)


def _cpu(summary: dict[str, Any]) -> str:
    lines = [
        f"### {summary['cpu']}",
        "",
        f"{summary['threads']} threads, {summary['fcl_isa']}, torch "
        f"{summary['torch']}, {summary['date']}.",
        "",
        "| what, shape | peer | ms | times ours | of peak | extra MB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in sorted(summary["benchmarks"], key=lambda row: row["group"]):
        peak = f"{100 * row['peak_fraction']:.0f} %" if "peak_fraction" in row else ""
        memory = f"{max(row['extra_memory_mb'], 0):.0f}" if "extra_memory_mb" in row else ""
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        lines.append(
            f"| {row['group']} | {row['peer']} | {1e3 * row['seconds']:.3g} | {ratio} | {peak} "
            f"| {memory} |"
        )
    return "\n".join(lines)


def _accuracy(found: dict[str, Any]) -> str:
    lines = [
        "## Accuracy of the loss",
        "",
        f"Relative error in the 2-norm against float64 at {found['classes']:,} classes, "
        f"{found['dim']} dims (`bench/accuracy.py`).",
        "",
        "| rows | scale | dtype | loss | gradient | torch, loss | torch, gradient |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    names = ("loss", "gradient", "torch_loss", "torch_gradient")
    for row in found["rows"]:
        errors = " | ".join(f"{row[name]:.1e}" for name in names)
        lines.append(f"| {row['data']} | {row['scale']:g} | {row['dtype']} | {errors} |")
    return "\n".join(lines)


def _out_of_core(found: dict[str, Any]) -> str:
    return (
        "## A walk larger than memory\n\n"
        f"{found['nodes']:,} nodes, {found['neighbours']} neighbours, {found['dim']} dims, "
        f"{found['steps']} steps, from file to file ({found['file_gb']:.1f} GB) in a process "
        f"limited to {found['cap_gb']:g} GB: {found['seconds']:.0f} s, at most "
        f"{found['peak_private_mb']:.0f} MB beyond mapped files."
    )


def _endurance(found: dict[str, Any]) -> str:
    lines = [
        "## Memory over many steps",
        "",
        "Growth of resident memory by least squares over the second half, extended to all steps; "
        "files and threads that stayed open (`tools/endurance.py`).",
        "",
        "| work | steps | growth, MB | resident, MB | files | threads |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['steps']:,} | {row['growth_mb']:.2f} | {row['resident_mb']:.0f} "
            f"| {row['files']} | {row['threads']} |"
        )
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    # A page that did not change keeps its time, and sphinx does not read it again.
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_pages(parser.parse_args().folder)
