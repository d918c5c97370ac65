# SPDX-License-Identifier: Apache-2.0
"""sparse_readout against its definition: sets of rows per label, hard or weighted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fcl_ext
import reference
from support import DEVICES, DTYPES, error, error_budget

OP = torch.ops.fcl.sparse_readout.default

# (queries, dim, rows, labels, scale)
SAMPLES = [(1, 1, 1, 1, 1.0), (6, 7, 20, 5, 3.0), (40, 33, 300, 7, 20.0), (9, 64, 11, 30, 64.0)]


def _inputs(sample, dtype, device, *, weighted=True):
    queries, dim, rows, labels, scale = sample
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(queries, dim, dtype=torch.float64, generator=generator), dim=1)
    bank = F.normalize(torch.randn(rows, dim, dtype=torch.float64, generator=generator), dim=1)
    # Overlapping sets, one of them empty where there are several.
    member = torch.rand(labels, rows, generator=generator) < 0.4
    member[:, 0] = True
    if labels > 1:
        member[1] = False
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), member.sum(1).cumsum(0)])
    col = member.nonzero()[:, 1]
    y = torch.arange(queries) % (labels + 1) - 1  # includes -1: no set
    if queries == 1:
        y = torch.zeros(1, dtype=torch.int64)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    log_weights = torch.randn(len(col), dtype=torch.float64, generator=generator).to(accumulate)
    return (
        x.to(dtype).to(device),
        bank.to(dtype).to(device),
        y.to(device),
        crow.to(device),
        col.to(device),
        log_weights.to(device) if weighted else None,
        scale,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_matches_definition(sample, dtype, weighted, device):
    x, bank, y, crow, col, log_weights, scale = _inputs(sample, dtype, device, weighted=weighted)
    lse, mean = OP(x, bank, y, crow, col, log_weights, scale, True)
    expected = reference.sparse_readout(
        x.double(), bank.double(), y, crow, col, log_weights, scale=scale
    )
    naive = reference.sparse_readout(x, bank, y, crow, col, log_weights, scale=scale)
    finite = torch.isfinite(expected[0])
    assert torch.equal(torch.isneginf(lse), ~finite)
    assert error(lse[finite], expected[0][finite]) <= error_budget(
        naive[0][finite], expected[0][finite], dtype
    )
    assert error(mean, expected[1]) <= error_budget(naive[1], expected[1], dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_gradients_match_definition(sample, weighted, device):
    x, bank, y, crow, col, log_weights, scale = _inputs(
        sample, torch.float64, device, weighted=weighted
    )

    # Dense autograd gives NaN gradients through a -inf row, so the reference sees only the others.
    counts = crow.diff()
    has_set = (y >= 0) & (counts[y.clamp(min=0)] > 0)
    weights = torch.linspace(-1, 1, len(x), dtype=torch.float64, device=device)

    def gradients(function, keep):
        leaves = [x.clone().requires_grad_(), bank.clone().requires_grad_()]
        lse = function(leaves[0][keep], leaves[1], y[keep])
        total = torch.where(torch.isfinite(lse), lse, 0.0) @ weights[keep]
        return torch.autograd.grad(total, leaves)

    ours = gradients(
        lambda a, b, labels: OP(a, b, labels, crow, col, log_weights, scale, True)[0], slice(None)
    )
    expected = gradients(
        lambda a, b, labels: reference.sparse_readout(
            a, b, labels, crow, col, log_weights, scale=scale
        )[0],
        has_set,
    )
    for mine, truth in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck_opcheck_and_unsupported_gradients(device):
    x, bank, y, crow, col, log_weights, _ = _inputs((4, 3, 6, 2, 1.0), torch.float64, device)
    y = y.clamp(min=0) * 0
    x.requires_grad_()
    bank.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: OP(a, b, y, crow, col, log_weights, 2.0, True)[0], (x, bank)
    )
    torch.library.opcheck(
        OP,
        (x, bank, y, crow, col, log_weights, 2.0, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    with pytest.raises(RuntimeError, match="mean, has no gradient"):
        OP(x, bank, y, crow, col, log_weights, 2.0, True)[1].sum().backward()
    lse = OP(x, bank, y, crow, col, log_weights, 2.0, True)[0]
    (grad,) = torch.autograd.grad(lse.sum(), bank, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match="log_weights have no gradient"):
        OP(x, bank, y, crow, col, log_weights.clone().requires_grad_(), 2.0, True)[
            0
        ].sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_empty_queries_and_bank_rows_outside_every_set(device):
    x, bank, _, _, _, _, _ = _inputs((3, 5, 8, 2, 1.0), torch.float32, device)
    crow = torch.tensor([0, 2], device=device)
    col = torch.tensor([1, 4], device=device)
    bank.requires_grad_()
    lse, _ = fcl_ext.sparse_readout(
        x, bank, torch.zeros(3, dtype=torch.int64, device=device), crow, col, scale=1.0
    )
    lse.sum().backward()
    touched = bank.grad.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [1, 4]
    lse, mean = fcl_ext.sparse_readout(
        x[:0], bank, torch.zeros(0, dtype=torch.int64, device=device), crow, col, scale=1.0
    )
    assert lse.shape == (0,)
    assert mean.shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 9])}, "labels below 2, got 9 in row 1"),
        ({"crow_indices": torch.tensor([0, 3, 1])}, r"crow_indices from 0 to 3, got 0 to 1"),
        ({"crow_indices": torch.tensor([0, 4, 3])}, "non-decreasing, got 4 then 3 at 1"),
        ({"col_indices": torch.tensor([0, 1, 7])}, r"col_indices in \[0, 4\), got 7 at edge 2"),
        ({"log_weights": torch.zeros(2)}, r"expected log_weights of shape \[E\] = \[3\]"),
        ({"rows": torch.zeros(4, 9)}, r"expected rows of shape \[R, D\]"),
        ({"scale": -1.0}, "expected scale > 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "embeddings": torch.zeros(2, 3),
        "rows": torch.zeros(4, 3),
        "labels": torch.tensor([0, 1]),
        "crow_indices": torch.tensor([0, 2, 3]),
        "col_indices": torch.tensor([0, 1, 3]),
        "scale": 1.0,
    }
    with pytest.raises(RuntimeError, match=message):
        fcl_ext.sparse_readout(**{**arguments, **change})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
def test_normalize_is_that_of_the_bank(weighted, device):
    sample = (40, 33, 300, 7, 20.0)
    x, bank, y, crow, col, log_weights, scale = _inputs(
        sample, torch.float64, device, weighted=weighted
    )
    bank = bank * torch.linspace(0.1, 3.0, len(bank), device=device, dtype=bank.dtype)[:, None]
    results = []
    for normalize in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, bank)]
        rows = leaves[1] if normalize else F.normalize(leaves[1], dim=1)
        lse, mean = OP(leaves[0], rows, y, crow, col, log_weights, scale, True, normalize)
        lse[torch.isfinite(lse)].sum().backward()
        results.append((lse, mean, *(leaf.grad for leaf in leaves)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "16"}, "sparse_readout: expected scale to be a number, got '16'"),
        ({"labels": [0]}, "sparse_readout: expected labels to be a tensor, got list"),
        ({"log_weights": [0.0]}, "expected log_weights to be a tensor, got list"),
    ],
)
def test_arguments_of_another_type_are_named_in_one_line(changes, message):
    given = {
        **{"embeddings": torch.eye(3)[:1], "rows": torch.eye(3), "labels": torch.tensor([0])},
        **{"crow_indices": torch.tensor([0, 1]), "col_indices": torch.tensor([2]), "scale": 1.0},
    }
    with pytest.raises(TypeError, match=message) as caught:
        fcl_ext.sparse_readout(**{**given, **changes})
    assert "\n" not in str(caught.value)
