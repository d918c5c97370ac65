# SPDX-License-Identifier: Apache-2.0
"""The walk and the neighbour search on a GPU: every path of our kernels beside every peer."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from gpu_clock import Clock, Row, assert_close, unit_rows
from torch import Tensor

import fcl_ext
from fcl_ext import ops
from fclearn import _windows

DAMPING = 0.9
# nodes, neighbours, dim, steps, size of the groups that neighbours stay in (0: anywhere, the worst
# order there is).
WALKS = {
    "smoke": [(50, 4, 8, 3, 0), (64, 4, 8, 3, 16)],
    "full": [
        (200_000, 32, 128, 10, 0),
        (200_000, 32, 512, 10, 0),
        (1_000_000, 32, 64, 10, 0),
        (1_000_000, 32, 128, 10, 0),
        (1_000_000, 32, 128, 10, 256),
        (1_000_000, 32, 128, 10, 64),
        (5_000, 16, 128, 10, 0),
    ],
}
# rows, dim, k
NEIGHBOURS = {
    "smoke": [(60, 8, 3)],
    "full": [(50_000, 128, 32), (100_000, 256, 32), (300_000, 128, 32)],
}


@dataclass
class _Graph:
    crow: Tensor
    col: Tensor
    ids: Tensor
    values: Tensor
    degree: int

    @classmethod
    def make(cls, nodes: int, degree: int, group: int, device: str) -> _Graph:
        generator = torch.Generator().manual_seed(2)
        col = torch.randint(0, group or nodes, (nodes, degree), generator=generator)
        if group:
            col = (col + torch.arange(nodes)[:, None] // group * group) % nodes
        weights = torch.rand(nodes, degree, generator=generator) + 0.1
        values = (weights / weights.sum(1, keepdim=True)).reshape(-1).to(device)
        crow = torch.arange(0, nodes * degree + 1, degree, device=device)
        flat = col.reshape(-1).to(device)
        return cls(crow, flat, flat.to(torch.int32), values, degree)


def _on_path(
    path: str, work: Callable[[], Tensor], cache: str | None = None
) -> Callable[[], Tensor]:
    def run() -> Tensor:
        os.environ["FCL_CUDA_PATH"] = path
        if cache is not None:
            os.environ["FCL_CUDA_CACHE_BYTES"] = cache
        try:
            return work()
        finally:
            del os.environ["FCL_CUDA_PATH"]
            os.environ.pop("FCL_CUDA_CACHE_BYTES", None)

    return run


def _captured(walk: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """All steps in one CUDA graph."""
    walk()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = walk()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def _ours(graph: _Graph, features: Tensor, steps: int, device: str) -> dict[str, Callable]:
    """Our walks with float32 iterates, then with bfloat16 ones; their names begin with 'ours'."""
    arrays = (graph.crow, graph.ids, graph.values)

    def walk() -> Tensor:
        return ops.random_walk(*arrays, features, DAMPING, steps)

    def half() -> Tensor:
        return ops.random_walk_resume(
            *arrays, features, features, DAMPING, steps, max(0, steps - 2)
        )

    if device != "cuda":
        return {"ours": walk, "ours bf16": half}
    windows = _windows.build(graph.crow, graph.ids, graph.values)

    def union(num_bf16_steps: int) -> Callable[[], Tensor]:
        return lambda: windows.walk(features, DAMPING, steps, num_bf16_steps)

    functions = {
        "ours simt": _on_path("simt", walk),
        "ours gather": _on_path("gather", walk),
        # Whole rows, whatever the cache holds; and as if it were that of an A100 or an H200.
        "ours gather rows": _on_path("gather", walk, str(10**12)),
        "ours gather 24MB": _on_path("gather", walk, str(24 << 20)),
        "ours gather 36MB": _on_path("gather", walk, str(36 << 20)),
        f"ours union r={windows.reuse:.1f}": union(0),
        "ours gather bf16": _on_path("gather", half),
        "ours union bf16": union(max(0, steps - 2)),
    }
    if len(features) <= 10_000:
        functions["ours gather graph"] = _captured(functions["ours gather"])
    return functions


def _peers(graph: _Graph, features: Tensor, steps: int) -> dict[str, Callable[[], Tensor]]:
    """What else makes the same product, a step at a time."""
    nodes = len(features)
    matrix = torch.sparse_csr_tensor(
        graph.crow, graph.col, graph.values, (nodes, nodes), check_invariants=False
    )
    bags = graph.col.reshape(nodes, graph.degree)
    weights = graph.values.reshape(nodes, graph.degree)

    def repeat(product: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
        state = start
        for _ in range(steps):
            state = torch.add((1 - DAMPING) * start, product(state), alpha=DAMPING)
        return state

    def bag(state: Tensor, weights: Tensor) -> Tensor:
        return F.embedding_bag(bags, state, mode="sum", per_sample_weights=weights)

    half, half_weights = features.bfloat16(), weights.bfloat16()
    peers = {
        "torch_csr": lambda: repeat(lambda state: matrix @ state, features),
        "embedding_bag": lambda: repeat(lambda state: bag(state, weights), features),
        "embedding_bag bf16": lambda: repeat(lambda state: bag(state, half_weights), half),
    }
    if importlib.util.find_spec("torch_sparse"):
        from torch_sparse import SparseTensor  # noqa: PLC0415  (an optional peer)

        sparse = SparseTensor(
            rowptr=graph.crow, col=graph.col, value=graph.values, sparse_sizes=(nodes, nodes)
        )
        peers["torch_sparse"] = lambda: repeat(lambda state: sparse @ state, features)
    if importlib.util.find_spec("dgl"):
        import dgl  # noqa: PLC0415  (an optional peer)

        other = dgl.sparse.from_csr(graph.crow, graph.col, graph.values, (nodes, nodes))
        peers["dgl"] = lambda: repeat(lambda state: other @ state, features)
    return peers


def walks(shapes: str, device: str, clock: Clock) -> Iterator[Row]:
    """Exact steps. Bytes are those of gathers that no cache helps: rates can exceed memory's."""
    for nodes, degree, dim, steps, group in WALKS[shapes]:
        graph = _Graph.make(nodes, degree, group, device)
        features = unit_rows(nodes, dim, torch.float32, device, 3)
        functions = _peers(graph, features, steps) | _ours(graph, features, steps, device)
        expected = functions["torch_csr"]()
        works = {}
        for name, function in functions.items():
            # One that does not run here is left out and named.
            try:
                got = function()
            except (RuntimeError, ImportError) as error:
                print(f"{name} at {nodes}x{degree}x{dim}: {str(error).splitlines()[0]}")
                continue
            assert_close(got, expected, 2e-2 if "bf16" in name else 1e-5)
            works[name] = function
        shape = f"{nodes}x{degree}x{dim}" + (f" in {group}" if group else "") + f", {steps} steps"
        for name, (ms, mb) in clock.run_all(works).items():
            element = 2 if "bf16" in name else 4
            moved = steps * nodes * (degree * (element * dim + 8) + 8 + (4 + element) * dim)
            dtype = "bfloat16" if "bf16" in name else "float32"
            yield Row("random_walk", shape, dtype, name, ms, mb, moved / ms / 1e9, "TB/s")


def _faiss(features: Tensor, k: int) -> Callable[[], Tensor] | None:
    """The flat index of faiss on this GPU, if that faiss is installed."""
    if importlib.util.find_spec("faiss") is None:
        return None
    import faiss  # noqa: PLC0415  (an optional peer)

    if not hasattr(faiss, "StandardGpuResources") or not features.is_cuda:
        return None
    import faiss.contrib.torch_utils  # noqa: PLC0415  (lets faiss read CUDA tensors)

    resources = faiss.StandardGpuResources()
    resources.setDefaultNullStreamAllDevices()

    def search() -> Tensor:
        # The row itself is its first neighbour.
        return faiss.knn_gpu(resources, features, features, k + 1, metric=0)[0][:, 1:]

    return search


def _clustered_rows(rows: int, dim: int, device: str) -> Tensor:
    """Unit rows in groups of a hundred, cosines within them about 0.9: what embeddings are like."""
    noise = 1 / 3 * unit_rows(rows, dim, torch.float32, device, 5)
    centres = unit_rows(max(rows // 100, 1), dim, torch.float32, device, 6)
    return F.normalize(centres[torch.arange(rows, device=device) % len(centres)] + noise, dim=1)


def _neighbour_works(features: Tensor, k: int, device: str) -> dict[str, Callable[[], Tensor]]:
    """Ours, by path, and what else finds all neighbours exactly: similarities."""

    def ours() -> Tensor:
        return fcl_ext.knn_graph(features, k)[1]

    def torch_topk() -> Tensor:
        best = []
        for begin in range(0, len(features), 4096):
            block = features[begin : begin + 4096] @ features.T
            block[torch.arange(len(block)), torch.arange(begin, begin + len(block))] = -2
            best.append(block.topk(k).values)
        return torch.cat(best)

    works = {"torch_topk": torch_topk}
    faiss_search = _faiss(features, k)
    if faiss_search is not None:
        works["faiss"] = faiss_search
    if device != "cuda":
        return {"ours": ours, **works}
    paths = ["simt"] + ["mma"] * (torch.cuda.get_device_capability() >= (8, 0))
    return {**{f"ours {path}": _on_path(path, ours) for path in paths}, **works}


def neighbours(shapes: str, device: str, clock: Clock) -> Iterator[Row]:
    """Exact nearest neighbours among the rows themselves, random ones and such in clusters."""
    for rows, dim, k in NEIGHBOURS[shapes]:
        for kind in ("random", "clusters"):
            features = (
                unit_rows(rows, dim, torch.float32, device, 4)
                if kind == "random"
                else _clustered_rows(rows, dim, device)
            )
            works = _neighbour_works(features, k, device)
            expected = works["torch_topk"]()
            for work in works.values():
                assert_close(work(), expected, 1e-4)
            shape = f"{rows}x{dim}, k={k}, {kind}"
            for name, (ms, mb) in clock.run_all(works).items():
                rate = 2 * rows * rows * dim / ms / 1e9
                yield Row("knn_graph", shape, "float32", name, ms, mb, rate, "TFLOP/s")
