# SPDX-License-Identifier: Apache-2.0
"""compat_supcon against its definition: small losses, any sets of positives, refused ones."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from loss_samples import batch

import fcl_ext
import reference
from support import DEVICES, error


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_compat_supcon(reduction, normalize, device):
    x, bank, _ = batch(30, 8, 90, torch.float64, device)
    bank_labels = (torch.arange(90, device=device) * 7) % 11
    y = torch.arange(30, device=device) % 11

    def run(function):
        leaves = [x.clone().requires_grad_(), bank.clone().requires_grad_()]
        loss = function(
            leaves[0],
            y,
            leaves[1],
            bank_labels,
            scale=4.0 if normalize else 0.5,
            normalize=normalize,
            reduction=reduction,
        )
        return loss, *torch.autograd.grad(loss.square().sum(), leaves)

    for ours, truth in zip(run(fcl_ext.compat_supcon), run(reference.compat_supcon), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-10)


def test_compat_supcon_ready_and_weighted_positives():
    x, bank, _ = batch(12, 6, 40, torch.float64, "cpu")
    bank_labels = torch.arange(40) % 5
    y = torch.arange(12) % 5
    plain = fcl_ext.compat_supcon(x, y, bank, bank_labels)
    sets = fcl_ext.PositiveSets.from_labels(bank_labels, num_labels=9)
    torch.testing.assert_close(fcl_ext.compat_supcon(x, y, bank, positives=sets), plain)
    # Uniform weights are the plain mean.
    counts = sets.crow_indices.diff()
    uniform = torch.repeat_interleave(-counts.double().log(), counts)
    weighted = fcl_ext.compat_supcon(x, y, bank, positives=sets._replace(log_weights=uniform))
    torch.testing.assert_close(weighted, plain)
    # Weights on one row of each class leave that row as the only positive.
    first = torch.full_like(uniform, -math.inf)
    first[sets.crow_indices[:-1][counts > 0]] = 0.0
    single = fcl_ext.compat_supcon(
        x, y, bank, positives=sets._replace(log_weights=first), reduction="none"
    )
    rows = sets.col_indices[sets.crow_indices[y]]
    expected = fcl_ext.compat_loss(x, bank, rows, scale=10.0, reduction="none")
    torch.testing.assert_close(single, expected)


def _nearly_right(dtype):
    """Rows beside one old feature of their class, far from all of the others."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(60, 24, dtype=torch.float64, generator=generator)
    noise = torch.randn(60, 24, dtype=torch.float64, generator=generator)
    y = torch.arange(60) % 30
    bank[30:] = bank[:30] + 0.1 * noise[30:]
    return (bank + 0.1 * noise).to(dtype), bank.to(dtype), y


@pytest.mark.parametrize("scale", [30.0, 64.0])
def test_compat_supcon_keeps_the_digits_of_small_losses(scale):
    x, bank, y = _nearly_right(torch.float32)
    got, exact = [], []
    for kind, results in ((torch.float32, got), (torch.float64, exact)):
        leaves = [x.to(kind).requires_grad_(), bank.to(kind).requires_grad_()]
        function = fcl_ext.compat_supcon if results is got else reference.compat_supcon
        losses = function(leaves[0], y, leaves[1], y, scale=scale, reduction="none")
        # What is over the logarithm of the number of positives.
        excess = losses.double() - math.log(2.0)
        results += [excess.detach(), *torch.autograd.grad(losses.sum(), leaves)]
    assert 0 < exact[0].max() < 1e-3
    for mine, truth in zip(got[1:], exact[1:], strict=True):
        assert error(mine, truth) <= 2e-5


def test_compat_supcon_of_one_positive_is_exact_however_small():
    """With one positive the loss is log(1 + e^-d): no logarithm of a count hides its digits."""
    bank = torch.eye(4)
    loss = fcl_ext.compat_supcon(bank, torch.arange(4), bank, torch.arange(4), scale=40.0)
    expected = math.log1p(3 * math.exp(-40.0))
    assert abs(loss.item() / expected - 1) < 1e-5
    everything = fcl_ext.compat_supcon(
        bank.requires_grad_(), torch.zeros(4).long(), bank, torch.zeros(4).long(), scale=3.0
    )
    assert everything.item() == pytest.approx(math.log(4.0))
    (grad,) = torch.autograd.grad(everything, bank)
    assert not grad.any()


@pytest.mark.parametrize("given", ["duplicates", "unsorted"])
def test_compat_supcon_takes_positives_in_any_order_and_number(given):
    x, bank, y = (t.double() if t.is_floating_point() else t for t in _nearly_right(torch.float32))
    sets = fcl_ext.PositiveSets.from_labels(y)
    assert sets.are_plain()
    pairs = sets.col_indices.view(30, 2)
    columns = pairs.flip(1) if given == "unsorted" else pairs[:, :1].expand(30, 2)
    other = fcl_ext.PositiveSets(sets.crow_indices, columns.flatten())
    assert not other.are_plain()
    got = fcl_ext.compat_supcon(x, y, bank, positives=other, reduction="none")
    logits = 10.0 * F.normalize(x, dim=1) @ F.normalize(bank, dim=1).T
    picked = logits.gather(1, columns[y])
    expected = torch.logsumexp(logits, 1) - torch.logsumexp(picked, 1) + math.log(2.0)
    torch.testing.assert_close(got, expected)


BAD_SETS = [
    (lambda crow, col: (crow.int(), col), "crow_indices of dtype int64"),
    (lambda crow, col: (crow, col + 1), r"col_indices in \[0, 7\), got 7 at edge 6"),
    (lambda crow, col: (crow[[0, 2, 1, 3]], col), "crow_indices to be non-decreasing"),
    (lambda crow, col: (crow + 1, col), "crow_indices from 0 to 7"),
    (lambda crow, col: (crow, col.to("meta")), "col_indices on the same device"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SETS)
def test_compat_supcon_names_what_is_wrong_with_its_sets(change, message):
    crow, col, _ = fcl_ext.PositiveSets.from_labels(torch.tensor([0, 0, 1, 1, 1, 2, 2]))
    crow, col = change(crow, col)
    x, bank = torch.eye(3, 4), torch.ones(7, 4)
    with pytest.raises(RuntimeError, match=f"sparse_readout: expected {message}"):
        fcl_ext.compat_supcon(x, torch.arange(3), bank, positives=(crow, col, None))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, -1, 2]), "expected labels >= 0, got -1 in row 1"),
        (torch.tensor([0.0, 1.0, 2.0]), "expected shape [R] and dtype int64, got [3] and"),
        (torch.zeros(3, 1, dtype=torch.int64), "got [3, 1]"),
    ],
)
def test_labels_of_features_are_checked(labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fcl_ext.PositiveSets.from_labels(labels)


def test_features_of_another_dtype_are_named():
    """Not as rows, which no argument is called."""
    y = torch.arange(3)
    message = r"features of dtype torch\.float32, as the embeddings, got torch\.float64"
    with pytest.raises(RuntimeError, match=message):
        fcl_ext.compat_supcon(torch.eye(3), y, torch.eye(3).double(), y)


@pytest.mark.parametrize("largest", [2**24, 50_000_000, 3_000_000_000, 2**62])
def test_labels_that_are_large_ids_are_refused_before_they_take_memory(largest):
    message = (
        f"feature_labels: expected numbers below 16777216 for 3 rows, as memory grows with the "
        f"largest, got {largest}; number the classes, as by "
        "numpy.unique(labels, return_inverse=True)"
    )
    labels = torch.tensor([0, largest, 1])
    with pytest.raises(ValueError, match=re.escape(message)):
        fcl_ext.PositiveSets.from_labels(labels)
    with pytest.raises(ValueError, match=re.escape(message)):
        fcl_ext.compat_supcon(torch.eye(3), torch.zeros(3).long(), torch.eye(3), labels)


def test_labels_may_have_gaps():
    labels = torch.tensor([0, 200_000, 0])
    sets = fcl_ext.PositiveSets.from_labels(labels)
    assert len(sets.crow_indices) == 200_002
    assert sets.col_indices[sets.crow_indices[200_000] :].tolist() == [1]
    # Of many rows, up to sixteen times their number.
    rows = 2**20 + 1
    labels = torch.zeros(rows, dtype=torch.int64)
    labels[5] = 16 * rows - 1
    assert len(fcl_ext.PositiveSets.from_labels(labels).crow_indices) == 16 * rows + 1
    labels[5] += 1
    with pytest.raises(ValueError, match=f"expected numbers below {16 * rows} for {rows} rows"):
        fcl_ext.PositiveSets.from_labels(labels)
