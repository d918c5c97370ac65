# SPDX-License-Identifier: Apache-2.0
"""A faiss index of old vectors keeps serving: new queries go through a map inside the index.

    python examples/faiss_gallery.py

What is on disk is the index; what is measured is what its users get, approximation included.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import faiss
import numpy as np
import torch

from fclearn import evaluate_retrieval
from fclearn.adapters import Ridge
from fclearn.adapters.export import export_index
from fclearn.evaluation import IndexedGallery


def vectors_of(items: np.ndarray, dim: int, noise: float, seed: int) -> np.ndarray:
    """Stand-in for a model: a projection of the items, with noise of its own."""
    world = np.random.default_rng(seed)
    vectors = items @ world.standard_normal((items.shape[1], dim))
    vectors += noise * world.standard_normal(vectors.shape) * vectors.std()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def main() -> dict[str, float]:
    """Fit a map on pairs, put it in front of the index, and search that with new queries."""
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 200
    items = rng.standard_normal((200, 20))[labels] + 0.5 * rng.standard_normal((4000, 20))
    old = vectors_of(items, 32, noise=0.6, seed=1)
    new = vectors_of(items, 48, noise=0.1, seed=2)
    pairs, queries, gallery = (np.arange(4000) // 200 % 20 == part for part in range(3))
    gallery |= ~(pairs | queries)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        live, mapped = Path(folder, "live.faiss"), Path(folder, "mapped.faiss")
        index = faiss.index_factory(32, "IVF32,Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(old[gallery])
        index.add(old[gallery])
        faiss.write_index(index, str(live))

        # Pairs: items of which both models' vectors are known. No labels are needed.
        source, target = (torch.from_numpy(rows[pairs]) for rows in (new, old))
        export_index(Ridge().fit(source=source, target=target), live, mapped)

        for name, query, file in (
            ("old queries, old index", old, live),
            ("new queries, the same index behind a map", new, mapped),
        ):
            opened = faiss.read_index(str(file))
            faiss.extract_index_ivf(opened).nprobe = 8
            result = evaluate_retrieval(
                query[queries],
                IndexedGallery(opened),
                query_labels=labels[queries],
                gallery_labels=labels[gallery],
                metrics=["map@100", "cmc@1"],
            )
            found[name] = result["map@100"]
            print(f"{name}: mAP@100 {100 * found[name]:.1f}")
    return found


if __name__ == "__main__":
    main()
