# SPDX-License-Identifier: Apache-2.0
"""From pytest-benchmark's files to results one can read, commit, and hold later runs against.

``python bench/report.py latest.json --write results/cpu.json`` prints the table and keeps what
matters of the run (of several files, parts of one run on one machine, all of it);
``--against results/cpu*.json`` fails where a ratio to a peer has become worse than in those of the
files that are of the same processor: what peers make of another one says nothing about a change.
Ratios only, as times of two days on a shared machine say nothing either.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# A ratio may fall this far below the committed one before it counts as a regression.
TOLERANCE = 0.8


# What a row keeps of a benchmark's extra_info, where it has it.
_KEPT = ("ratio", "peak_fraction", "gather_fraction", "steps_to_pay_back", "extra_memory_mb")
# What results must have in common to be compared.
_PROCESSOR = ("cpu", "fcl_isa", "threads")
# What parts of one run must have in common.
_MACHINE = ("torch", "threads", "fcl_isa", "python")


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Parts of one run as one; ValueError where they are of different machines or versions."""
    whole = parts[0]
    for part in parts[1:]:
        for key in _MACHINE:
            if part["machine_info"][key] != whole["machine_info"][key]:
                raise ValueError(
                    f"parts of one run must agree in {key}; "
                    f"found {whole['machine_info'][key]} and {part['machine_info'][key]}"
                )
    return whole | {"benchmarks": [bench for part in parts for bench in part["benchmarks"]]}


def summarise(raw: dict[str, Any]) -> dict[str, Any]:
    """Hardware, versions, date, and one row per benchmark."""
    machine = raw["machine_info"]
    rows = []
    for bench in raw["benchmarks"]:
        info = bench["extra_info"]
        rows.append(
            {
                "group": bench["group"],
                "name": bench["name"].partition("[")[0],
                "peer": info.get("peer", ""),
                "seconds": info.get("seconds", bench["stats"]["median"]),
                **{key: info[key] for key in _KEPT if info.get(key) is not None},
            }
        )
    return {
        "date": raw["datetime"][:10],
        "cpu": machine["cpu"].get("brand_raw", machine.get("machine")),
        **{key: machine[key] for key in _MACHINE},
        "benchmarks": rows,
    }


def print_table(summary: dict[str, Any]) -> None:
    """One line per benchmark, peers beside ours."""
    head = ("cpu", "threads", "torch", "fcl_isa", "date")
    table = Table(title=", ".join(f"{key} {summary[key]}" for key in head))
    for column in ("group", "peer", "median ms", "x ours", "of peak", "extra MB"):
        table.add_column(column, justify="left" if column in ("group", "peer") else "right")
    last = None
    for row in sorted(summary["benchmarks"], key=lambda row: row["group"]):
        table.add_row(
            row["group"] if row["group"] != last else "",
            row["peer"],
            f"{1e3 * row['seconds']:.3f}",
            f"{row['ratio']:.2f}" if "ratio" in row else "",
            f"{100 * row['peak_fraction']:.0f} %" if "peak_fraction" in row else "",
            f"{row['extra_memory_mb']:.0f}" if "extra_memory_mb" in row else "",
        )
        last = row["group"]
    Console(width=120).print(table)


def compared(summary: dict[str, Any], committed: dict[str, Any]) -> int:
    """How many ratios `regressions` compares."""
    if not _are_of_one_processor(summary, committed):
        return 0
    both = [
        {(row["group"], row["peer"]) for row in side["benchmarks"] if "ratio" in row}
        for side in (summary, committed)
    ]
    return sum(peer != "ours" for _, peer in both[0] & both[1])


def regressions(summary: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """What became worse; only benchmarks that both have, on the same processor."""
    if not _are_of_one_processor(summary, committed):
        return []
    before = {(row["group"], row["peer"]): row for row in committed["benchmarks"]}
    found = []
    for row in summary["benchmarks"]:
        old = before.get((row["group"], row["peer"]), {})
        if "ratio" in row and "ratio" in old and row["ratio"] < TOLERANCE * old["ratio"]:
            found.append(
                f"{row['group']}: {row['peer']} took {row['ratio']:.2f} times our time, "
                f"{old['ratio']:.2f} in the committed results of {committed['date']}"
            )
    return found


def _are_of_one_processor(summary: dict[str, Any], committed: dict[str, Any]) -> bool:
    return all(summary[key] == committed[key] for key in _PROCESSOR)


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path, nargs="+", help="what --benchmark-json wrote")
    parser.add_argument("--write", type=Path, help="where to keep the summary")
    parser.add_argument("--against", type=Path, nargs="+", default=[], help="committed summaries")
    arguments = parser.parse_args()
    parts = [json.loads(raw.read_text(encoding="utf-8")) for raw in arguments.raw]
    summary = summarise(joined(parts))
    print_table(summary)
    worse = []
    for path in arguments.against:
        committed = json.loads(path.read_text(encoding="utf-8"))
        # So that a check that had nothing to compare does not pass for one that found nothing.
        print(f"ratios compared with {path}: {compared(summary, committed)}")
        worse += regressions(summary, committed)
    for line in worse:
        print(f"regression: {line}", file=sys.stderr)
    if arguments.write is not None:
        arguments.write.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
