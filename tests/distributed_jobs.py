# SPDX-License-Identifier: Apache-2.0
"""Run by torchrun: embed, graph, walk and evaluation by all processes, against one process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed_training import Encoder, images

from fclearn import KnnGraph, evaluate_retrieval
from fclearn.distributed import World, joined_world
from fclearn.distributed.embedding import embed_by_all
from fclearn.distributed.evaluation import evaluating_by_all
from fclearn.distributed.graph import graph_by_all
from fclearn.distributed.shard_files import ShardFiles, pieces
from fclearn.distributed.walk import walk_by_all
from fclearn.embedding import embed
from fclearn.features import Fingerprint

ROWS, DIM, CLASSES = 300, 12, 7


def _features() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    rows = random.normal(size=(ROWS, DIM)).astype(np.float32)
    rows[40:60] = rows[40]  # more equals than neighbours
    labels = random.integers(-1, CLASSES, ROWS)  # -1: of no class
    labels[5] = CLASSES  # a class of one
    return rows, labels


def _stopped_once(files: ShardFiles, work: Callable[[int, int], dict]) -> None:
    """Do every second missing piece, as if the run had been killed then."""
    for number, (begin, end) in enumerate(files.missing()):
        if number % 2 == 0 and files._world.is_first:
            from safetensors.numpy import save_file

            save_file(work(begin, end), files.path(begin))
    files._world.barrier()


def check_shard_files(world: World, folder: Path) -> None:
    ranges = pieces(10, 3)
    files = ShardFiles(folder / "result", {"a": 1}, ranges, world)

    def work(begin: int, end: int) -> dict:
        return {"x": np.arange(begin, end)}

    _stopped_once(files, work)
    assert files.missing() == [(3, 6), (9, 10)]
    done: list[int] = []

    def noted(begin: int, end: int) -> dict:
        done.append(begin)
        return work(begin, end)

    ShardFiles(folder / "result", {"a": 1}, ranges, world).run(noted)
    assert sorted(chain.from_iterable(world.all_of(done))) == [3, 9]
    found = np.concatenate([arrays["x"] for _, _, arrays in files.read()])
    assert found.tolist() == list(range(10))
    with pytest.raises(ValueError, match="other inputs or settings"):
        ShardFiles(folder / "result", {"a": 2}, ranges, world)
    world.barrier()
    if world.is_first:
        files.path(3).write_bytes(b"short")
        with pytest.raises(ValueError, match="damaged"):
            list(files.read())
    world.barrier()
    assert files.missing() == [(3, 6)]
    files.remove()
    assert not files.folder.exists()


def check_embed(world: World, folder: Path) -> None:
    torch.manual_seed(0)
    encoder, data = Encoder(), images()
    fingerprint = Fingerprint("toy", 8)
    options = {"fingerprint": fingerprint, "batch_size": 7, "dtype": "float16"}
    store = embed_by_all(encoder, data, folder / "all", world=world, piece_rows=10, **options)
    if world.is_first:
        embed(encoder, data, folder / "one", progress=False, **options)
        for name in ("features.npy", "manifest.csv", "fingerprint.json"):
            assert (folder / "all" / name).read_bytes() == (folder / "one" / name).read_bytes()
    assert store.ids == data.ids


def _same_graph(got: KnnGraph, expected: KnnGraph) -> None:
    assert torch.equal(got.crow_indices, expected.crow_indices)
    assert torch.equal(got.col_indices, expected.col_indices)
    torch.testing.assert_close(got.values, expected.values, rtol=0, atol=1e-6)


def check_graph(world: World, folder: Path) -> None:
    rows, labels = _features()
    for metric in ("cosine", "ip", "l2"):
        sizes = {"piece_rows": 37, "block_rows": 64, "metric": metric}
        found = graph_by_all(rows, 9, folder / "graph", world=world, **sizes)
        within = graph_by_all(rows, 9, folder / "graph", world=world, labels=labels, **sizes)
        if world.is_first:
            _same_graph(found, KnnGraph.build(rows, 9, metric=metric))
            _same_graph(within, KnnGraph.build(rows, 9, labels=labels, metric=metric))
        else:
            assert found is None
    with pytest.raises(ValueError, match="k: expected"):
        graph_by_all(rows, ROWS, folder / "graph", world=world)


def check_walk(world: World, folder: Path) -> None:
    rows, _ = _features()
    graph = KnnGraph.build(rows, 5).normalize()
    options = {"damping": 0.7, "num_steps": 6}
    walked = walk_by_all(graph, rows, folder / "walk", world=world, piece_columns=5, **options)
    expected = graph.walk(rows, **options).numpy()
    np.testing.assert_allclose(walked.rows(10, 200), expected[10:200], rtol=0, atol=1e-6)
    before = {path: path.stat().st_mtime_ns for _, _, path in walked.paths()}
    world.barrier()
    if world.is_first:
        next(iter(before)).unlink()
    world.barrier()
    again = walk_by_all(graph, rows, folder / "walk", world=world, piece_columns=5, **options)
    np.testing.assert_array_equal(again.rows(0, ROWS), walked.rows(0, ROWS))
    kept = list(before)[1:]
    assert [path.stat().st_mtime_ns for path in kept] == [before[path] for path in kept]


def check_evaluation(world: World, folder: Path) -> None:
    rows, labels = _features()
    for metric in ("cosine", "l2"):
        options = {
            "query_labels": labels,
            "gallery_labels": labels,
            "exclude_self": True,
            "metric": metric,
            "return_per_query": True,
        }
        for metrics in (("map", "cmc@1"), ("cmc@1", "recall@10")):
            one = evaluate_retrieval(rows, rows, metrics=metrics, **options)
            for scratch in (None, folder / "pieces"):
                with evaluating_by_all(world, scratch, 41):
                    all_of = evaluate_retrieval(rows, rows, metrics=metrics, **options)
                assert all_of.to_dict() == one.to_dict()
                for name in metrics:
                    np.testing.assert_array_equal(all_of.per_query[name], one.per_query[name])


def check_evaluation_goes_on(world: World, folder: Path) -> None:
    rows, labels = _features()
    options = {"query_labels": labels, "gallery_labels": labels, "exclude_self": True}
    one = evaluate_retrieval(rows, rows, **options)
    scratch = folder / "stopped"
    with suppress(KeyboardInterrupt), evaluating_by_all(world, scratch, 41):
        evaluate_retrieval(rows, rows, **options)
        raise KeyboardInterrupt  # its pieces stay
    assert (scratch / ".call-000.shards").is_dir()
    world.barrier()
    if world.is_first:
        (scratch / ".call-000.shards" / f"{41:012d}.safetensors").unlink()
    world.barrier()
    with evaluating_by_all(world, scratch, 41):
        again = evaluate_retrieval(rows, rows, **options)
    assert again.to_dict() == one.to_dict()
    assert not scratch.exists()
    world.barrier()


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with joined_world("cpu") as world:
        for name, check in list(globals().items()):
            if name.startswith("check_"):
                check(world, folder)
                if world.is_first:
                    print(name, flush=True)


if __name__ == "__main__":
    main()
