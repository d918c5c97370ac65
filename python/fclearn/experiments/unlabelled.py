# SPDX-License-Identifier: Apache-2.0
"""An upgrade without labels: clusters of the old features take the place of classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fclearn._files import replacing
from fclearn.clusters import kmeans_labels
from fclearn.experiments.stages import Stages
from fclearn.experiments.upgrade import UpgradeData


def clustered(stages: Stages) -> UpgradeData:
    """The data of an upgrade under labels that need nobody: as many clusters as there are classes.

    Args:
        stages: With the true labels, which are not looked at. Its folder keeps the clusters: those
            of another number of threads could differ, and a training that resumes with them.

    Raises:
        ModuleNotFoundError: faiss is missing.
    """
    path = stages.output / "clusters.npy"
    data = stages.data
    if not path.is_file():
        old_train, _ = stages.old_features()
        count, seed = data.new.num_classes, stages.config.train.seed
        found = kmeans_labels(old_train, count, seed=seed)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, found)
    labels: NDArray[np.int64] = np.load(path, allow_pickle=False)
    names = [f"cluster {number}" for number in range(int(labels.max()) + 1)]
    return replace(data, new=data.new.relabelled(labels, names))
