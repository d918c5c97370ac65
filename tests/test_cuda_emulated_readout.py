# SPDX-License-Identifier: Apache-2.0
"""softmax_readout's CUDA kernels on the host, by every path (see test_cuda_emulation.py).

The path for Hopper alone has tests of its own (test_cuda_emulated_sm90.py).
"""

from __future__ import annotations

import pytest
import readout_checks as checks
import test_softmax_readout
import torch


@pytest.fixture(params=[c for c in checks.CASES if c[0] != "sm90"], ids=checks.case_name)
def case(request, monkeypatch):
    monkeypatch.setenv("FCL_CUDA_PATH", request.param[0])
    return request.param


@pytest.fixture(params=["ascending", "descending"])
def ops(request, emulation):
    """Threads run in ascending or descending order between barriers."""
    emulation.emulation_reverse(int(request.param == "descending"))
    return torch.ops.fcl_emulated


# Shapes of the operator's own tests that have more in them than blocks to wait for, and others that
# reach several tiles, splits, flushes and panels of columns.
READOUTS = [
    *test_softmax_readout.SAMPLES[:3],
    (70, 17, 401, 300, 20.0),
    (257, 16, 40, 16, 10.0),
    (33, 96, 400, None, 30.0),
    (130, 136, 200, None, 12.0),
]
# More columns than a block sums: weights are stored.
WIDE = [(30, 270, 80, None, 9.0), (300, 260, 140, None, 9.0), (20, 16, 840, 260, 9.0)]


@pytest.mark.parametrize("sample", [*READOUTS, *WIDE], ids=str)
def test_readout(sample, ops, case):
    checks.check_definition(ops, sample, case)


@pytest.mark.parametrize("sample", READOUTS[2:], ids=str)
def test_readout_excludes_classes(sample, ops, case):
    checks.check_excluded_classes(ops, sample, case)


def test_readout_without_mean_and_of_one_class(ops, case):
    checks.check_without_mean_and_of_one_class(ops, case)


@pytest.mark.parametrize("through_mean", [False, True])
@pytest.mark.parametrize("sample", [*READOUTS, *WIDE, (0, 3, 4, 2, 1.0)], ids=str)
def test_readout_backward(sample, through_mean, ops, case):
    checks.check_backward(ops, sample, case, through_mean)


@pytest.mark.parametrize("value_dim", [None, 20])
def test_unit_prototypes(value_dim, ops, case):
    checks.check_unit_prototypes(ops, value_dim, case)


def test_far_negative_logits(ops, case):
    checks.check_far_negative_logits(ops, case)


def test_large_and_non_finite_logits(ops, case):
    checks.check_large_and_non_finite_logits(ops, case)


def test_unaligned_rows(ops, case):
    checks.check_unaligned_rows(ops, case)


def test_unknown_and_unsupported_paths_are_errors(ops, monkeypatch):
    eye = torch.eye(3)
    arguments = (eye, eye, None, None, 1.0, True)
    monkeypatch.setenv("FCL_CUDA_PATH", "warp")
    with pytest.raises(RuntimeError, match=r"expected FCL_CUDA_PATH to be one of .*simt, got warp"):
        ops.softmax_readout(*arguments)
    monkeypatch.setenv("FCL_CUDA_PATH", "sm90")
    with pytest.raises(RuntimeError, match=r"compute capability 8\.0\) or this build has no such"):
        ops.softmax_readout(*arguments)


def test_a_path_is_the_default_once_verified(ops, emulation, monkeypatch):
    """Unasked, the plain kernels run; their bits differ from the tensor cores'."""
    x, w = torch.randn(2, 40, 33, generator=torch.Generator().manual_seed(0)).bfloat16()
    arguments = (x, w, None, None, 3.0, True)
    means = {}
    for path in ("simt", "mma"):
        monkeypatch.setenv("FCL_CUDA_PATH", path)
        means[path] = ops.softmax_readout(*arguments)[1]
    assert not torch.equal(means["simt"], means["mma"])
    monkeypatch.delenv("FCL_CUDA_PATH")
    assert torch.equal(ops.softmax_readout(*arguments)[1], means["simt"])
    assert not emulation.fcl_cuda_set_verified(b"softmax_readout", b"warp", True)
    assert emulation.fcl_cuda_set_verified(b"softmax_readout", b"mma", True)
    try:
        assert torch.equal(ops.softmax_readout(*arguments)[1], means["mma"])
    finally:
        emulation.fcl_cuda_set_verified(b"softmax_readout", b"mma", False)
    assert torch.equal(ops.softmax_readout(*arguments)[1], means["simt"])
