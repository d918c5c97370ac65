# SPDX-License-Identifier: Apache-2.0
"""Hot-refresh: its regression alleviating loss by definition in float64."""

from __future__ import annotations

import pytest
import torch
from baseline_checks import BATCH, Batch, same

from fclearn.methods.hot_refresh import RegressionAlleviatingLoss


@pytest.mark.parametrize("num_negatives", [2, 0, 100])
def test_hot_refresh_has_new_and_old_negatives(num_negatives):
    batch = Batch()
    term = RegressionAlleviatingLoss(batch.features, scale=7.0, num_negatives=num_negatives)
    new, old = batch.part, batch.features[batch.rows]
    losses = []
    for i, label in enumerate(batch.labels.tolist()):
        logits = [7 * new[i] @ old[i]]
        for rows in (old, new):
            others = [7 * new[i] @ rows[j] for j in range(BATCH) if int(batch.labels[j]) != label]
            others.sort(key=lambda logit: -logit.item())
            logits += others[: num_negatives or None]
        losses.append(torch.logsumexp(torch.stack(logits), 0) - logits[0])
    same(term(*batch.arguments), torch.stack(losses).mean(), batch.embeddings)


def test_hot_refresh_without_negatives_is_zero_and_refuses_options():
    term = RegressionAlleviatingLoss(torch.eye(2))
    embeddings = torch.randn(2, 2, requires_grad=True)
    value = term(embeddings, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    value.backward()
    assert float(value.detach()) == 0
    assert embeddings.grad.isfinite().all()
    with pytest.raises(ValueError, match="scale: expected a finite number > 0, got 0"):
        RegressionAlleviatingLoss(torch.eye(2), scale=0)
    with pytest.raises(ValueError, match="num_negatives: expected at least 0, got -1"):
        RegressionAlleviatingLoss(torch.eye(2), num_negatives=-1)
