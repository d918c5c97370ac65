# SPDX-License-Identifier: Apache-2.0
"""The nearest prototype: by definition, in any blocks, first of equal ones, of none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fclearn import _nearest
from fclearn._nearest import nearest_prototype


@pytest.mark.parametrize("block", [1, 7, 23, 100])
def test_it_is_the_prototype_of_the_highest_cosine(block, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    embeddings = torch.randn(50, 5, dtype=torch.float64, generator=draw)
    prototypes = torch.randn(23, 5, dtype=torch.float64, generator=draw)
    prototypes *= torch.arange(1, 24)[:, None]  # lengths do not count
    rows = prototypes.numpy() / np.linalg.norm(prototypes.numpy(), axis=1, keepdims=True)
    products = embeddings.numpy() @ rows.T
    monkeypatch.setattr(_nearest, "_BLOCK", block)
    found = nearest_prototype(embeddings, prototypes)
    np.testing.assert_array_equal(found.row.numpy(), products.argmax(1))
    np.testing.assert_allclose(found.score.numpy(), products.max(1), rtol=1e-12)


@pytest.mark.parametrize("block", [2, 9])
def test_the_first_of_equal_ones_wins(block, monkeypatch):
    prototypes = torch.zeros(9, 2)
    prototypes[[3, 5, 8], 0] = 1.0
    monkeypatch.setattr(_nearest, "_BLOCK", block)
    assert nearest_prototype(torch.tensor([[3.0, 0.0]]), prototypes).row.tolist() == [3]


def test_of_none_there_is_none():
    found = nearest_prototype(torch.ones(2, 3), torch.ones(0, 3))
    assert found.row.tolist() == [0, 0]
    assert found.score.tolist() == [-torch.inf, -torch.inf]
