# SPDX-License-Identifier: Apache-2.0
"""Steps of the walk: ours and what torch, scipy and PyG offer.

Run: ``pytest bench/bench_random_walk.py --shapes full`` (peers: ``pip install -e .[bench]``);
``--shapes long -k "clustered_graph and (torch_csr or scipy_csr)"`` for ten steps of more.
``ratio`` is the time of a peer over that of ours beside it. ``extra_info`` has the bytes gathered
per second (every edge reads one row of the state), which is what bounds a step on a random graph;
``gather_fraction`` compares with a probe that does nothing else.
"""

from __future__ import annotations

import functools
import statistics
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from graphs import debian, wordnet
from torch import Tensor

import fcl_ext
from fclearn import KnnGraph
from fclearn.datasets import load_icons
from interleave import ROUNDS, run_interleaved
from peak_probe import gather_gb_per_s

# (nodes, neighbours, dim, steps): few steps where one takes peers seconds.
SMOKE = [(2_000, 8, 32, 10)]
FULL = [(200_000, 32, 128, 10), (1_000_000, 32, 64, 3), (200_000, 100, 512, 1)]
LONG = [(1_000_000, 32, 64, 10), (200_000, 100, 512, 10)]
Shape = tuple[int, int, int, int]
DAMPING = 0.9
# Real graphs: dim and steps.
REAL = (128, 10)
# Nodes of a cluster, and share of edges that leave it.
CLUSTER, STRAY = 500, 0.1


class Problem:
    """One graph in the form each peer wants; making that form is not measured."""

    def __init__(self, crow: Tensor, col: Tensor, dim: int, num_steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        degrees = crow.diff()
        values = torch.rand(len(col), generator=generator)
        rows = torch.repeat_interleave(degrees)
        values /= torch.zeros(len(degrees)).index_add_(0, rows, values)[rows]
        self.features = torch.randn(len(degrees), dim, generator=generator)
        self.graph = KnnGraph.from_csr(crow, col.int(), values).normalize(mode="none")
        self.num_steps = num_steps

    @property
    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        """CSR of the graph."""
        return self.graph.crow_indices, self.graph.col_indices, self.graph.values

    @functools.cached_property
    def prepared(self) -> KnnGraph:
        """The graph with nodes renumbered."""
        return self.graph.prepare()

    @functools.cached_property
    def torch_csr(self) -> Tensor:
        """The graph as torch's own sparse matrix."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its sparse tensors a beta feature
            return torch.sparse_csr_tensor(*self.arrays, (self.graph.num_nodes,) * 2)


def ours(problem: Problem) -> Tensor:
    return fcl_ext.random_walk(
        *problem.arrays, problem.features, damping=DAMPING, num_steps=problem.num_steps
    )


def ours_prepared(problem: Problem) -> Tensor:
    return problem.prepared.walk(problem.features, DAMPING, num_steps=problem.num_steps)


def ours_bfloat16(problem: Problem) -> Tensor:
    return fcl_ext.random_walk(
        *problem.arrays,
        problem.features,
        damping=DAMPING,
        num_steps=problem.num_steps,
        iterate_dtype=torch.bfloat16,
    )


def ours_prepared_bfloat16(problem: Problem) -> Tensor:
    return problem.prepared.walk(
        problem.features, DAMPING, num_steps=problem.num_steps, iterate_dtype=torch.bfloat16
    )


def torch_csr(problem: Problem) -> Tensor:
    state = problem.features
    for _ in range(problem.num_steps):
        state = torch.addmm(
            problem.features, problem.torch_csr, state, beta=1 - DAMPING, alpha=DAMPING
        )
    return state


def embedding_bag(problem: Problem) -> Tensor:
    crow, col, values = problem.arrays
    state = problem.features
    for _ in range(problem.num_steps):
        walked = F.embedding_bag(
            col,
            state,
            crow.int(),
            per_sample_weights=values,
            mode="sum",
            include_last_offset=True,
        )
        state = DAMPING * walked + (1 - DAMPING) * problem.features
    return state


def scipy_csr(problem: Problem) -> Tensor:
    sparse = pytest.importorskip("scipy.sparse")
    crow, col, values = (array.numpy() for array in problem.arrays)
    features = problem.features.numpy()
    matrix = sparse.csr_matrix((values, col, crow), shape=(problem.graph.num_nodes,) * 2)
    state = features
    for _ in range(problem.num_steps):
        state = DAMPING * (matrix @ state) + (1 - DAMPING) * features
    return torch.from_numpy(state)


def pyg_appnp(problem: Problem) -> Tensor:
    nn = pytest.importorskip("torch_geometric.nn")
    layer = nn.APPNP(problem.num_steps, 1 - DAMPING, normalize=False)
    return layer(problem.features, problem.torch_csr)


@functools.lru_cache(maxsize=1)
def _random(shape: Shape) -> Problem:
    nodes, k, dim, num_steps = shape
    generator = torch.Generator().manual_seed(0)
    col = torch.randint(0, nodes, (nodes * k,), generator=generator)
    return Problem(torch.arange(0, nodes * k + 1, k), col, dim, num_steps)


@functools.lru_cache(maxsize=1)
def _clustered(shape: Shape) -> Problem:
    """Clusters whose nodes have ids that say nothing about them."""
    nodes, k, dim, num_steps = shape
    generator = torch.Generator().manual_seed(0)
    first = torch.arange(nodes)[:, None] // CLUSTER * CLUSTER
    col = first + torch.randint(0, CLUSTER, (nodes, k), generator=generator)
    stray = torch.rand(nodes, k, generator=generator) < STRAY
    col[stray] = torch.randint(0, nodes, (int(stray.sum()),), generator=generator)
    old = torch.randperm(nodes, generator=generator)
    shuffled = torch.argsort(old)[col[old]].flatten()
    return Problem(torch.arange(0, nodes * k + 1, k), shuffled, dim, num_steps)


@functools.lru_cache(maxsize=1)
def _icons() -> Problem:
    """16 nearest neighbours of every icon image by its pixels."""
    images = torch.from_numpy(load_icons().array()).flatten(1).float()
    indices, _ = fcl_ext.knn_graph(images, 16)
    return Problem(torch.arange(0, indices.numel() + 1, 16), indices.flatten(), *REAL)


@functools.lru_cache(maxsize=1)
def _debian() -> Problem:
    """What packages of Debian depend on; hubs, and rows without edges."""
    crow, col = debian.load()
    return Problem(torch.from_numpy(crow), torch.from_numpy(col), *REAL)


@functools.lru_cache(maxsize=1)
def _wordnet() -> Problem:
    """16 nearest neighbours of every gloss by its words."""
    crow, col = wordnet.load()
    return Problem(torch.from_numpy(crow), torch.from_numpy(col), *REAL)


def _assert_right(problem: Problem, peer) -> None:
    """All of the result against embedding_bag, whose order of sums differs."""
    expected = embedding_bag(problem)
    error = (peer(problem) - expected).norm() / expected.norm()
    assert error < (2e-3 if "bfloat16" in peer.__name__ else 1e-5)


def _measure(benchmark, problem: Problem, peer, reference) -> None:
    _assert_right(problem, peer)
    step = functools.partial(peer, problem)
    beside = step if peer is reference else functools.partial(reference, problem)
    gathered = problem.num_steps * problem.graph.num_edges * problem.features.shape[1]
    run_interleaved(benchmark, peer.__name__, step, beside, flops=2.0 * gathered)
    benchmark.extra_info["gather_gb_per_s"] = 4e-9 * gathered / benchmark.extra_info["seconds"]


def _gather_fraction(problem: Problem) -> float | None:
    """Bytes that a walk of ours gathers per second over those of probes around it: the median."""
    gathered = 4e-9 * problem.num_steps * problem.graph.num_edges * problem.features.shape[1]
    fractions = []
    before = gather_gb_per_s(problem.features)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        ours(problem)
        seconds = time.perf_counter() - start
        after = gather_gb_per_s(problem.features)
        if before is None or after is None:
            return None
        fractions.append(2 * gathered / seconds / (before + after))
        before = after
    return statistics.median(fractions)


by_name = functools.partial(pytest.mark.parametrize, ids=lambda f: f.__name__)


@by_name("peer", [ours, torch_csr, embedding_bag, scipy_csr, ours_bfloat16])
def test_random_graph(benchmark, shape, peer):
    """The raw operator where no order helps; below 1 for our bfloat16 is how much faster it is."""
    benchmark.group = "random_walk random graph " + "x".join(map(str, shape))
    problem = _random(shape)
    _measure(benchmark, problem, peer, ours)
    if peer is ours:
        benchmark.extra_info["gather_fraction"] = _gather_fraction(problem)


@by_name(
    "peer",
    [
        ours_prepared,
        ours,
        torch_csr,
        embedding_bag,
        scipy_csr,
        pyg_appnp,
        ours_prepared_bfloat16,
    ],
)
def test_clustered_graph(benchmark, shape, peer):
    problem = _clustered(shape)
    benchmark.group = "random_walk clustered graph, ids shuffled " + "x".join(map(str, shape))
    _measure(benchmark, problem, peer, ours_prepared)


@by_name("peer", [ours_prepared, ours, torch_csr, embedding_bag, scipy_csr, pyg_appnp])
@by_name("load", [_icons, _wordnet, _debian])
def test_real_graph(benchmark, load, peer):
    problem = load()
    nodes, edges = problem.graph.num_nodes, problem.graph.num_edges
    benchmark.group = f"random_walk {load.__name__[1:]}, {nodes} nodes, {edges} edges"
    _measure(benchmark, problem, peer, ours_prepared)


def test_preparation_pays_back(benchmark, shape):
    """``steps_to_pay_back``: seconds of preparation over seconds saved per step."""
    problem = _clustered(shape)

    def prepare() -> KnnGraph:
        return problem.graph.prepare()

    benchmark.group = "random_walk preparation " + "x".join(map(str, shape))
    run_interleaved(benchmark, "prepare", prepare, prepare, flops=1.0)
    saved = {}
    for name, peer in (("torch_csr", torch_csr), ("ours", ours)):
        start = time.perf_counter()
        peer(problem)
        middle = time.perf_counter()
        ours_prepared(problem)
        saved[name] = (2 * middle - start - time.perf_counter()) / problem.num_steps
    benchmark.extra_info["seconds_saved_per_step"] = saved
    benchmark.extra_info["steps_to_pay_back"] = {
        name: benchmark.extra_info["seconds"] / gain if gain > 0 else None
        for name, gain in saved.items()
    }
