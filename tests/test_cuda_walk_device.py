# SPDX-License-Identifier: Apache-2.0
"""The walk on a GPU, by every path that the device can run.

What a path must pass before fcl_ext/cuda_verified.json names it (tools/verify_cuda_paths.py).
"""

from __future__ import annotations

import pytest
import test_cuda_emulated_walk as emulated
import torch
import walk_checks as checks

from support import error

pytestmark = pytest.mark.needs_cuda

ops = torch.ops.fcl


def _choose(path, monkeypatch):
    if path != "simt" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip(f"the path {path} does not run on this device")
    monkeypatch.setenv("FCL_CUDA_PATH", path)


@pytest.fixture(params=checks.CASES, ids=checks.case_name)
def case(request, monkeypatch):
    _choose(request.param[0], monkeypatch)
    return request.param


@pytest.fixture
def path(request, monkeypatch):
    _choose(request.param, monkeypatch)
    return request.param


every_path = pytest.mark.parametrize("path", list(checks.PATHS), indirect=True)


@pytest.mark.parametrize("index", emulated.INDICES)
@pytest.mark.parametrize("sample", emulated.SAMPLES, ids=str)
def test_samples(sample, index, case):
    checks.check_sample(ops, sample, index, case, "cuda")


@pytest.mark.parametrize("dim", [*checks.DIMS, *checks.WIDE_DIMS])
def test_dims(dim, case):
    checks.check_dims(ops, [dim], case, "cuda")


@pytest.mark.parametrize("repeat", [1, 70])
@pytest.mark.parametrize("dim", [1, 8, 24, 40, 130, 300])
@pytest.mark.parametrize("index", emulated.INDICES)
def test_hubs(index, dim, repeat, case):
    checks.check_hubs(ops, index, dim, case, "cuda", repeat)


def test_same_bits_however_rows_are_read(case):
    if case[0] == "simt":
        pytest.skip("its sums depend on the layout")
    checks.check_same_bits(ops, *case, "cuda")


@every_path
@pytest.mark.parametrize(("steps", "bf16"), [(1, 0), (1, 1), (4, 2), (5, 3), (6, 6)])
@pytest.mark.parametrize("dim", [40, 129])
def test_bf16_iterates(dim, steps, bf16, path):
    checks.check_bf16_iterates(ops, path, steps, bf16, "cuda", dim)


@every_path
def test_edge_cases(path):
    checks.check_empty(ops, path, "cuda")
    checks.check_isolated_and_repeated(ops, path, "cuda")


@pytest.mark.parametrize("path", ["gather"], indirect=True)
@pytest.mark.parametrize("dtype", checks.DTYPES)
@pytest.mark.parametrize("dim", [40, 129, 256, 1000])
def test_panels_have_the_bits_of_whole_rows(dim, dtype, path, monkeypatch):
    crow, col, values = checks.clustered(20_000, 16, size=20_000)
    features = checks.features_of(20_000, dim, dtype)
    results = []
    for cache in (10**10, 20_000 * 32 * 2):
        monkeypatch.setenv("FCL_CUDA_CACHE_BYTES", str(cache))
        results.append(checks.walk(ops, path, (crow, col, values), features, 0.9, 5, "cuda"))
    assert torch.equal(*results)


@every_path
@pytest.mark.parametrize("dim", [64, 128, 256, 768])
def test_large_graphs_every_run_the_same_and_captured(dim, path):
    """Many waves of blocks; whatever races shows as other bits."""
    crow, col, values = (t.cuda() for t in checks.clustered(200_000, 32, size=4096))
    features = checks.features_of(200_000, dim, torch.float32).cuda()
    values = values.float()
    if path == "union":
        *arrays, order = ops.walk_windows(crow.cpu(), col.cpu())
        arrays = [*(t.cuda() for t in arrays), values[order.cuda()]]

    def work():
        if path == "union":
            return ops.random_walk_union(*arrays, features, 0.9, 5, 3)
        return ops.random_walk_resume(crow, col, values, features, features, 0.9, 5, 3)

    first = work()
    for _ in range(10):
        assert torch.equal(work(), first)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, first)
    truth = torch.ops.fcl.random_walk(
        *(t.cpu() for t in (crow, col, values)), features.cpu().contiguous(), 0.9, 5
    )
    assert error(first.cpu(), truth) < 4e-3
