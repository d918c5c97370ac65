# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from fclearn.clusters import kmeans_labels

pytest.importorskip("faiss")


def test_finds_groups_that_are_there():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(400) % 8
    rows = 4 * torch.eye(8)[truth] + 0.2 * torch.randn(400, 8, generator=generator)
    rows *= torch.linspace(0.1, 9, 400)[:, None]  # lengths do not count
    labels = kmeans_labels(rows, 24)
    assert labels.dtype == np.int64
    # More clusters than groups, so that each has rows of one group only.
    pairs = {(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}
    assert len(pairs) == len(set(labels.tolist())) <= 24
    assert np.array_equal(labels, kmeans_labels(rows, 24))


def test_numbers_have_no_gaps():
    labels = kmeans_labels(np.ones((20, 3), np.float32), 5)
    assert set(labels.tolist()) == set(range(labels.max() + 1))


@pytest.mark.parametrize("clusters", [1, 6])
def test_refused_numbers(clusters):
    with pytest.raises(ValueError, match="clusters: expected 2 to 5, the number of rows"):
        kmeans_labels(np.eye(5, dtype=np.float32), clusters)


def test_refused_features():
    rows = np.eye(5, dtype=np.float32)
    rows[3, 1] = np.nan
    with pytest.raises(ValueError, match="row 3 holds a NaN"):
        kmeans_labels(rows, 2)
