# SPDX-License-Identifier: Apache-2.0
"""Markers of the suite, and fixtures of more than one file."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cli_samples
import emulated
import experiment_samples
import pytest
import store_samples
import torch
import training_samples
from hypothesis import settings

import fcl_ext
from fclearn.cli import main
from fclearn.datasets import ImageDataset
from fclearn.features import FeatureStore

# How many inputs a test with drawn ones sees: `pytest --hypothesis-profile long` for a night.
settings.register_profile("ci", max_examples=40, deadline=None)
settings.register_profile("long", max_examples=2000, deadline=None)
settings.load_profile("ci")


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA library for the host: its schemas and kernels are torch.ops.fcl_emulated.*."""
    if not emulated.CAN_BUILD:
        pytest.skip("needs a C++ compiler and the sources")
    base = tmp_path_factory.getbasetemp()
    # Each process of pytest-xdist has a folder in that of the run.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return emulated.build(run / "cuda_emulation")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """A small feature store on disk."""
    return FeatureStore.write(
        tmp_path / "store",
        store_samples.sample_rows(),
        store_samples.MANIFEST,
        store_samples.FINGERPRINT,
    )


@pytest.fixture
def fcl(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """Runs a command; its exit code, its JSON (None without) and its messages."""

    def run(*arguments: object) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return code, json.loads(output.out) if output.out else None, output.err

    return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the drawings of a few icon classes."""
    return cli_samples.write_photos(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def work(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An old and a compatible new model, and their stores: what the commands make in order."""
    root = tmp_path_factory.mktemp("work")
    for command in cli_samples.upgrade(photos, root):
        assert main(command) == 0
    return root


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing from threads, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bars() -> ImageDataset:
    """Small images of four classes that a few epochs tell apart."""
    return training_samples.bars()


@pytest.fixture(scope="session")
def pattern_images() -> ImageDataset:
    """Small images of twelve classes, for comparisons of methods."""
    return experiment_samples.pattern_images()


@pytest.fixture(scope="session")
def comparison(
    pattern_images: ImageDataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """A finished comparison of methods: its folder, which no test changes, and its records."""
    folder = tmp_path_factory.mktemp("comparison")
    return folder, experiment_samples.compare(folder, pattern_images)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip ``needs_cuda`` tests where there is no GPU; the skip count stays visible."""
    if torch.cuda.is_available() and fcl_ext.has_cuda_kernels():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device and the CUDA kernels")
    for item in items:
        if "needs_cuda" in item.keywords:
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many CUDA tests did not run, so that silence is visible."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        # A file that was skipped whole has a report without keywords.
        if "needs_cuda" in getattr(report, "keywords", ())
    ]
    if skipped:
        terminalreporter.write_line(f"CUDA tests skipped: {len(skipped)}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], Any]]:
    """Starts PostgreSQL with pgvector when first called: one server for the session."""
    started: list[Any] = []
    # Not pytest's own folder: PostgreSQL refuses to run as root, so pgserver then runs it as
    # another user, who must be let in, and pytest shuts that folder again whenever it starts.
    folder = Path(tempfile.mkdtemp(prefix="fcl-postgres-"))

    def start() -> Any:
        if not started:
            # Where pgserver locks; without it a warning is raised, which is an error here.
            os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
            import pgserver

            started.append(pgserver.get_server(folder / "data", cleanup_mode="delete"))
        return started[0]

    yield start
    for server in started:
        server.cleanup()
    shutil.rmtree(folder)
