# SPDX-License-Identifier: Apache-2.0
"""softmax_readout on a GPU, by every path that the device can run.

What a path must pass before fcl_ext/cuda_verified.json names it (tools/verify_cuda_paths.py).
"""

from __future__ import annotations

import pytest
import readout_checks as checks
import test_cuda_emulated_readout as emulated
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.needs_cuda

ops = torch.ops.fcl

_RUNS_ON = {"simt": lambda _: True, "mma": lambda c: c >= (8, 0), "sm90": lambda c: c == (9, 0)}


@pytest.fixture(params=checks.CASES, ids=checks.case_name)
def case(request, monkeypatch):
    path, _ = request.param
    if not _RUNS_ON[path](torch.cuda.get_device_capability()):
        pytest.skip(f"the path {path} does not run on this device")
    monkeypatch.setenv("FCL_CUDA_PATH", path)
    return request.param


# Besides the emulation's: whole tiles, splits and flushes of the real size.
LARGE = [
    (1000, 256, 40_000, None, 30.0),
    (130, 64, 70_000, None, 64.0),
    (257, 512, 20_000, None, 30.0),
    (64, 1024, 9000, None, 30.0),
    # Several chunks, and of the first two blocks of rows, where weights are stored.
    (4300, 768, 9000, None, 30.0),
    (40, 520, 90_000, None, 30.0),
    (300, 100, 20_001, 40, 20.0),
]
READOUTS = [*emulated.READOUTS, *emulated.WIDE, *LARGE]


@pytest.mark.parametrize("sample", READOUTS, ids=str)
def test_readout(sample, case):
    checks.check_definition(ops, sample, case, "cuda")


@pytest.mark.parametrize("sample", READOUTS[2:], ids=str)
def test_excluded_classes(sample, case):
    checks.check_excluded_classes(ops, sample, case, "cuda")


def test_without_mean_and_of_one_class(case):
    checks.check_without_mean_and_of_one_class(ops, case, "cuda")


@pytest.mark.parametrize("through_mean", [False, True])
@pytest.mark.parametrize("sample", READOUTS, ids=str)
def test_backward(sample, through_mean, case):
    checks.check_backward(ops, sample, case, through_mean, "cuda")


@pytest.mark.parametrize("value_dim", [None, 20])
def test_unit_prototypes(value_dim, case):
    checks.check_unit_prototypes(ops, value_dim, case, "cuda")


def test_far_negative_logits(case):
    checks.check_far_negative_logits(ops, case, "cuda")


def test_large_and_non_finite_logits(case):
    checks.check_large_and_non_finite_logits(ops, case, "cuda")


def test_unaligned_rows(case):
    checks.check_unaligned_rows(ops, case, "cuda")


@pytest.mark.parametrize("dim", [64, 200, 256, 512, 1024])
def test_every_run_gives_the_same_bits_and_can_be_captured(dim, case):
    generator = torch.Generator("cuda").manual_seed(0)
    x = F.normalize(torch.randn(700, dim, device="cuda", generator=generator), dim=1).to(case[1])
    w = F.normalize(torch.randn(30_000, dim, device="cuda", generator=generator), dim=1).to(case[1])

    def work():
        lse, mean = ops.softmax_readout(x, w, None, None, 30.0, True)
        terms = (lse, torch.ones_like(lse), mean)
        grads = ops.softmax_readout_backward(x, w, None, None, *terms, 30.0, True, True, False)
        return lse, mean, *grads

    first = work()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, work(), strict=True))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(first, captured, strict=True))


@pytest.mark.parametrize("value_dim", [None, 300])
def test_logits_are_never_stored(value_dim, case):
    x = F.normalize(torch.randn(512, 64, device="cuda"), dim=1).to(case[1])
    w = F.normalize(torch.randn(500_000, 64, device="cuda"), dim=1).to(case[1])
    v = None if value_dim is None else torch.randn(500_000, value_dim, device="cuda").to(case[1])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ops.softmax_readout(x, w, v, None, 30.0, True)
    # They would take 512 MB or more; partial means, and weights of a chunk, take some.
    assert torch.cuda.max_memory_allocated() - before < 200 * 2**20
