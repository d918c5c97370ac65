# SPDX-License-Identifier: Apache-2.0
"""A chain of frozen text encoders upgraded step by step: what maps and heads bring, by ``probe``.

``python bench/probe_texts.py --write bench/results/probe_texts.json --insert docs/probe_texts.md``;
``--table`` measures nothing and makes the table of the results. Texts are the glosses of WordNet,
classes their hypernyms; each seed draws 120 classes to fit on and 80 to measure on. Packages:
``wordnet-base`` of Debian, those of the encoders as ``fcl bench-methods --dataset wordnet``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fclearn.adapters import Adapter, CompatHead
from fclearn.datasets import load_glosses
from fclearn.datasets.wordnet import DEFAULT_PATH
from fclearn.experiments.frozen import frozen_texts
from fclearn.experiments.markdown import MarkedPage, percent, table_row
from fclearn.experiments.records import software_versions
from fclearn.experiments.summary import Estimate, over_seeds
from fclearn.features import as_tensor
from fclearn.probe import ADAPTERS, probe

STEPS = (("glove", "minilm-l3"), ("minilm-l3", "minilm-l6"))
SEEDS = (0, 1, 2)
BEGIN, END = "<!-- probe-texts: begin -->", "<!-- probe-texts: end -->"
METRICS = ("map", "cmc@1")
#: The probe's, and the forms of the head that a faiss index takes in front of it.
CONTENDERS: dict[str, Callable[[int], Adapter]] = {
    **ADAPTERS,
    "compat-head, linear": lambda seed: CompatHead(head="linear", seed=seed),
    "compat-head, orthogonal": lambda seed: CompatHead(head="linear", orthogonal=True, seed=seed),
}
Result = dict[str, Any]


def measure(wordnet: Path) -> Result:
    """All ways of every step and seed."""
    glosses = load_glosses(wordnet)
    features = {
        name: as_tensor(frozen_texts(name, glosses)) for name in {m for step in STEPS for m in step}
    }
    # A text that one of the models knows no word of has no direction in its space.
    known = torch.stack([rows.any(1) for rows in features.values()]).all(0)
    unit = {name: torch.nn.functional.normalize(rows[known]) for name, rows in features.items()}
    labels = glosses.labels[known.numpy()]
    probes = []
    for old, new in STEPS:
        for seed in SEEDS:
            found = probe(
                old=unit[old], new=unit[new], labels=labels, adapters=CONTENDERS, seed=seed
            )
            probes.append({"old": old, "new": new, "seed": seed, **asdict(found)})
            print(f"{old} -> {new}, seed {seed}: {found.text}", flush=True)
    return {"texts": len(labels), "classes": len(np.unique(labels)), **software_versions()} | {
        "probes": probes
    }


def render(result: Result) -> str:
    """A table per step of the chain, best way on mAP first."""
    lines = [f"{result['texts']:,} texts of {result['classes']} classes."]
    for old, new in STEPS:
        probes = [one for one in result["probes"] if (one["old"], one["new"]) == (old, new)]
        lines += [
            "",
            f"**{old} to {new}** (seeds {', '.join(str(one['seed']) for one in probes)}; "
            f"{probes[0]['num_fit']:,} texts to fit on at seed {probes[0]['seed']}, "
            f"{probes[0]['num_queries']:,} queries)",
            "",
            table_row(["way", "what moves", "mAP", "CMC@1", "mAP − old/old", "each seed"]),
            table_row(["---", "---", "---:", "---:", "---:", "---"]),
        ]
        rows = [_row(probes, place) for place in range(len(probes[0]["ways"]))]
        lines += [line for _, line in sorted(rows, key=lambda row: -row[0])]
    return "\n".join(lines) + "\n"


def _row(probes: list[Result], place: int) -> tuple[float, str]:
    ways = [one["ways"][place] for one in probes]
    cells = [_cell(over_seeds([(way["metrics"][name], None) for way in ways])) for name in METRICS]
    gain = over_seeds([(way["gain"]["map"], None) for way in ways])
    each = ", ".join(percent(value, "+.1f") for value in gain.values)
    way = ways[0]
    first = f"`{way['name']}`" if way["direction"] else f"*{way['name']}*"
    own = way["name"] == "old/old"
    row = [first, way["direction"] or "–", *cells, "–" if own else _cell(gain, "+.1f")]
    mean = float(np.mean([one["metrics"]["map"] for one in ways]))
    return mean, table_row([*row, "–" if own else each])


def _cell(estimate: Estimate, form: str = ".1f") -> str:
    if estimate.interval is None:
        return percent(estimate.value, form)
    low, high = (percent(bound, form) for bound in estimate.interval)
    return f"{percent(estimate.value, form)} [{low}, {high}]"


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wordnet", type=Path, default=Path(DEFAULT_PATH), help="folder of files")
    parser.add_argument("--write", type=Path, required=True, help="the results, JSON")
    parser.add_argument("--insert", type=Path, help="a page with markers for the table")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    page = options.insert and MarkedPage.read(options.insert, BEGIN, END)
    if not options.table:
        result = measure(options.wordnet)
        options.write.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = render(json.loads(options.write.read_text(encoding="utf-8")))
    print(text)
    if page:
        page.write(text)


if __name__ == "__main__":
    main()
