# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on the host: the very same .cu files and bindings, threads as fibers.

A C++ compiler builds them against stand-ins for CUDA's headers (``cuda_emulation/``) and registers
them as ``torch.ops.fcl_emulated.*``. The test bodies of the operators then run on these, with
limits so small that little shapes are split and flushed. What this cannot show: races inside a
warp, memory ordering, launch limits, and speed.
"""

from __future__ import annotations

import pytest
import test_csr_transpose
import test_edge_dot
import test_knn_graph
import test_random_walk
import test_sparse_readout
import torch

from support import DTYPES, error


@pytest.fixture(autouse=True, params=["ascending", "descending"])
def operators(request, emulation, monkeypatch):
    """The test modules' operators are the emulated ones.

    Threads run in ascending or descending order between barriers: races show in one of the two.
    """
    emulation.emulation_reverse(int(request.param == "descending"))
    operators = torch.ops.fcl_emulated
    monkeypatch.setattr(test_sparse_readout, "OP", operators.sparse_readout.default)
    monkeypatch.setattr(test_csr_transpose, "OP", operators.csr_transpose.default)
    monkeypatch.setattr(test_edge_dot, "OP", operators.edge_dot.default)
    monkeypatch.setattr(test_knn_graph, "OP", operators.knn_graph.default)
    monkeypatch.setattr(test_random_walk, "OP", operators.random_walk.default)
    monkeypatch.setattr(test_random_walk, "BACKWARD", operators.random_walk_backward.default)
    monkeypatch.setattr(test_random_walk, "TOL", operators.random_walk_tol.default)
    return operators


# Shapes of the operators' own tests that have more in them than blocks to wait for, and others that
# reach several tiles, splits, flushes and panels of columns.
SPARSE_READOUTS = [*test_sparse_readout.SAMPLES, (12, 600, 400, 3, 5.0)]
NEIGHBOURS = [(2, 1, 1), (17, 16, 16), (129, 33, 7), (70, 20, 60)]
WALKS = [sample for sample in test_random_walk.SAMPLES if sample[0] != 25]
INDICES = [torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sample", SPARSE_READOUTS, ids=str)
def test_sparse(sample, weighted, dtype):
    test_sparse_readout.test_matches_definition(sample, dtype, weighted, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sample", SPARSE_READOUTS, ids=str)
def test_sparse_backward_rows(sample, weighted, dtype, operators):
    x, bank, y, crow, col, log_weights, scale = test_sparse_readout._inputs(
        sample, dtype, "cpu", weighted=weighted
    )
    row_crow, row_labels, order = torch.ops.fcl.csr_transpose(crow, col, len(bank))
    query_order = torch.argsort(y, stable=True)[(y < 0).sum() :]
    query_crow = torch.bincount(y[y >= 0], minlength=len(crow) - 1).cumsum(0)
    query_crow = torch.cat([torch.zeros(1, dtype=torch.int64), query_crow])
    coefficient = torch.linspace(-1, 1, len(x), dtype=torch.float64)
    exact_weights = None if log_weights is None else log_weights.double()
    lse, _ = torch.ops.fcl.sparse_readout(
        x.double(), bank.double(), y, crow, col, exact_weights, scale, False
    )
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32

    def backward(namespace, x, bank, dtype):
        weights = None if log_weights is None else log_weights[order].to(dtype)
        graph = (row_crow, row_labels, weights, query_crow, query_order)
        return namespace.sparse_readout_backward_rows(
            x, bank, lse.to(dtype), coefficient.to(dtype), *graph, scale
        )

    got = backward(operators, x, bank, accumulate)
    expected = backward(torch.ops.fcl, x.double(), bank.double(), torch.float64)
    assert error(got, expected) < (1e-13 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("sample", test_csr_transpose.SAMPLES, ids=str)
def test_transpose(sample, index):
    test_csr_transpose.test_matches_definition(sample, index, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("sample", test_edge_dot.SAMPLES, ids=str)
def test_edge_dots(sample, index, dtype):
    test_edge_dot.test_matches_definition(sample, index, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", test_knn_graph.METRICS)
@pytest.mark.parametrize("sample", NEIGHBOURS, ids=str)
def test_neighbours(sample, metric, dtype):
    test_knn_graph.test_matches_definition(sample, metric, dtype, "cpu")


@pytest.mark.parametrize("metric", test_knn_graph.METRICS)
def test_neighbours_ties(metric):
    test_knn_graph.test_ties_go_to_the_lower_index(400, 37, metric, "cpu")


def test_neighbours_zero_rows():
    test_knn_graph.test_equal_rows_and_zero_rows("cpu")


@pytest.mark.parametrize("exponent", [-37, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_of_tiny_and_huge_rows(exponent, dtype):
    test_knn_graph.test_cosine_of_tiny_and_huge_rows(exponent, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("sample", WALKS, ids=str)
def test_walk(sample, index, dtype):
    test_random_walk.test_matches_definition(sample, index, dtype, "cpu")


def test_walk_isolated_nodes_and_layouts():
    test_random_walk.test_isolated_node_keeps_the_restart_only("cpu")
    test_random_walk.test_layouts_and_aliasing("cpu")


def test_rows_that_are_not_16_byte_aligned(operators):
    crow, col, values, features, _ = test_random_walk._inputs(
        (30, 200, 8, 0.1, 0), torch.float32, "cpu"
    )
    shifted = torch.zeros(241)[1:].view_as(features).copy_(features)
    walk = [operators.random_walk(crow, col, values, x, 0.9, 3) for x in (features, shifted)]
    assert torch.equal(*walk)
    dots = [operators.edge_dot(crow, col, x, x) for x in (features, shifted)]
    torch.testing.assert_close(*dots)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", [WALKS[0], WALKS[4], WALKS[6], WALKS[8]], ids=str)
def test_walk_to_the_limit(sample, dtype):
    test_random_walk.test_tolerance_form_reaches_the_limit_in_every_dtype(sample, dtype, "cpu")


@pytest.mark.parametrize("norm", ["max", "sum"])
def test_walk_norms(norm, operators):
    """Both forms take the steps the CPU takes, and say no to the same graphs."""
    crow, col, values, features, _ = test_random_walk._inputs(
        (60, 300, 37, 0.1, 0), torch.float64, "cpu"
    )
    if norm == "sum":
        crow, col, order = torch.ops.fcl.csr_transpose(crow, col, 60)
        values = values[order]
    arguments = (crow, col, values, features, 0.8, 1e-6, 200, norm)
    state, steps = operators.random_walk_tol(*arguments)
    expected, expected_steps = torch.ops.fcl.random_walk_tol(*arguments)
    torch.testing.assert_close(state, expected, rtol=1e-12, atol=1e-14)
    assert steps == expected_steps
    with pytest.raises(RuntimeError, match="absolute weights that sum to at most 1"):
        operators.random_walk_tol(crow, col, 3 * values, *arguments[3:])
    with pytest.raises(RuntimeError, match="expected finite features"):
        operators.random_walk_tol(*arguments[:3], features * torch.nan, *arguments[4:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_steps", [0, 1, 2, 5, 9])
def test_walk_backward(num_steps, dtype, operators):
    crow, col, values, features, _ = test_random_walk._inputs((20, 90, 7, 0.1, 0), dtype, "cpu")
    grad = torch.linspace(-1, 1, 140, dtype=torch.float64).reshape(20, 7).to(dtype)

    def backward(namespace, *tensors):
        return namespace.random_walk_backward(crow, col, *tensors, 0.8, num_steps, True, True)

    ours = backward(operators, values, features, grad)
    expected = backward(torch.ops.fcl, values.double(), features.double(), grad.double())
    for mine, truth in zip(ours, expected, strict=True):
        rounding = error(truth.to(dtype), truth)
        assert error(mine, truth) < (1e-13 if dtype == torch.float64 else 2e-6) + rounding


def test_bad_entries_are_device_assertions(operators):
    matrix = torch.eye(3)
    with pytest.raises(RuntimeError, match=r"device-side assert.*exclude is not below C"):
        operators.softmax_readout(matrix, matrix, None, torch.tensor([0, 3, 1]), 1.0, True)
    offsets, columns = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2])
    labels = torch.tensor([0, 1, 2])
    with pytest.raises(RuntimeError, match=r"device-side assert.*label is not below L"):
        operators.sparse_readout(matrix, matrix, labels, offsets, columns, None, 1.0, True)
    with pytest.raises(RuntimeError, match=r"device-side assert.*col_indices leave"):
        operators.sparse_readout(matrix, matrix, labels % 2, offsets, columns + 1, None, 1.0, True)
    with pytest.raises(RuntimeError, match=r"device-side assert.*col_indices leave"):
        operators.csr_transpose(offsets, columns, 2)
    with pytest.raises(RuntimeError, match=r"device-side assert.*crow_indices decrease"):
        operators.csr_transpose(torch.tensor([0, 4, 3]), columns, 3)
    with pytest.raises(RuntimeError, match=r"device-side assert.*do not end at E"):
        operators.edge_dot(torch.tensor([0, 1, 1, 2]), columns, matrix, matrix)
    with pytest.raises(RuntimeError, match=r"device-side assert.*not finite"):
        operators.knn_graph(matrix * torch.nan, 1, "cosine")


def test_emulation_notices_broken_kernels(emulation):
    """Its own alarms work: a missing barrier gives a wrong sum in one order, others are errors."""
    emulation.emulation_reverse(0)
    ascending = emulation.emulation_self_test(0)
    emulation.emulation_reverse(1)
    assert (ascending, emulation.emulation_self_test(0)) != (0, 0)
    assert emulation.emulation_self_test(1) == 1  # some threads skip a block barrier
    assert emulation.emulation_self_test(2) == 1  # some lanes skip a shuffle
    assert emulation.emulation_self_test(3) == 0  # a sound kernel
