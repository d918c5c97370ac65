# SPDX-License-Identifier: Apache-2.0
"""What only a GPU shows: CUDA = CPU, streams, graphs, determinism, memory, assertions."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from graph_samples import row_stochastic

import fcl_ext

pytestmark = pytest.mark.needs_cuda

fcl = torch.ops.fcl


def _tensors():
    """CPU tensors of several tiles, splits and panels, in float64."""
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(150, 130, dtype=torch.float64, generator=generator), dim=1)
    w = F.normalize(torch.randn(9001, 130, dtype=torch.float64, generator=generator), dim=1)
    crow, col, values = row_stochastic(150, 2000)
    sets = torch.tensor([0, 2000, 5000, 9001])
    labels = torch.arange(150) % 4 - 1
    queries = [torch.nonzero(labels == label)[:, 0] for label in range(3)]
    query_crow = torch.tensor([0, *(len(q) for q in queries)]).cumsum(0)
    return {
        "x": x,
        "w": w,
        "mean": w.mean(0),
        "exclude": torch.arange(150) - 1,
        "crow": crow,
        "col": col.to(torch.int32),
        "values": values,
        "labels": labels,
        "sets": sets,
        "members": torch.arange(9001),
        "set_of_row": torch.bucketize(torch.arange(9001), sets[1:], right=True),
        "row_crow": torch.arange(9002),
        "query_order": torch.cat(queries),
        "query_crow": query_crow,
        "coefficient": torch.linspace(-1, 1, 150, dtype=torch.float64),
    }


def _run_all(t):
    """Every operator once."""
    lse, mean = fcl.softmax_readout(t["x"], t["w"], None, t["exclude"], 20.0, True)
    terms = (lse, t["coefficient"], mean)
    # Label smoothing, unit rows, the mean over the rows that count.
    options = (20.0, 0.1, True, 0.1, True, -1, "mean", True, True)
    compat = fcl.compat_loss(t["x"], t["w"], t["exclude"], t["mean"].double(), *options)
    sparse = fcl.sparse_readout(
        t["x"], t["w"], t["labels"], t["sets"], t["members"], None, 9.0, True
    )
    graph = (t["crow"], t["col"], t["values"], t["x"])
    return {
        "softmax_readout": (lse, mean),
        "softmax_readout_backward": fcl.softmax_readout_backward(
            t["x"], t["w"], None, t["exclude"], *terms, 20.0, True, True, False
        ),
        "compat_loss": compat,
        "compat_loss_backward": (
            fcl.compat_loss_backward(
                *(compat[2], t["w"], t["exclude"], compat[3], compat[0], 20.0, 0.1, True, -1)
            ),
        ),
        "compat_loss_gradients": fcl.compat_loss_gradients(
            *(t["x"], t["w"], t["exclude"], t["mean"].double(), *options[:-2])
        ),
        "sparse_readout": sparse,
        "sparse_readout_backward_rows": (
            fcl.sparse_readout_backward_rows(
                *(t["x"], t["w"], sparse[0], t["coefficient"], t["row_crow"], t["set_of_row"]),
                *(None, t["query_crow"], t["query_order"], 9.0),
            ),
        ),
        "random_walk": (fcl.random_walk(*graph, 0.9, 7),),
        "random_walk_backward": fcl.random_walk_backward(*graph, t["x"], 0.9, 7, True, True),
        "random_walk_tol": fcl.random_walk_tol(*graph, 0.9, 1e-6, 500, "max"),
        "edge_dot": (fcl.edge_dot(t["crow"], t["col"], t["x"], t["x"]),),
        "csr_transpose": fcl.csr_transpose(t["crow"], t["col"], 150),
        "knn_graph": fcl.knn_graph(t["x"], 20, "cosine"),
        "knn_search": fcl.knn_search(t["x"], t["w"], 20, "cosine"),
        "knn_graph_segments": fcl.knn_graph_segments(
            t["x"], torch.tensor([0, 60, 61, 61, len(t["x"])], device=t["x"].device), 20, "cosine"
        ),
    }


def _on_cuda():
    return {name: tensor.cuda() for name, tensor in _tensors().items()}


def test_every_operator_runs_once():
    expected = _run_all(_tensors())
    got = _run_all(_on_cuda())
    for name, outputs in expected.items():
        for mine, truth in zip(got[name], outputs, strict=True):
            torch.testing.assert_close(mine.cpu(), truth, rtol=1e-9, atol=1e-11, msg=name)


def test_results_are_the_same_every_time():
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in _on_cuda().items()}
    first = _run_all(tensors)
    for _ in range(3):
        again = _run_all(tensors)
        for name, outputs in first.items():
            for a, b in zip(outputs, again[name], strict=True):
                assert torch.equal(a, b), name


def test_work_goes_to_the_current_stream():
    expected = _run_all(_on_cuda())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensors = _tensors()
        torch.cuda._sleep(100_000_000)  # whatever does not wait for this stream reads garbage
        got = _run_all({name: t.cuda(non_blocking=True) for name, t in tensors.items()})
    stream.synchronize()
    for name, outputs in expected.items():
        for mine, truth in zip(got[name], outputs, strict=True):
            assert torch.equal(mine.cpu(), truth.cpu()), name


def test_operators_can_be_captured_in_a_graph():
    """No operator but the tolerance form waits for the device, and memory comes from torch."""
    t = _on_cuda()
    graph_inputs = (t["crow"], t["col"], t["values"], t["x"])

    def work():
        lse, mean = fcl.softmax_readout(t["x"], t["w"], None, None, 20.0, True)
        grads = fcl.softmax_readout_backward(
            *(t["x"], t["w"], None, None, lse, t["coefficient"], mean),
            *(20.0, True, True, False),
        )
        options = (20.0, 0.0, False, 0.0, True, -1, "mean", True, True)
        compat = fcl.compat_loss(t["x"], t["w"], t["exclude"], None, *options)
        walk = fcl.random_walk_backward(*graph_inputs, t["x"], 0.9, 4, True, True)
        return lse, *grads, *compat, *walk, *fcl.knn_graph(t["x"], 5, "l2")

    expected = work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    graph.replay()
    torch.cuda.synchronize()
    for mine, truth in zip(captured, expected, strict=True):
        assert torch.equal(mine, truth)


def test_rows_that_are_not_16_byte_aligned():
    t = _on_cuda()
    crow, col = t["crow"], t["col"]
    aligned = t["x"][:, :128].float().contiguous()
    buffer = torch.zeros(aligned.numel() + 1, device="cuda")
    shifted = buffer[1:].view_as(aligned).copy_(aligned)
    values = t["values"].float()
    assert torch.equal(
        fcl.random_walk(crow, col, values, shifted, 0.9, 3),
        fcl.random_walk(crow, col, values, aligned, 0.9, 3),
    )
    torch.testing.assert_close(
        fcl.edge_dot(crow, col, shifted, shifted), fcl.edge_dot(crow, col, aligned, aligned)
    )


def test_logits_are_never_stored():
    rows, classes, dim = 512, 1_000_000, 64
    x = F.normalize(torch.randn(rows, dim, device="cuda"), dim=1).requires_grad_()
    w = F.normalize(torch.randn(classes, dim, device="cuda"), dim=1)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fcl_ext.softmax_readout(x, w, scale=30.0)[0].sum().backward()
    used = torch.cuda.max_memory_allocated() - before
    # They would take 2 GB.
    assert used < 64 * 2**20


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_device_of_the_tensors_counts():
    expected = _run_all(_on_cuda())
    with torch.cuda.device(0):
        got = _run_all({name: t.to("cuda:1") for name, t in _tensors().items()})
    for name, outputs in expected.items():
        for mine, truth in zip(got[name], outputs, strict=True):
            assert mine.device.index == 1 or not mine.is_cuda
            assert torch.equal(mine.cpu(), truth.cpu()), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "fcl_ext.ops.softmax_readout(x, x, None, torch.full((3,), 9, device='cuda'), 1., True)",
            "exclude is not below C",
        ),
        (
            "fcl_ext.compat_loss(x, x, torch.tensor([0, 3, 1], device='cuda'))",
            "label is not in [0, C)",
        ),
        ("fcl_ext.knn_graph(x * torch.nan, 1)", "features are not finite"),
        (
            "fcl_ext.csr_transpose(*(torch.tensor(t).cuda() for t in ([0, 1, 2, 3], [0, 7, 1])))",
            "col_indices leave",
        ),
    ],
)
def test_bad_entries_are_device_assertions(call, message):
    code = f"import torch, fcl_ext; x = torch.eye(3).cuda(); {call}; torch.cuda.synchronize()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "device-side assert" in run.stderr
    assert message in run.stdout + run.stderr
