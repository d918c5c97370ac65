# SPDX-License-Identifier: Apache-2.0
"""Compatibility losses of pytorch-metric-learning: values, its wrappers, and a training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchrun import TESTS, torchrun

import fcl_ext
from fclearn.losses import (
    DistillCompatLoss,
    InstanceCompatLoss,
    L2CompatLoss,
    PseudoClassifierLoss,
)
from fclearn.methods.hot_refresh import RegressionAlleviatingLoss

pytest.importorskip("pytorch_metric_learning")

from fclearn.integrations.metric_learning import (
    OldFeaturesLoss,
    OldFeaturesMemory,
    TermLoss,
)

ROWS, CLASSES, OLD_DIM, DIM = 40, 5, 6, 9


def random(*shape, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)


@pytest.fixture
def old():
    return random(ROWS, OLD_DIM)


@pytest.fixture
def labels():
    return torch.arange(ROWS) % CLASSES


def by_definition(embeddings, labels, old, old_labels, scale):
    """One loss per row, in float64, from the whole matrix of logits; 0 without positives."""
    part = F.normalize(embeddings.double()[:, : old.shape[1]], dim=1)
    logits = scale * part @ F.normalize(old.double(), dim=1).T
    positive = labels[:, None] == old_labels
    inside = logits.masked_fill(~positive, -torch.inf).logsumexp(1) - positive.sum(1).log()
    return torch.where(positive.any(1), logits.logsumexp(1) - inside, 0.0)


def test_old_features_of_a_call_by_definition(old, labels):
    x = random(7, DIM, seed=1)
    y = torch.tensor([0, 1, 2, 3, 4, 0, 99])  # 99: a class without old features
    loss = OldFeaturesLoss(scale=8.0)(x, y, ref_emb=old, ref_labels=labels)
    expected = by_definition(x, y, old, labels, scale=8.0)
    assert expected[-1] == 0
    assert expected[0] > 0
    torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-5, atol=1e-6)


def test_labels_may_be_any_integers(old, labels):
    x, y = random(5, DIM, seed=1), torch.tensor([0, 1, 2, 3, 4])
    far = torch.tensor([-7, 10**12, 3, 0, 5])
    got = OldFeaturesLoss()(x, far[y], ref_emb=old, ref_labels=far[labels])
    torch.testing.assert_close(got, OldFeaturesLoss()(x, y, ref_emb=old, ref_labels=labels))


def test_equal_to_our_own_loss_with_its_gradient(old, labels):
    x = random(ROWS, DIM, seed=1).requires_grad_()
    z = x.detach().clone().requires_grad_()
    loss = OldFeaturesLoss(old, labels)(x, labels)
    loss.backward()
    ours = InstanceCompatLoss(old, labels)(z, labels)
    ours.backward()
    torch.testing.assert_close(loss, ours)
    torch.testing.assert_close(x.grad, z.grad)
    direct = fcl_ext.compat_supcon(x[:, :OLD_DIM], labels, old, labels)
    torch.testing.assert_close(loss, direct)


def test_old_features_of_a_call_are_frozen(old, labels):
    x, other = random(4, DIM, seed=1).requires_grad_(), old.clone().requires_grad_()
    OldFeaturesLoss()(x, labels[:4], ref_emb=other, ref_labels=labels).backward()
    assert other.grad is None
    assert x.grad.abs().sum() > 0


def test_reducers_see_one_loss_per_embedding(old, labels):
    from pytorch_metric_learning.reducers import AvgNonZeroReducer, SumReducer

    x = random(6, DIM, seed=1)
    y = torch.tensor([0, 1, 2, 3, 98, 99])
    each = by_definition(x, y, old, labels, scale=10.0).float()
    summed = OldFeaturesLoss(old, labels, reducer=SumReducer())(x, y)
    torch.testing.assert_close(summed, each.sum())
    non_zero = OldFeaturesLoss(old, labels, reducer=AvgNonZeroReducer())(x, y)
    torch.testing.assert_close(non_zero, each[:4].mean())


def test_a_miner_weighs_by_how_often_a_row_is_an_anchor(old, labels):
    from pytorch_metric_learning.reducers import SumReducer

    x, y = random(4, DIM, seed=1), torch.tensor([0, 1, 2, 3])
    loss = OldFeaturesLoss(old, labels, reducer=SumReducer())
    each = by_definition(x, y, old, labels, scale=10.0).float()
    # Anchors 0, 0 and 2; the other indices are rows of the old features.
    triplets = (torch.tensor([0, 0, 2]), torch.tensor([5, 10, 7]), torch.tensor([1, 2, 39]))
    torch.testing.assert_close(loss(x, y, triplets), each[0] + each[2] / 2)


def test_cross_batch_memory_of_old_features(old, labels):
    """The memory holds old features of the last batches; embeddings never enter it."""
    memory = OldFeaturesMemory(OldFeaturesLoss(), embedding_size=OLD_DIM, memory_size=24)
    for step in range(5):
        rows = torch.arange(8 * step, 8 * step + 8)
        x = random(8, OLD_DIM, seed=step + 1)
        got = memory(
            torch.cat([x, old[rows]]),
            labels[rows].repeat(2),
            enqueue_mask=torch.arange(16) >= 8,
        )
        kept = torch.arange(max(0, 8 * step - 16), 8 * step + 8)
        expected = OldFeaturesLoss()(x, labels[rows], ref_emb=old[kept], ref_labels=labels[kept])
        torch.testing.assert_close(got, expected)


def test_several_processes_are_one():
    """`DistributedLossWrapper`, old features given with the call, or held."""
    assert "as one process" in torchrun(2, TESTS / "distributed_metric_learning.py").stdout


# The trainer shows a loss that requires gradients as a number.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
def test_in_a_trainer_of_the_library(old, labels):
    from pytorch_metric_learning.losses import MultipleLosses, NTXentLoss
    from pytorch_metric_learning.trainers import MetricLossOnly

    torch.manual_seed(0)
    inputs = old @ random(OLD_DIM, 12, seed=3)
    trunk = torch.nn.Linear(12, DIM)
    compat = OldFeaturesLoss(old, labels)
    head = TermLoss(PseudoClassifierLoss(torch.stack([old[labels == c].mean(0) for c in range(5)])))
    with torch.no_grad():
        before = float(compat(trunk(inputs), labels)), float(head(trunk(inputs), labels))
    MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.Adam(trunk.parameters(), lr=1e-2)},
        batch_size=20,
        loss_funcs={"metric_loss": MultipleLosses([NTXentLoss(), compat, head])},
        dataset=torch.utils.data.TensorDataset(inputs, labels),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
    ).train(num_epochs=100)
    with torch.no_grad():
        after = float(compat(trunk(inputs), labels)), float(head(trunk(inputs), labels))
    assert after[0] < 0.8 * before[0]
    assert after[1] < 0.8 * before[1]


def test_a_term_is_the_loss_it_holds(old, labels):
    x, y = random(4, DIM, seed=1), labels[:4]
    module = PseudoClassifierLoss(old[:CLASSES])
    assert TermLoss(module)(x, y) == module(x, y)


def test_old_features_are_not_in_the_state(old, labels):
    loss = OldFeaturesLoss(old, labels)
    assert not loss.state_dict()
    assert {"features", "classes", "crow_indices", "col_indices"} <= dict(
        loss.named_buffers()
    ).keys()
    assert "num_features=40, scale=10.0" in repr(loss)


def test_wrong_use_is_told_in_one_line(old, labels):
    from pytorch_metric_learning.distances import LpDistance

    x = random(4, DIM, seed=1)
    with pytest.raises(ValueError, match="features=None, ref_emb=None, ref_labels=None"):
        OldFeaturesLoss()(x, labels[:4])
    with pytest.raises(ValueError, match="features=None, ref_emb=given, ref_labels=None"):
        OldFeaturesLoss()(x, labels[:4], ref_emb=old)
    with pytest.raises(ValueError, match="features=given, ref_emb=given, ref_labels=given"):
        OldFeaturesLoss(old, labels)(x, labels[:4], ref_emb=old, ref_labels=labels)
    with pytest.raises(ValueError, match="features, labels: expected both or neither"):
        OldFeaturesLoss(old)
    with pytest.raises(ValueError, match=r"one per old feature \(40\) .* got \[39\]"):
        OldFeaturesLoss(old, labels[:-1])
    with pytest.raises(ValueError, match="at least the 6 dims of the old features, got 5"):
        OldFeaturesLoss(old, labels)(x[:, :5], labels[:4])
    with pytest.raises(AssertionError, match="CosineSimilarity"):
        OldFeaturesLoss(distance=LpDistance())
    for module in (
        L2CompatLoss(old),
        DistillCompatLoss(old[:CLASSES], old),
        PseudoClassifierLoss(old[:CLASSES], soft_targets=old),
        RegressionAlleviatingLoss(old),
    ):
        with pytest.raises(ValueError, match="needs the numbers of training rows"):
            TermLoss(module)
    term = TermLoss(PseudoClassifierLoss(old[:CLASSES]))
    with pytest.raises(ValueError, match="ref_emb is not supported"):
        term(x, labels[:4], ref_emb=x.clone(), ref_labels=labels[:4])
    with pytest.raises(ValueError, match="labels are required"):
        term(x)
