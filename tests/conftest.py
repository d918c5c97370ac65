# SPDX-License-Identifier: Apache-2.0
"""Markers of the suite, and fixtures of more than one file."""

from __future__ import annotations

import ctypes
from pathlib import Path

import emulated
import pytest
import store_samples
import torch

import fcl_ext
from fclearn.features import FeatureStore


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA library for the host: its schemas and kernels are torch.ops.fcl_emulated.*."""
    if not emulated.CAN_BUILD:
        pytest.skip("needs a C++ compiler and the sources")
    return emulated.build(tmp_path_factory.mktemp("cuda_emulation"))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """A small feature store on disk."""
    return FeatureStore.write(
        tmp_path / "store",
        store_samples.sample_rows(),
        store_samples.MANIFEST,
        store_samples.FINGERPRINT,
    )


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
        if "needs_cuda" in report.keywords
    ]
    if skipped:
        terminalreporter.write_line(f"CUDA tests skipped: {len(skipped)}")
