# SPDX-License-Identifier: Apache-2.0
"""Training that diverges names the epoch and keeps the checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_samples import make_trainer

from fclearn.losses import LossTerm
from fclearn.training import DivergenceError

pytestmark = pytest.mark.usefixtures("one_thread")


class _Bad(nn.Module):
    """A loss that is, or whose gradient becomes, not finite in one step."""

    def __init__(self, step, kind):
        super().__init__()
        self.step, self.kind, self.seen = step, kind, 0

    def forward(self, embeddings, _labels, _rows):
        self.seen += 1
        if self.seen != self.step:
            return embeddings.square().mean()
        if self.kind == "gradient":
            return (embeddings * 0).abs().sqrt().sum()
        return embeddings.mean() * float(self.kind)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("nan", "the loss is nan"), ("inf", "the loss is -?inf"), ("gradient", "the norm of the")],
)
@pytest.mark.parametrize("clip", [5.0, 0.0])
def test_divergence_names_the_epoch_and_keeps_the_checkpoint(bars, tmp_path, kind, text, clip):
    # The sixth step is the last of the second epoch: its checkpoint must not be spoiled.
    losses = [LossTerm("new", 1.0, _Bad(6, kind))]
    trainer = make_trainer(bars, {"max_grad_norm": clip}, losses=losses, output_dir=tmp_path)
    with pytest.raises(
        DivergenceError,
        match=rf"{text}.* in epoch 2, step 6; epoch 1 is kept in \S*checkpoint\.pt\. "
        r"Try a lower learning_rate",
    ) as caught:
        trainer.fit()
    assert "\n" not in str(caught.value)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == 1
    assert all(v.isfinite().all() for v in state["modules"].values())
    # The cause gone, the same run goes on.
    assert len(trainer.fit()) == 3


@pytest.mark.parametrize("folder", [False, True])
def test_divergence_promises_no_checkpoint_where_there_is_none(bars, folder, tmp_path):
    output = tmp_path if folder else None
    losses = [LossTerm("new", 1.0, _Bad(1, "nan"))]
    with pytest.raises(DivergenceError, match="in epoch 1, step 1; Try a lower learning_rate"):
        make_trainer(bars, losses=losses, output_dir=output).fit()
    assert list(tmp_path.iterdir()) == []
