# SPDX-License-Identifier: Apache-2.0
"""A text embedding API is replaced by another: nothing can be trained, features are all there is.

    python examples/text_api_upgrade.py

Two stand-ins for the APIs embed real texts, the docstrings of Python's standard library; texts of
one module belong together. New queries shall find them in the index that the old API filled: a head
is fitted on pairs of vectors of *other* modules, and every new query goes through it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect

import numpy as np
import torch

import fclearn
from fclearn.adapters import CompatHead, Procrustes

FITTED = (
    *("argparse", "ast", "base64", "collections", "csv", "datetime", "decimal", "email.message"),
    *("fractions", "functools", "gzip", "http.client", "itertools", "json", "logging", "math"),
    *("optparse", "os", "pathlib", "pickle", "platform", "queue", "random", "shutil", "socket"),
    *("statistics", "string", "struct", "subprocess", "tarfile", "threading"),
)
TESTED = (
    *("bz2", "calendar", "cmath", "codecs", "configparser", "difflib", "glob", "heapq", "imaplib"),
    *("ipaddress", "mailbox", "multiprocessing.pool", "operator", "selectors", "smtplib"),
    *("tempfile", "textwrap", "tokenize", "unittest", "uuid", "weakref", "zipfile"),
)


def texts_of(modules: tuple[str, ...]) -> tuple[list[str], torch.Tensor]:
    """Docstrings, and the module of each as a class."""
    texts, labels = [], []
    for label, name in enumerate(modules):
        for _, thing in sorted(vars(importlib.import_module(name)).items(), key=lambda x: x[0]):
            doc = inspect.getdoc(thing) if callable(thing) else None
            if doc and len(doc) > 40 and doc not in texts:
                texts.append(doc)
                labels.append(label)
    return texts, torch.tensor(labels)


def api(texts: list[str], sizes: tuple[int, ...], dim: int) -> np.ndarray:
    """Stand-in for an API: pieces of ``sizes`` letters, counted, hashed, projected to ``dim``."""
    counts = np.zeros((len(texts), 4096), np.float32)
    for row, text in enumerate(texts):
        low = f" {' '.join(text.lower().split())} "
        for size in sizes:
            for begin in range(len(low) - size + 1):
                piece = hashlib.blake2b(low[begin : begin + size].encode(), digest_size=4)
                counts[row, int.from_bytes(piece.digest(), "little") % 4096] += 1
    projection = np.random.default_rng(dim).standard_normal((4096, dim)).astype(np.float32)
    vectors = np.log1p(counts) @ projection
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def old_api(texts: list[str]) -> np.ndarray:
    """128 dims of letters in threes."""
    return api(texts, (3,), 128)


def new_api(texts: list[str]) -> np.ndarray:
    """512 dims of letters in threes and fours."""
    return api(texts, (3, 4), 512)


def main() -> dict[str, float]:
    """Fit on some modules, measure on others."""
    texts, labels = texts_of(FITTED)
    test_texts, test_labels = texts_of(TESTED)
    pairs = {
        "source": torch.from_numpy(new_api(texts)),
        "target": torch.from_numpy(old_api(texts)),
    }
    gallery = torch.from_numpy(old_api(test_texts))
    queries = torch.from_numpy(new_api(test_texts))
    ways = {
        "old queries": gallery,
        "new queries as they are": queries[:, :128],
        "through Procrustes": Procrustes().fit(**pairs).transform(queries),
        "through a head": CompatHead().fit(**pairs, labels=labels).transform(queries),
    }
    found = {}
    for name, query in ways.items():
        result = fclearn.evaluate_retrieval(
            query,
            gallery,
            query_labels=test_labels,
            gallery_labels=test_labels,
            exclude_self=True,
            query_ids=range(len(test_labels)),
            gallery_ids=range(len(test_labels)),
            metrics=("map", "cmc@1"),
        )
        found[name] = result["map"]
        print(f"{name} in the old index: mAP {100 * result['map']:.1f}")
    return found


if __name__ == "__main__":
    main()
