# SPDX-License-Identifier: Apache-2.0
"""Walks from file to file: the walk in memory, its cap, kills at any instant, full disks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fclearn import KnnGraph, out_of_core
from fclearn.out_of_core import walk_file


def _features(tmp_path, dtype=np.float32, rows=120, dim=10):
    array = np.random.default_rng(0).normal(size=(rows, dim)).astype(dtype)
    np.save(tmp_path / "features.npy", array)
    native = array.astype(array.dtype.newbyteorder("="))
    return tmp_path / "features.npy", native


def _graph(array, mode="row"):
    return KnnGraph.build(array.astype(np.float64), 4).normalize(0.3, mode)


def _cap(graph, columns, copies=6, state_bytes=4):
    arrays = (graph.crow_indices, graph.col_indices, graph.values)
    return sum(a.nbytes for a in arrays) + columns * copies * state_bytes * graph.num_nodes


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f4"])
@pytest.mark.parametrize("transpose", [False, True])
def test_equals_the_walk_in_memory(dtype, transpose, tmp_path):
    path, array = _features(tmp_path, dtype)
    graph = _graph(array)
    state_bytes = 8 if array.dtype.itemsize == 8 else 4
    seen = []
    out = tmp_path / "deep" / "walked.npy"
    walk_file(
        graph,
        path,
        out,
        num_steps=7,
        transpose=transpose,
        memory_bytes=_cap(graph, 3, state_bytes=state_bytes),
        progress=lambda *done: seen.append(done),
    )
    assert seen == [(3, 10), (6, 10), (9, 10), (10, 10)]
    expected = graph.walk(array, num_steps=7, transpose=transpose).numpy()
    got = np.load(out)
    assert got.dtype == array.dtype
    # Narrow groups of columns are summed without vectors: the last bit may differ.
    rounding = np.finfo(array.dtype).eps
    np.testing.assert_allclose(got, expected, rtol=4 * rounding, atol=4 * rounding)
    assert [file.name for file in out.parent.iterdir()] == ["walked.npy"]


@pytest.mark.parametrize("mode", ["row", "symmetric"])
def test_tolerance_form(mode, tmp_path):
    path, array = _features(tmp_path, np.float64)
    graph = _graph(array, mode)
    cap = _cap(graph, 4, 14 if mode == "symmetric" else 6, 8)
    walk_file(graph, path, tmp_path / "walked.npy", tol=1e-9, memory_bytes=cap)
    expected = graph.walk(array, tol=1e-9).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "walked.npy"), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kill_at", ["walk", "_flush", "replacing", "progress"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_killed_at_any_instant_resumes_to_the_same_file(call, kill_at, tmp_path, monkeypatch):
    path, array = _features(tmp_path)
    graph, out = _graph(array), tmp_path / "walked.npy"
    expected = graph.walk(array, num_steps=5).numpy()
    calls = []

    def killed(function):
        def wrapped(*arguments, **options):
            calls.append(arguments)
            if len(calls) == call:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return wrapped

    progress = killed(lambda *_: None) if kill_at == "progress" else None
    with monkeypatch.context() as patch:
        owner = KnnGraph if kill_at == "walk" else out_of_core
        if progress is None:
            patch.setattr(owner, kill_at, killed(getattr(owner, kill_at)))
        with pytest.raises(KeyboardInterrupt):
            walk_file(graph, path, out, num_steps=5, memory_bytes=_cap(graph, 3), progress=progress)
    assert not out.exists()
    done = []
    # Another cap: the columns that are finished stay finished.
    walk_file(
        graph,
        path,
        out,
        num_steps=5,
        memory_bytes=_cap(graph, 5),
        progress=lambda *now: done.append(now[0]),
    )
    np.testing.assert_array_equal(np.load(out), expected)
    if kill_at == "progress":
        assert done[0] == min(3 * call + 5, 10)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["features.npy", "walked.npy"]


def test_remains_of_another_run_are_refused(tmp_path):
    path, array = _features(tmp_path)
    graph, out = _graph(array), tmp_path / "walked.npy"

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk_file(graph, path, out, num_steps=5, memory_bytes=_cap(graph, 3), progress=stop)
    other = KnnGraph.build(array, 3).normalize(0.3)
    for arguments, options in [
        ((graph, path), {"num_steps": 6}),
        ((graph, path), {"num_steps": 5, "damping": 0.8}),
        ((other, path), {"num_steps": 5}),
        ((graph, array + 1), {"num_steps": 5}),
    ]:
        with pytest.raises(ValueError, match="a walk of other features, another graph or other"):
            walk_file(*arguments, out, **options)
    (tmp_path / ".walked.npy.partial.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="not a record of a walk; remove it to start afresh"):
        walk_file(graph, path, out, num_steps=5)


def test_a_full_disk_is_an_error_and_leaves_no_result(tmp_path, monkeypatch):
    path, array = _features(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(out_of_core.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        walk_file(_graph(array), path, tmp_path / "walked.npy", num_steps=5)
    assert not (tmp_path / "walked.npy").exists()


def test_bad_arguments_are_named_before_a_file_is_made(tmp_path):
    path, array = _features(tmp_path)
    graph, out = _graph(array), tmp_path / "walked.npy"
    for arguments, options, message in [
        ((graph, path), {"memory_bytes": _cap(graph, 1) - 1}, "memory_bytes: expected at least"),
        ((graph, array[1:]), {}, "features: expected one row per node, 120, got 119"),
        ((graph, path), {"damping": 1.0}, "damping: expected a number in"),
        ((graph, path), {"num_steps": 3, "tol": 0.1}, "num_steps or tol, not both"),
    ]:
        with pytest.raises(ValueError, match=message):
            walk_file(*arguments, out, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["features.npy"]


def test_no_columns(tmp_path):
    graph = _graph(np.random.default_rng(0).normal(size=(20, 3)))
    walk_file(graph, torch.empty(20, 0), tmp_path / "walked.npy", num_steps=2)
    assert np.load(tmp_path / "walked.npy").shape == (20, 0)
