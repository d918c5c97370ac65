# SPDX-License-Identifier: Apache-2.0
"""knn_graph on a GPU, by both paths.

What the path ``mma`` must pass before fcl_ext/cuda_verified.json names it
(tools/verify_cuda_paths.py).
"""

from __future__ import annotations

import knn_checks as checks
import pytest
import torch

pytestmark = pytest.mark.needs_cuda

ops = torch.ops.fcl


@pytest.fixture(autouse=True)
def _tensor_cores():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the filter does not run on this device")


# The filter starts behind 256 columns, or 16 a neighbour.
@pytest.mark.parametrize("kind", checks.KINDS)
@pytest.mark.parametrize("dtype", checks.DTYPES)
@pytest.mark.parametrize("metric", checks.METRICS)
@pytest.mark.parametrize(
    ("rows", "dim", "k"), [(257, 1, 1), (900, 100, 31), (3000, 128, 8), (2001, 257, 100)]
)
def test_same_bits_as_simt(rows, dim, k, metric, dtype, kind):
    checks.check_case(ops, (rows, dim, k, metric, dtype, kind), "cuda")


@pytest.mark.parametrize("dim", [64, 128, 192, 256, 320, 768, 2048])
def test_rows_stay_in_shared_memory_or_stream(dim):
    checks.check_case(ops, (2000, dim, 16, "cosine", torch.float32, "clustered"), "cuda")


@pytest.mark.parametrize("dim", [16, 20])
def test_products_that_underflow_or_nearly_overflow(dim):
    checks.check_extremes(ops, dim, "cuda", rows=1500)


@pytest.mark.parametrize("dim", [16, 20, 32, 48])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_signs_of_zeros(metric, dim):
    checks.check_signed_zeros(ops, dim, metric, "cuda", first=256)


@pytest.mark.parametrize("metric", checks.METRICS)
def test_ever_better_and_ever_worse_candidates(metric):
    checks.check_ascending(ops, metric, "cuda", rows=2900)


@pytest.mark.parametrize("metric", checks.METRICS)
@pytest.mark.parametrize("dim", [64, 128, 256, 768])
def test_large_sets_every_run_the_same_and_captured(dim, metric):
    """Many waves of blocks; whatever races shows as other bits."""
    features = checks.features_of("random", 60_000, dim, torch.float32).cuda()
    truth = checks.search(ops, "simt", features, 32, metric, "cuda")
    for _ in range(5):
        got = checks.search(ops, "mma", features, 32, metric, "cuda")
        checks.assert_same_bits(got, truth)
    graph = torch.cuda.CUDAGraph()
    with checks.asked("mma"), torch.cuda.graph(graph):
        captured = ops.knn_graph(features, 32, metric)
    graph.replay()
    torch.cuda.synchronize()
    checks.assert_same_bits([t.cpu() for t in captured], truth)
