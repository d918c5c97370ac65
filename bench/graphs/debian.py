# SPDX-License-Identifier: Apache-2.0
"""Debian's package graph, frozen: it changes with every update of the archive.

``python bench/graphs/debian.py`` makes ``debian.npz`` anew from ``apt-cache dumpavail``: nodes are
packages in alphabetical order, and row i lists the packages named in Depends, Pre-Depends and
Recommends of package i (the first of alternatives), as CSR.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("debian.npz")
_FIELDS = ("Depends:", "Pre-Depends:", "Recommends:")


def load() -> tuple[np.ndarray, np.ndarray]:
    """Row offsets (int64) and columns (int32) of the frozen copy."""
    with np.load(FILE, allow_pickle=False) as arrays:
        return arrays["crow_indices"], arrays["col_indices"]


def parse(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Graph of the packages in the output of ``apt-cache dumpavail``."""
    needs: dict[str, set[str]] = {}
    for paragraph in text.split("\n\n"):
        lines = re.sub(r"\n[ \t]+", " ", paragraph).splitlines()
        name = next((line[9:].strip() for line in lines if line.startswith("Package:")), None)
        if name is None:
            continue
        named = needs.setdefault(name, set())
        for line in lines:
            if line.startswith(_FIELDS):
                for part in line.partition(":")[2].split(","):
                    named.add(re.split(r"[\s:(|]", part.strip(), maxsplit=1)[0])
    numbers = {name: i for i, name in enumerate(sorted(needs))}
    rows = [
        sorted(numbers[other] for other in needs[name] if other in numbers and other != name)
        for name in sorted(needs)
    ]
    crow = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return crow.astype(np.int64), np.concatenate(rows).astype(np.int32)


if __name__ == "__main__":
    output = subprocess.run(
        ["apt-cache", "dumpavail"], check=True, capture_output=True, encoding="utf-8"
    )
    crow_indices, col_indices = parse(output.stdout)
    np.savez_compressed(FILE, crow_indices=crow_indices, col_indices=col_indices)
    print(f"{len(crow_indices) - 1} packages, {len(col_indices)} edges")
