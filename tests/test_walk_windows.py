# SPDX-License-Identifier: Apache-2.0
"""walk_windows by what it says, and prepared graphs that hold windows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import walk_checks as checks
from graph_samples import random_csr
from hypothesis import given
from hypothesis import strategies as st
from test_graph_prepare import _clustered

from fclearn import KnnGraph, _prepared

OP = torch.ops.fcl.walk_windows.default
UNION = torch.ops.fcl.random_walk_union.default


def _edges_of_windows(num_rows, window_crow, window_col, chunk_crow, positions, edge_order):
    """(row, column, edge) of every edge, by the documented meaning of the arrays."""
    assert window_crow[0] == 0
    assert window_crow[-1] == len(window_col)
    assert len(window_crow) == (num_rows + 15) // 16 + 1
    assert len(chunk_crow) == len(window_col) // 16 + 1
    assert (window_crow % 16 == 0).all()
    found = []
    for window in range(len(window_crow) - 1):
        slots = window_col[window_crow[window] : window_crow[window + 1]]
        used = slots[slots >= 0]
        assert (used.diff() >= 0).all()
        assert (slots[len(used) :] == -1).all()
        assert len(slots) - len(used) < 16
        for chunk in range(int(window_crow[window]) // 16, int(window_crow[window + 1]) // 16):
            at = positions[chunk_crow[chunk] : chunk_crow[chunk + 1]].long()
            # Weights of a chunk are stored by position: none may be stored twice.
            assert len(at.unique()) == len(at)
            rows = 16 * window + at // 16
            columns = window_col[16 * chunk + at % 16]
            edges = edge_order[chunk_crow[chunk] : chunk_crow[chunk + 1]]
            found += list(zip(rows.tolist(), columns.tolist(), edges.tolist(), strict=True))
    return found


def _edges(crow, col):
    row = torch.repeat_interleave(torch.arange(len(crow) - 1), crow.diff())
    listed = zip(row.tolist(), col.tolist(), range(len(col)), strict=True)
    return [edge for edge in listed if edge[1] >= 0]


@given(
    nodes=st.integers(1, 70),
    edges=st.integers(0, 300),
    padding=st.sampled_from([0.0, 0.3, 1.0]),
    index=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 1000),
)
def test_every_edge_is_where_it_belongs(nodes, edges, padding, index, seed):
    crow, col = random_csr(nodes, nodes, edges, padding=padding, index=index, seed=seed)
    arrays = OP(crow, col)
    assert sorted(_edges_of_windows(nodes, *arrays)) == sorted(_edges(crow, col))
    assert [t.dtype for t in arrays] == [
        *(torch.int64, torch.int32, torch.int64, torch.uint8, torch.int64)
    ]


def test_a_window_lists_a_column_once():
    """16 rows with the same 5 columns: 5 slots; a column twice in a row is two of them."""
    crow = torch.arange(0, 16 * 5 + 1, 5)
    window_crow, window_col, chunk_crow, _, _ = OP(crow, torch.tensor([9, 2, 4, 11, 3] * 16))
    assert window_col.tolist() == [2, 3, 4, 9, 11, *[-1] * 11]
    assert (window_crow.tolist(), chunk_crow.tolist()) == ([0, 16], [0, 80])
    _, window_col, *_ = OP(crow, torch.tensor([*[9, 2, 4, 11, 3] * 15, 9, 2, 2, 2, 3]))
    assert window_col.tolist()[:7] == [2, 2, 2, 3, 4, 9, 11]


def test_no_nodes():
    arrays = OP(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))
    assert [t.tolist() for t in arrays] == [[0], [], [0], [], []]


def test_bad_graphs_are_named():
    crow = torch.tensor([0, 1, 2])
    with pytest.raises(RuntimeError, match=r"walk_windows: .*col_indices in \[0, 2\) or -1"):
        OP(crow, torch.tensor([0, 2]))
    with pytest.raises(RuntimeError, match="expected crow_indices of dtype"):
        OP(crow.int(), torch.tensor([0, 1]))


BAD_UNIONS = [
    ({"features": torch.ones(40, 3).double()}, "float32, bfloat16 or float16"),
    ({"features": torch.ones(60, 3)}, r"window_crow of shape \[N / 16 rounded up \+ 1\] = \[5\]"),
    ({"window_crow": torch.zeros(4, dtype=torch.int32)}, "window_crow of dtype"),
    ({"window_col": torch.zeros(17, dtype=torch.int32)}, r"S a multiple of 16, got \[17\]"),
    ({"chunk_crow": torch.zeros(1, dtype=torch.int64)}, r"chunk_crow of shape \[S / 16 \+ 1\]"),
    ({"positions": torch.zeros(3, dtype=torch.int64)}, "positions of dtype"),
    ({"values": torch.ones(3)}, r"values of shape \[P\]"),
    ({"values": torch.ones(240).double()}, "values of dtype"),
    ({"damping": 1.0}, r"damping in the open interval \(0, 1\), got 1"),
    ({"num_steps": -1}, "num_steps >= 0, got -1"),
    ({"num_bf16_steps": 3}, r"num_bf16_steps in \[0, num_steps = 2\], got 3"),
]


def _union_arguments():
    crow, col, values = checks.clustered(40, 6)
    names = ("window_crow", "window_col", "chunk_crow", "positions")
    *arrays, order = OP(crow, col)
    arguments = dict(zip(names, arrays, strict=True))
    arguments |= {"values": values.float()[order], "features": torch.ones(40, 3)}
    return arguments | {"damping": 0.9, "num_steps": 2, "num_bf16_steps": 0}


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize(("change", "message"), BAD_UNIONS)
def test_bad_union_arguments_are_named(change, message):
    from torch._subclasses.fake_tensor import FakeTensorMode

    arguments = _union_arguments() | change
    with pytest.raises(RuntimeError, match=f"fcl::random_walk_union: .*{message}"):
        torch.ops.fcl_emulated.random_walk_union(*arguments.values())
    with FakeTensorMode() as mode:
        tensors = [mode.from_tensor(t) if torch.is_tensor(t) else t for t in arguments.values()]
        with pytest.raises(RuntimeError, match=message):
            UNION(*tensors)


@pytest.mark.usefixtures("emulation")
def test_prepared_graphs_hold_windows_where_asked_and_worth_it(monkeypatch):
    graph, _ = _clustered(nodes=512, size=32, shuffle=False)
    order = torch.arange(512)
    monkeypatch.delenv("FCL_CUDA_PATH", raising=False)
    assert _prepare(graph, order).windows is None
    monkeypatch.setenv("FCL_CUDA_PATH", "union")
    prepared = _prepare(graph, order)
    assert prepared.windows is not None
    assert prepared.windows.reuse >= 2
    assert prepared.windows.reuse == pytest.approx(_reuse_by_definition(prepared), rel=1e-12)
    features = torch.randn(512, 20, generator=torch.Generator().manual_seed(0))
    # What a GPU would walk is what the CPU walks.
    got = torch.ops.fcl_emulated.random_walk_union(
        *prepared.windows.arrays, features[prepared.order], 0.9, 4, 0
    )
    expected = replace(graph, prepared=None).walk(features, num_steps=4)
    torch.testing.assert_close(got[prepared.inverse], expected, rtol=1e-5, atol=1e-6)


def test_windows_that_share_little_are_dropped(monkeypatch):
    monkeypatch.setenv("FCL_CUDA_PATH", "union")
    col = torch.randint(0, 4096, (4096 * 4,), generator=torch.Generator().manual_seed(0))
    crow = torch.arange(0, 4096 * 4 + 1, 4)
    graph = KnnGraph.from_csr(crow, col, torch.ones(4096 * 4)).normalize(temperature=1.0)
    assert _prepare(graph, torch.arange(4096)).windows is None


def _prepare(graph, order):
    return _prepared.prepare(graph.crow_indices, graph.col_indices, graph.values, order)


def _reuse_by_definition(prepared):
    edges = slots = 0
    for first in range(0, len(prepared.order), 16):
        rows = [
            prepared.col_indices[prepared.crow_indices[r] : prepared.crow_indices[r + 1]]
            for r in range(first, min(first + 16, len(prepared.order)))
        ]
        most = {}
        for row in rows:
            for column, count in zip(*row.unique(return_counts=True), strict=True):
                most[int(column)] = max(most.get(int(column), 0), int(count))
        edges += sum(len(row) for row in rows)
        slots += sum(most.values())
    return edges / slots
