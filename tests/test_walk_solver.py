# SPDX-License-Identifier: Apache-2.0
"""Walks to their limit by conjugate gradients, and walks that report and can be stopped."""

from __future__ import annotations

import pytest
import torch
from walk_samples import float_features, normalized_graph, walk_limit

import reference
from fclearn import KnnGraph, _power, _solver


@pytest.mark.parametrize("damping", [0.1, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-11])
def test_tolerance_is_kept_in_every_column(tol, damping):
    graph, features = normalized_graph(), float_features()
    features[:, 2] *= 1e-8
    features[:, 3] = 0
    limit = graph.solve(features, damping, tol)
    distance = (limit.features - walk_limit(graph, features, damping)).norm(dim=0)
    assert (distance <= tol * features.norm(dim=0) + 1e-14 * features.norm(dim=0)).all()
    assert (limit.error <= tol).all()
    assert (distance <= limit.error * features.norm(dim=0) + 1e-11 * features.norm(dim=0)).all()
    assert limit.num_steps[3] == 1


def test_steps_grow_with_the_root_of_the_condition():
    graph, features = normalized_graph(), float_features()
    few, many = (int(graph.solve(features, d, 1e-6).num_steps.max()) for d in (0.9, 0.999))
    assert few < 30
    assert many < 80  # power iteration takes about 14,500


def test_columns_stop_on_their_own():
    graph, features = normalized_graph(), float_features(dim=3)
    dense = reference.csr_to_dense(graph.crow_indices, graph.col_indices, graph.values, 300)
    # An eigenvector is solved in one step, whatever its neighbours need.
    features[:, 1] = torch.linalg.eigh(dense).eigenvectors[:, 40]
    steps = graph.solve(features, 0.95, 1e-9).num_steps
    assert steps[1] <= 4
    assert steps[[0, 2]].min() > 8


@pytest.mark.parametrize("damping", [0.5, 0.9, 0.99])
def test_float32_stops_at_its_rounding(damping):
    graph, features = normalized_graph(), float_features(dtype=torch.float32)
    limit = graph.solve(features, damping, 1e-12)
    exact = walk_limit(graph, features, damping)
    assert limit.features.dtype == torch.float32
    assert (limit.features - exact).norm() <= 1e-6 / (1 - damping) * exact.norm()
    assert limit.num_steps.max() < 200


def test_blocks_of_columns_and_prepared_graphs_change_nothing(monkeypatch):
    nodes = 4096
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(0))
    ring = torch.empty(nodes, 4, dtype=torch.long)
    ring[order] = order[(torch.arange(nodes)[:, None] + torch.tensor([1, 2, 3, 4])) % nodes]
    graph = KnnGraph.from_knn(ring, torch.rand(nodes, 4).double()).normalize(0.3, "symmetric")
    features = float_features(nodes, 7)
    whole = graph.solve(features, 0.9, 1e-9)
    prepared = graph.prepare()
    assert prepared.prepared is not None
    torch.testing.assert_close(prepared.solve(features, 0.9, 1e-9).features, whole.features)
    monkeypatch.setattr(_solver, "_BLOCK_COLUMNS", 3)
    parts = graph.solve(features, 0.9, 1e-9)
    torch.testing.assert_close(parts.features, whole.features, rtol=1e-7, atol=1e-9)
    assert torch.equal(parts.num_steps, whole.num_steps)
    torch.testing.assert_close(graph.walk(features, tol=1e-9), parts.features)
    reports = []
    graph.solve(features, progress=lambda *done: reports.append(done))
    assert reports == sorted(reports)
    assert reports[-1][0] == reports[-1][1]


def test_empty_inputs():
    graph = normalized_graph()
    assert graph.solve(float_features(dim=0)).features.shape == (300, 0)
    none = KnnGraph.from_csr(torch.zeros(1).long(), torch.zeros(0).long(), torch.zeros(0))
    assert none.normalize(mode="symmetric").solve(torch.zeros(0, 3)).features.shape == (0, 3)


def test_gradients_still_flow_through_the_symmetric_limit():
    graph = normalized_graph(20, 60)
    features = float_features(20, 3).requires_grad_()
    graph.walk(features, 0.7, tol=1e-9).square().sum().backward()
    leaf = features.detach().clone().requires_grad_()
    walk_limit(graph, leaf, 0.7).square().sum().backward()
    torch.testing.assert_close(features.grad, leaf.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_chunks_give_the_same_walk_and_report_it(dtype, monkeypatch):
    monkeypatch.setattr(_solver, "_CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(_solver, "_FIRST_CHUNK", 0.0)
    graph, features = normalized_graph(mode="row"), float_features(dtype=torch.float64).to(dtype)
    seen = []
    got = graph.walk(features, num_steps=5, progress=lambda *done: seen.append(done))
    assert seen == [(n, 5) for n in range(1, 6)]
    values = graph.values.to(torch.float64 if dtype == torch.float64 else torch.float32)
    whole = torch.ops.fcl.random_walk(
        graph.crow_indices, graph.col_indices, values, features, 0.9, 5
    )
    assert torch.equal(got, whole)


def test_no_steps_give_a_copy():
    features = float_features()
    walked = normalized_graph(mode="row").walk(features, num_steps=0)
    assert torch.equal(walked, features)
    assert walked.data_ptr() != features.data_ptr()


def test_bfloat16_iterates_of_a_graph():
    graph, features = normalized_graph(mode="row"), float_features(dim=40, dtype=torch.float32)
    half = graph.walk(features, num_steps=10, iterate_dtype=torch.bfloat16)
    full = graph.walk(features, num_steps=10)
    assert 0 < (half - full).norm() < 2e-3 * full.norm()
    with pytest.raises(ValueError, match="progress: expected a walk on the CPU"):
        graph.walk(features, num_steps=3, iterate_dtype=torch.bfloat16, progress=print)
    with pytest.raises(ValueError, match="iterate_dtype goes with num_steps"):
        normalized_graph().walk(features, iterate_dtype=torch.bfloat16)


WALKS = [("row", {"num_steps": 50}), ("row", {"tol": 1e-6}), ("symmetric", {})]


@pytest.mark.parametrize(("mode", "options"), WALKS)
def test_what_progress_raises_ends_the_walk(mode, options, monkeypatch):
    monkeypatch.setattr(_power, "_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(_solver, "_CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(_solver, "_FIRST_CHUNK", 0.0)
    calls = []

    def stop(done, most):
        calls.append((done, most))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        normalized_graph(mode=mode).walk(float_features(), progress=stop, **options)
    assert len(calls) == 3
    assert calls == sorted(calls)
    assert all(done <= most for done, most in calls)


def test_bad_arguments_are_named():
    graph, features = normalized_graph(mode="row"), float_features()
    with pytest.raises(ValueError, match="solve: expected mode 'symmetric', got 'row'"):
        graph.solve(features)
    with pytest.raises(ValueError, match="progress: expected a walk on the CPU, in full"):
        graph.walk(features.requires_grad_(), num_steps=3, progress=print)
    with pytest.raises(ValueError, match=r"tol: expected a number in \(0, 1\), got 2"):
        normalized_graph().solve(features.detach(), tol=2)
