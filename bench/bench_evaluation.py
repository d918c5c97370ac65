# SPDX-License-Identifier: Apache-2.0
"""mAP@100 and CMC of a gallery on disk: ours, and a flat faiss index with metrics in numpy.

Run: ``pytest bench/bench_evaluation.py --shapes full``. Peers are parameters of one test, asserted
to agree; ``extra_info`` has the ratio of the peer's time to ours in the same round, and the memory
of one call beyond mapped files (``RssAnon``, which leaves out pages of the gallery's file).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fclearn.evaluation import evaluate_retrieval
from interleave import run_interleaved

# (gallery rows, queries, dim)
SMOKE = [(3000, 200, 16)]
FULL = [(1_000_000, 10_000, 128)]
_CLASSES = 0.01  # per gallery row: 100 rows of a class
_CAP_MB = 2048
METRICS = ("map@100", "cmc@1", "cmc@5")


def ours(query: Path, gallery: Path, query_labels, gallery_labels) -> dict[str, float]:
    """Exact ranks by a search that is checked, from the mapped file."""
    return evaluate_retrieval(
        query, gallery, query_labels=query_labels, gallery_labels=gallery_labels, metrics=METRICS
    ).means


def faiss_flat(query: Path, gallery: Path, query_labels, gallery_labels) -> dict[str, float]:
    """What a careful script does: everything in memory, one search, metrics at once."""
    faiss = pytest.importorskip("faiss")
    sides = [np.load(path) for path in (query, gallery)]
    for rows in sides:
        faiss.normalize_L2(rows)
    index = faiss.IndexFlatIP(sides[0].shape[1])
    index.add(sides[1])
    found = index.search(sides[0], 100)[1]
    hits = gallery_labels[found] == query_labels[:, None]
    positives = np.bincount(gallery_labels, minlength=query_labels.max() + 1)[query_labels]
    counted = positives > 0
    precision = hits.cumsum(1) / np.arange(1, 101)
    average = (precision * hits).sum(1)[counted] / np.minimum(positives, 100)[counted]
    first = {f"cmc@{k}": hits[counted, :k].any(1).mean() for k in (1, 5)}
    return {"map@100": average.mean(), **first}


def anonymous_mb(step: Callable[[], object]) -> float | None:
    """Most memory of the process during a call, beyond mapped files and what it had before."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None

    def now() -> int:
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("RssAnon"))
        return int(line.split()[1])

    before, peaks, done = now(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peaks[0] = max(peaks[0], now())

    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    done.set()
    watcher.join()
    return (peaks[0] - before) / 1024


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[..., tuple[Path, Path, NDArray, NDArray]]:
    @functools.cache
    def make(num_gallery: int, num_queries: int, dim: int):
        rng = np.random.default_rng(0)
        folder = tmp_path_factory.mktemp("stores")
        classes = max(2, int(_CLASSES * num_gallery))
        centres = rng.standard_normal((classes, dim), dtype=np.float32)
        paths, labels = [], []
        for name, size in (("query", num_queries), ("gallery", num_gallery)):
            labels.append(rng.integers(0, classes, size))
            rows = centres[labels[-1]] + 2 * rng.standard_normal((size, dim), dtype=np.float32)
            paths.append(folder / f"{name}.npy")
            np.save(paths[-1], rows)
        return *paths, *labels

    return make


@pytest.mark.parametrize("peer", [ours, faiss_flat], ids=lambda f: f.__name__)
def test_evaluation(benchmark, shape, peer, files):
    num_gallery, num_queries, dim = shape
    data = files(num_gallery, num_queries, dim)
    step, own = (functools.partial(f, *data) for f in (peer, ours))
    expected = own()
    # Rows may swap where faiss's float32 scores differ by rounding only.
    assert step() == pytest.approx(expected, abs=1e-4)
    memory = anonymous_mb(step)
    benchmark.extra_info["anonymous_mb"] = memory
    if peer is ours and memory is not None:
        assert memory < _CAP_MB
    benchmark.group = f"map@100, cmc of {num_queries} queries in {num_gallery}x{dim}"
    run_interleaved(
        benchmark,
        peer.__name__,
        step,
        step if peer is ours else own,
        flops=2.0 * num_queries * num_gallery * dim,
    )
