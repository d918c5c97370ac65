# SPDX-License-Identifier: Apache-2.0
"""Checks of the walk's CUDA kernels, path by path: on the host by emulation, on a GPU.

``ops`` is where the operators are (``torch.ops.fcl`` or the emulated ones), ``device`` where their
tensors live; truth is computed on the CPU in float64.
"""

from __future__ import annotations

import torch
from graph_samples import random_csr, row_stochastic

import reference
from support import DTYPES, error

# Every path with the dtypes of features it has kernels for.
CASES = [
    *(("simt", dtype) for dtype in DTYPES),
    *(("gather", dtype) for dtype in DTYPES),
    *(("union", dtype) for dtype in DTYPES[1:]),
]
PATHS = {"simt": ("random_walk",), "gather": ("random_walk",), "union": ("random_walk_union",)}
# Around every width of vectors, groups of lanes, warps and panels.
DIMS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 31, 32, 33, 40, 63, 64, 65, 96, 127, 128, 129, 130]
WIDE_DIMS = [192, 255, 256, 257, 260, 500, 511, 512, 513, 520, 1024, 1100]
# Degrees of rows: none, one, around groups of four, and hubs of one and several segments where a
# block shares them (more than 40 edges in the emulation, 2048 on a device).
HUBS = [0, 200, 1, 0, 41, 40, 3, 57, 4, 5, 104, 8, 9, 0, 33, 16, 17, 0, 700]


def case_name(case):
    return f"{case[0]}-{str(case[1])[6:]}"


def accumulated(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def tolerance(dtype):
    return 1e-13 if dtype == torch.float64 else 1e-6


def graph_of_degrees(degrees, index=torch.int64, seed=0, columns=None):
    """A graph with rows that sum to 1, some of their columns repeated."""
    generator = torch.Generator().manual_seed(seed)
    nodes = len(degrees)
    crow = torch.tensor([0, *degrees]).cumsum(0)
    most = nodes if columns is None else columns
    col = torch.randint(0, most, (int(crow[-1]),), generator=generator).to(index)
    row = torch.repeat_interleave(torch.arange(nodes), crow.diff())
    weights = torch.rand(len(col), dtype=torch.float64, generator=generator) + 0.1
    sums = torch.zeros(nodes, dtype=torch.float64).index_add(0, row, weights)
    return crow, col, weights / sums[row]


def clustered(nodes, degree, size=32, seed=0, index=torch.int32):
    """A graph whose neighbours stay within groups of `size` rows: they share most columns."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(nodes) // size * size
    col = (group[:, None] + torch.randint(0, size, (nodes, degree), generator=generator)) % nodes
    crow = torch.arange(0, nodes * degree + 1, degree)
    values = torch.rand(nodes, degree, dtype=torch.float64, generator=generator) + 0.1
    return crow, col.reshape(-1).to(index), (values / values.sum(1, keepdim=True)).reshape(-1)


def features_of(nodes, dim, dtype, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(nodes, dim, dtype=torch.float64, generator=generator).to(dtype)


def walk(ops, path, graph, features, damping, num_steps, device="cpu", num_bf16_steps=None):
    """The walk on a path; with num_bf16_steps as random_walk_resume."""
    crow, col, values = graph
    values = values.to(accumulated(features.dtype))
    if path == "union":
        *arrays, order = torch.ops.fcl.walk_windows(crow, col)
        arrays = [t.to(device) for t in (*arrays, values[order])]
        bf16 = num_bf16_steps or 0
        return ops.random_walk_union(*arrays, features.to(device), damping, num_steps, bf16).cpu()
    tensors = [t.to(device) for t in (crow, col, values)]
    features = features.to(device)
    if num_bf16_steps is not None:
        return ops.random_walk_resume(
            *tensors, features, features, damping, num_steps, num_bf16_steps
        ).cpu()
    return ops.random_walk(*tensors, features, damping, num_steps).cpu()


def exact(graph, features, damping, num_steps, dtype=torch.float32):
    """By definition in float64, of the weights as they are rounded to the accumulation type."""
    crow, col, values = graph
    dense = reference.csr_to_dense(crow, col, values.to(accumulated(dtype)).double(), len(crow) - 1)
    return reference.random_walk(dense, features.double(), damping=damping, num_steps=num_steps)


def check_definition(ops, graph, dim, case, num_steps=3, device="cpu"):
    path, dtype = case
    features = features_of(len(graph[0]) - 1, dim, dtype)
    got = walk(ops, path, graph, features, 0.85, num_steps, device)
    expected = exact(graph, features, 0.85, num_steps, dtype)
    assert got.dtype == dtype
    assert got.shape == features.shape
    assert error(got, expected) <= tolerance(dtype) + error(expected.to(dtype), expected)


def check_sample(ops, sample, index, case, device="cpu"):
    """Random graphs with padding, repeated edges, empty rows and no rows at all."""
    nodes, edges, dim, padding, steps = sample
    graph = row_stochastic(nodes, edges, padding=padding, index=index)
    check_definition(ops, graph, dim, case, steps, device)


def check_dims(ops, dims, case, device="cpu"):
    graph = row_stochastic(37, 260, padding=0.1, index=torch.int32)
    for dim in dims:
        check_definition(ops, graph, dim, case, 2, device)


def check_hubs(ops, index, dim, case, device="cpu", repeat=1):
    """Rows that a block shares; on a device `repeat` makes them long enough."""
    graph = graph_of_degrees([repeat * degree for degree in HUBS], index)
    check_definition(ops, graph, dim, case, 3, device)


def check_same_bits(ops, path, dtype, device="cpu"):
    """Unaligned rows, edges and one more column: other loads, the same sums."""
    crow, col, values = graph_of_degrees(HUBS, torch.int32)
    features = features_of(len(HUBS), 48, dtype)
    expected = walk(ops, path, (crow, col, values), features, 0.9, 3, device)
    shifted = torch.zeros(features.numel() + 1, dtype=dtype)[1:].view_as(features).copy_(features)
    # Emulated tensors stay where they are; on a device the copy would be aligned again.
    if device != "cpu":
        buffer = torch.zeros(features.numel() + 1, dtype=dtype, device=device)
        shifted = buffer[1:].view_as(features).copy_(features)
    assert torch.equal(walk(ops, path, (crow, col, values), shifted, 0.9, 3, device), expected)
    wide = torch.cat([features, features[:, :1]], 1)
    assert torch.equal(walk(ops, path, (crow, col, values), wide, 0.9, 3, device)[:, :48], expected)
    if path != "union":
        wide_index = (crow, col.long(), values)
        assert torch.equal(walk(ops, path, wide_index, features, 0.9, 3, device), expected)


def check_bf16_iterates(ops, path, num_steps, num_bf16_steps, device="cpu", dim=40):
    """Iterates are rounded as on the CPU: each step's sums differ in float32's last digits only."""
    graph = row_stochastic(60, 500, padding=0.1, index=torch.int32)
    features = features_of(60, dim, torch.float32)
    got = walk(ops, path, graph, features, 0.9, num_steps, device, num_bf16_steps)
    expected = walk(
        torch.ops.fcl, "simt", graph, features, 0.9, num_steps, num_bf16_steps=num_bf16_steps
    )
    # `union` ends in the dtype of the features.
    assert got.dtype == (torch.float32 if path == "union" else expected.dtype)
    got = got.to(expected.dtype)
    truth = exact(graph, features, 0.9, num_steps)
    assert error(got, truth) < (4e-3 if num_bf16_steps else 1e-6)
    # A few sums fall on the other side of a rounding boundary; a walk that did not round, or
    # rounded elsewhere, would be as far away as one in float32.
    unrounded = error(truth.to(expected.dtype), expected.double())
    assert error(got, expected) < (0.3 * unrounded if num_bf16_steps else 1e-6)


def check_empty(ops, path, device="cpu"):
    """No nodes, no edges, no columns, all isolated."""
    for nodes, dim in [(0, 3), (1, 4), (5, 0), (40, 9)]:
        graph = (
            torch.zeros(nodes + 1, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int32),
            torch.zeros(0, dtype=torch.float64),
        )
        features = features_of(nodes, dim, torch.float32)
        got = walk(ops, path, graph, features, 0.75, 3, device)
        assert got.shape == features.shape
        torch.testing.assert_close(got, 0.25 * features)
        assert torch.equal(walk(ops, path, graph, features, 0.75, 0, device), features)


def check_isolated_and_repeated(ops, path, device="cpu"):
    """Numbers that come out exact: an edge three times, padding beside it, a row without edges."""
    crow = torch.tensor([0, 4, 4, 5])
    col = torch.tensor([1, 1, -1, 1, 2], dtype=torch.int32)
    values = torch.tensor([0.25, 0.25, torch.nan, 0.5, 1.0], dtype=torch.float64)
    features = torch.tensor([[1.0], [3.0], [4.0]])
    got = walk(ops, path, (crow, col, values), features, 0.75, 1, device)
    assert got.tolist() == [[0.75 * 3 + 0.25], [0.25 * 3], [4.0]]


def random_graph(nodes, edges, index=torch.int32, padding=0.0):
    crow, col = random_csr(nodes, nodes, edges, index=index, padding=padding)
    return crow, col, torch.ones(edges, dtype=torch.float64) / max(edges, 1)
