# SPDX-License-Identifier: Apache-2.0
"""The walk's CUDA kernels on the host, by every path (see test_cuda_emulation.py)."""

from __future__ import annotations

import pytest
import test_random_walk
import torch
import walk_checks as checks

from support import error

INDICES = [torch.int32, torch.int64]
SAMPLES = [sample for sample in test_random_walk.SAMPLES if sample[0] != 25]
GENERAL = ["gather", "union"]


@pytest.fixture(params=[c for c in checks.CASES if c[0] != "simt"], ids=checks.case_name)
def case(request, monkeypatch):
    monkeypatch.setenv("FCL_CUDA_PATH", request.param[0])
    return request.param


@pytest.fixture
def path(request, monkeypatch):
    monkeypatch.setenv("FCL_CUDA_PATH", request.param)
    return request.param


@pytest.fixture(params=["ascending", "descending"])
def ops(request, emulation):
    """Threads run in ascending or descending order between barriers."""
    emulation.emulation_reverse(int(request.param == "descending"))
    return torch.ops.fcl_emulated


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_samples(sample, index, case, ops):
    checks.check_sample(ops, sample, index, case)


def test_dims(case, ops):
    checks.check_dims(ops, checks.DIMS, case)


@pytest.mark.parametrize("dim", checks.WIDE_DIMS)
def test_wide_dims(dim, case, ops):
    checks.check_dims(ops, [dim], case)


@pytest.mark.parametrize("dim", [1, 8, 24, 40, 130, 300])
@pytest.mark.parametrize("index", INDICES)
def test_hubs(index, dim, case, ops):
    checks.check_hubs(ops, index, dim, case)


def test_same_bits_however_rows_are_read(case, ops):
    checks.check_same_bits(ops, *case)


@pytest.mark.parametrize("path", ["simt", *GENERAL], indirect=True)
@pytest.mark.parametrize(("steps", "bf16"), [(1, 0), (1, 1), (4, 2), (5, 3), (6, 6)])
def test_bf16_iterates(steps, bf16, path, ops):
    checks.check_bf16_iterates(ops, path, steps, bf16)


@pytest.mark.parametrize("dim", [1, 7, 8, 40, 100, 270])
def test_resumed_walks_have_the_bits_of_whole_ones(dim, ops, monkeypatch):
    """From a state of another dtype, and step by step."""
    monkeypatch.setenv("FCL_CUDA_PATH", "gather")
    crow, col, values = checks.graph_of_degrees(checks.HUBS, torch.int32)
    features = checks.features_of(len(checks.HUBS), dim, torch.float32)
    whole = ops.random_walk(crow, col, values.float(), features, 0.9, 5)
    state = features
    for steps in (2, 0, 3):
        state = ops.random_walk_resume(crow, col, values.float(), state, features, 0.9, steps, 0)
    assert torch.equal(state, whole)
    half = features.bfloat16()
    got = ops.random_walk_resume(crow, col, values.float(), half, features, 0.9, 2, 0)
    expected = ops.random_walk_resume(crow, col, values.float(), half.float(), features, 0.9, 2, 0)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("path", ["gather"], indirect=True)
@pytest.mark.parametrize("dtype", checks.DTYPES)
@pytest.mark.parametrize("dim", [40, 70, 129, 256])
def test_panels_have_the_bits_of_whole_rows(dim, dtype, path, ops, emulation, monkeypatch):
    graph = checks.graph_of_degrees(checks.HUBS, torch.int32)
    features = checks.features_of(len(checks.HUBS), dim, dtype)
    bf16 = [None] if dtype != torch.float32 else [None, 3]
    for num_bf16_steps in bf16:
        results, launches = [], []
        for cache in (10**9, 800 * (2 if dtype == torch.float64 else 1)):
            monkeypatch.setenv("FCL_CUDA_CACHE_BYTES", str(cache))
            before = emulation.emulation_launches()
            results.append(
                checks.walk(ops, path, graph, features, 0.9, 4, num_bf16_steps=num_bf16_steps)
            )
            launches.append(emulation.emulation_launches() - before)
        assert torch.equal(*results)
        # One launch checks the graph. Panels have at most 8 columns, 16 of bfloat16.
        assert launches[0] == 1 + 4
        assert launches[1] >= 1 + 4 * (dim // 16)


@pytest.mark.parametrize("path", GENERAL, indirect=True)
def test_empty_graphs(path, ops):
    checks.check_empty(ops, path)


@pytest.mark.parametrize("path", ["simt", *GENERAL], indirect=True)
def test_isolated_and_repeated_edges(path, ops):
    checks.check_isolated_and_repeated(ops, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [16, 72, 130])
def test_union_is_gather_to_rounding(dim, dtype, ops, monkeypatch):
    """Many slots of many rows: what tensor cores cut off must not add up."""
    graph = checks.clustered(200, 24)
    features = checks.features_of(200, dim, dtype).abs()
    truth = checks.exact(graph, features, 0.95, 6)
    errors = {}
    for path in GENERAL:
        monkeypatch.setenv("FCL_CUDA_PATH", path)
        got = checks.walk(ops, path, graph, features, 0.95, 6)
        errors[path] = error(got, truth)
    limit = 5e-7 if dtype == torch.float32 else 4e-3
    assert errors["gather"] < limit
    assert errors["union"] < limit


def test_gather_walks_backward_and_to_the_limit(ops, monkeypatch):
    """The operators around the walk, on this path."""
    monkeypatch.setenv("FCL_CUDA_PATH", "gather")
    crow, col, values = checks.graph_of_degrees(checks.HUBS, torch.int32)
    features = checks.features_of(len(checks.HUBS), 21, torch.float64)
    arguments = (crow, col, values, features)
    for mine, truth in zip(
        ops.random_walk_backward(*arguments, features.flip(0), 0.8, 5, True, True),
        torch.ops.fcl.random_walk_backward(*arguments, features.flip(0), 0.8, 5, True, True),
        strict=True,
    ):
        torch.testing.assert_close(mine, truth, rtol=1e-11, atol=1e-13)
    state, steps = ops.random_walk_tol(*arguments, 0.8, 1e-6, 200, "max")
    expected, expected_steps = torch.ops.fcl.random_walk_tol(*arguments, 0.8, 1e-6, 200, "max")
    torch.testing.assert_close(state, expected, rtol=1e-12, atol=1e-14)
    assert steps == expected_steps


def test_a_path_is_the_default_once_verified(ops, emulation, monkeypatch):
    """Unasked, the plain kernels run; they sum in another order."""
    graph = checks.graph_of_degrees(checks.HUBS, torch.int32)
    features = checks.features_of(len(checks.HUBS), 33, torch.float32)
    results = {}
    for path in ("simt", "gather"):
        monkeypatch.setenv("FCL_CUDA_PATH", path)
        results[path] = checks.walk(ops, path, graph, features, 0.9, 3)
    assert not torch.equal(results["simt"], results["gather"])
    monkeypatch.delenv("FCL_CUDA_PATH")
    assert torch.equal(checks.walk(ops, "simt", graph, features, 0.9, 3), results["simt"])
    assert not emulation.fcl_cuda_set_verified(b"random_walk", b"union", True)
    assert emulation.fcl_cuda_set_verified(b"random_walk_union", b"union", False)
    assert emulation.fcl_cuda_set_verified(b"random_walk", b"gather", True)
    try:
        assert torch.equal(checks.walk(ops, "", graph, features, 0.9, 3), results["gather"])
    finally:
        emulation.fcl_cuda_set_verified(b"random_walk", b"gather", False)


def test_bad_windows_are_device_assertions(ops):
    crow, col, values = checks.clustered(40, 6)
    *arrays, order = torch.ops.fcl.walk_windows(crow, col)
    features = torch.ones(40, 3)

    def broken(which, at, value):
        changed = [t.clone() for t in (*arrays, values.float()[order])]
        changed[which][at] = value
        return ops.random_walk_union(*changed, features, 0.9, 1)

    with pytest.raises(RuntimeError, match=r"device-side assert.*not a multiple of 16"):
        broken(0, 1, 5)
    with pytest.raises(RuntimeError, match=r"device-side assert.*does not run from 0 to S"):
        broken(0, -1, 16 * 1000)
    with pytest.raises(RuntimeError, match=r"device-side assert.*window_col leaves"):
        broken(1, 3, 40)
    with pytest.raises(RuntimeError, match=r"device-side assert.*chunk_crow does not run"):
        broken(2, 1, 10_000)
