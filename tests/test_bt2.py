# SPDX-License-Identifier: Apache-2.0
"""BT2: the learned basis keeps all distances; where it starts, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from baseline_checks import DIM, EXTRA, IMAGES, Batch, same

from fclearn.methods.bt2 import RotatedCosineLoss


def test_bt2_compares_in_a_learned_basis_that_keeps_all_distances():
    batch = Batch()
    independent = F.normalize(batch.normal(IMAGES, DIM), dim=1)
    term = RotatedCosineLoss(independent, DIM + EXTRA)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.05)
    values = []
    for _ in range(40):
        value = term(*batch.arguments)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]
    basis = term.basis.weight.detach()
    identity = torch.eye(DIM + EXTRA, dtype=torch.float64)
    torch.testing.assert_close(basis @ basis.T, identity, rtol=0, atol=1e-12)
    assert (basis - identity).norm() > 0.1
    losses = [
        1 - F.cosine_similarity((basis @ z)[:DIM], independent[row], dim=0)
        for z, row in zip(batch.embeddings, batch.rows, strict=True)
    ]
    same(term(*batch.arguments), torch.stack(losses).mean(), batch.embeddings)


def test_bt2_starts_where_the_embedding_is_and_refuses_narrow_ones():
    features = torch.eye(4)
    one, two = (RotatedCosineLoss(features, 6) for _ in range(2))
    torch.testing.assert_close(one.basis.weight, torch.eye(6))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
        assert "features" not in name
    with pytest.raises(ValueError, match="dim: expected at least the 4 dims of the independent"):
        RotatedCosineLoss(features, 3)
