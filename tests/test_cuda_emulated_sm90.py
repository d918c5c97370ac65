# SPDX-License-Identifier: Apache-2.0
"""The operators by the Hopper kernels on the host: launches, scratch memory, combination of splits.

The kernels themselves are tested by test_sm90_layouts.py and test_sm90_stored.py.
"""

from __future__ import annotations

import pytest
import readout_checks as checks
import test_compat_loss
import torch

import reference
from support import error

CASES = [case for case in checks.CASES if case[0] == "sm90"]


@pytest.fixture(autouse=True, params=["late", "apart"])
def ops(request, emulation, monkeypatch):
    """Loads and products as late as they may; loads at once and some threads far behind."""
    emulation.emulation_reverse(int(request.param == "apart"))
    emulation.emulation_capability(9)
    monkeypatch.setenv("FCL_CUDA_PATH", "sm90")
    yield torch.ops.fcl_emulated
    emulation.emulation_capability(8)


@pytest.fixture(params=CASES, ids=checks.case_name)
def case(request):
    return request.param


# Rows of 16 bytes each: others take another path's kernels.
READOUTS = [(150, 64, 600, None, 20.0), (70, 264, 300, None, 9.0), (40, 512, 200, None, 9.0)]
# Weights are stored: columns and classes of several chunks, rows of several blocks.
STORED = [
    (150, 520, 900, None, 9.0),
    (300, 520, 300, None, 9.0),
    (40, 1032, 60, None, 9.0),
    (150, 24, 600, 40, 20.0),
    (20, 264, 300, 264, 9.0),
]


@pytest.mark.parametrize("sample", [*READOUTS, *STORED], ids=str)
def test_readout(sample, ops, case):
    checks.check_definition(ops, sample, case)


@pytest.mark.parametrize("sample", [READOUTS[0], *STORED[::3]], ids=str)
def test_readout_excludes_classes(sample, ops, case):
    checks.check_excluded_classes(ops, sample, case)


@pytest.mark.parametrize(("dim", "value_dim"), [(40, None), (520, None), (40, 24)])
def test_unit_prototypes(dim, value_dim, ops, case):
    checks.check_unit_prototypes(ops, value_dim, case, dim=dim)


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_that_rise_and_fall_along_the_classes(sign, ops, case):
    """From chunk to chunk references move, each split's and each panel's own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(150, 520, generator=generator) / 30
    w = torch.randn(1300, 520, generator=generator) / 30
    x[:, 0] = torch.linspace(-1, 1, 150)
    w[:, 0] = sign * torch.linspace(-1, 1, 1300)
    x, w = x.to(case[1]), w.to(case[1])
    got = ops.softmax_readout(x, w, None, None, 40.0, True)
    expected = reference.softmax_readout(x.double(), w.double(), scale=40.0)
    for mine, truth in zip(got, expected, strict=True):
        assert error(mine, truth) < checks.tolerance(*case)


BACKWARDS = [(300, 24, 200, None, 9.0), (700, 520, 40, None, 9.0), (1300, 24, 150, None, 9.0)]


@pytest.mark.parametrize("sample", BACKWARDS, ids=str)
def test_readout_backward(sample, ops, case):
    """Splits, blocks of classes, chunks of rows. What has no such kernels takes another path."""
    checks.check_backward(ops, sample, case, through_mean=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", test_compat_loss.OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(150, 40, 300), (40, 520, 300)], ids=str)
def test_compat_loss_and_gradients(shape, options, dtype, ops, monkeypatch):
    monkeypatch.setattr(test_compat_loss, "OP", ops.compat_loss.default)
    monkeypatch.setattr(test_compat_loss, "BACKWARD", ops.compat_loss_backward.default)
    test_compat_loss.test_loss_and_gradients_match_definition(shape, options, dtype, "cpu")


def test_excluded_classes_out_of_range_are_device_assertions(ops):
    x = torch.eye(8, dtype=torch.bfloat16)
    exclude = torch.tensor([0, 8, 1, 2, 3, 4, 5, 6])
    for values in (None, x.clone()):
        with pytest.raises(RuntimeError, match=r"device-side assert.*exclude is not below C"):
            ops.softmax_readout(x, x, values, exclude, 1.0, True)
