# SPDX-License-Identifier: Apache-2.0
"""Memory and handles do not grow (``tools/endurance.py`` looks for longer), and full disks."""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import endurance
from fclearn import FeatureStore, Fingerprint, KnnGraph, PseudoClassifier
from fclearn._checkpoint import save_checkpoint
from fclearn.adapters import Procrustes, load_adapter
from fclearn.cli.console import one_line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROWS = torch.randn(600, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(600) % 10


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return endurance.work(tmp_path_factory.mktemp("work"))


@pytest.mark.parametrize(
    "name", ["loss", "supcon", "walk", "graph", "train", "evaluation", "files"]
)
def test_no_handle_stays_open_and_memory_stays(name, jobs):
    found = endurance.measure(jobs[name], 60)
    # What earlier tests of this process left may end meanwhile.
    assert found["files"] <= 0
    assert found["threads"] <= 0
    assert found["growth_mb"] < 30


def test_a_leak_of_handles_and_memory_is_seen(tmp_path):
    kept = []

    def leak():
        kept.append((tmp_path / "file").open("w"))
        # Fresh from the system: the allocator might have a place that was resident before.
        kept.append(mmap.mmap(-1, 1 << 20))
        kept[-1].write(b"x" * (1 << 20))

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [one.close() for one in kept])
        found = endurance.measure(leak, 40)
    assert found["files"] == 40
    assert found["growth_mb"] > 30


def write_store(folder, scale):
    columns = {"id": [str(row) for row in range(600)], "label": LABELS.numpy()}
    fingerprint = Fingerprint("old", 16, norm="none")
    FeatureStore.write(folder / "store", scale * ROWS, columns, fingerprint)


def write_graph(folder, scale):
    graph = KnnGraph.from_csr(
        torch.arange(0, 601), torch.arange(600).roll(1).int(), torch.full((600,), float(scale))
    )
    graph.save(folder / "graph")


def write_classifier(folder, scale):
    PseudoClassifier(scale * ROWS[:10], ROWS, LABELS).save(folder / "classifier")


@functools.cache
def adapter():
    return Procrustes().fit(source=ROWS, target=ROWS.flip(1))


def write_adapter(folder, _scale):
    # Fitted before anything is forked: only writing is what must work there.
    adapter().save(folder / "adapter")


def write_checkpoint(folder, scale):
    save_checkpoint(folder / "checkpoint.pt", {"epoch": 1, "history": [scale * ROWS]})


ARTIFACTS = {
    "adapter": (write_adapter, lambda folder: load_adapter(folder / "adapter").affine()[0][0, 0]),
    "checkpoint": (
        write_checkpoint,
        lambda folder: torch.load(folder / "checkpoint.pt", weights_only=True)["history"][0][0, 0],
    ),
    "store": (write_store, lambda folder: FeatureStore.open(folder / "store").features[0, 0]),
    "graph": (write_graph, lambda folder: KnnGraph.load(folder / "graph").values[0]),
    "classifier": (
        write_classifier,
        lambda folder: PseudoClassifier.load(folder / "classifier").prototypes[0, 0],
    ),
}


def attempt(write, folder, prepare, answer):
    """In a forked process: make writing fail, write, and send what was raised."""
    torch.set_num_threads(1)
    prepare()
    try:
        write(folder, 2.0)
    except Exception as error:
        answer.send((type(error).__mro__, getattr(error, "errno", None), one_line(error)))
    else:
        answer.send(None)
    # Nothing of pytest's own must run at the end of this process.
    os._exit(0)


def failure(write, folder, prepare):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=attempt, args=(write, folder, prepare, there))
    process.start()
    assert here.poll(60)
    found = here.recv()
    process.join()
    return found


def no_space():
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))


def nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


@pytest.mark.parametrize("name", ARTIFACTS)
def test_a_full_disk_leaves_what_was_there(name, tmp_path):
    write, read = ARTIFACTS[name]
    write(tmp_path, 1.0)
    before, files = read(tmp_path), sorted(path.name for path in tmp_path.iterdir())
    kinds, number, message = failure(write, tmp_path, no_space)
    assert OSError in kinds
    assert number == errno.EFBIG
    assert str(tmp_path) in message
    assert read(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == files


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("name", ARTIFACTS)
def test_a_folder_that_cannot_be_written_leaves_what_was_there(name):
    write, read = ARTIFACTS[name]
    # Not pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        folder.chmod(0o755)
        write(folder, 1.0)
        before = read(folder)
        kinds, number, message = failure(write, folder, nobody)
        assert OSError in kinds
        assert number == errno.EACCES
        assert root in message
        assert read(folder) == before
