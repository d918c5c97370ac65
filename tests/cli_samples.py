# SPDX-License-Identifier: Apache-2.0
"""Command lines on a few drawings, and what their answers must look like."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import numpy as np
import torch
from PIL import Image
from store_samples import norm_of

from fclearn.datasets import load_icons
from fclearn.features import FeatureStore, Fingerprint

TINY = ["data.size=16", "data.grey=true", "train.batch_size=8", "encoder.dim=8", "device=cpu"]


def write_photos(root):
    """Drawings of a few icon classes, a folder each."""
    icons = load_icons().select_classes(range(4))
    for row, label in enumerate(icons.labels):
        folder = root / icons.class_names[label]
        folder.mkdir(exist_ok=True)
        Image.fromarray(icons.images[row]).save(folder / f"{row}.png")
    return root


def upgrade(photos, root):
    """Commands that train an old and a compatible new model, and embed the drawings by both."""
    data = ["data.kind=folder", f"data.path={photos}", *TINY]
    return [
        ["train", *data, "method.name=independent", "train.epochs=1", f"output={root}/old"],
        ["embed", f"{root}/old", str(photos), "--out", f"{root}/old-store"],
        ["train", *data, f"old_features={root}/old-store", "train.epochs=2", f"output={root}/new"],
        ["embed", f"{root}/new", str(photos), "--out", f"{root}/new-store"],
    ]


def refused(result, *parts):
    """Exit code 2, nothing on stdout, and exactly one line with all parts."""
    code, output, error = result
    assert code == 2
    assert output is None
    assert error.startswith("fcl: error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    for part in parts:
        assert part in error
    return True


def write_store(path, rows, labels, model="m", ids=None, **columns):
    rows = np.asarray(rows, dtype=np.float32)
    ids = [f"i{n}" for n in range(len(rows))] if ids is None else ids
    fingerprint = Fingerprint(model, rows.shape[1], norm=norm_of(rows))
    manifest = {"id": ids, "label": labels, **columns}
    return FeatureStore.write(path, rows, manifest, fingerprint).path


def train(photos, output, *more):
    return ["train", "data.kind=folder", f"data.path={photos}", *TINY, f"output={output}", *more]


def history(run):
    """What training decides; not how fast it was."""
    with (run / "history.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {key: row[key] for key in row if key not in {"seconds", "images_per_second"}}
        for row in rows
    ]


def process(arguments, **options):
    # As many threads as here: sums in another order would differ in the last bit.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", "fclearn.cli", *map(str, arguments)],
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,
    )
