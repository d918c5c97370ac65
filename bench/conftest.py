# SPDX-License-Identifier: Apache-2.0
"""Options and shared measurements of the benchmarks."""

from __future__ import annotations

import platform

import pytest
import torch

from fcl_ext import _C


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--shapes``."""
    parser.addoption(
        "--shapes",
        choices=("smoke", "full", "long"),
        default="full",
        help="smoke: one tiny shape per op, for CI; full: the shapes the results are quoted for; "
        "long: shapes that take minutes for each peer, where a module has them",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests with a ``shape`` argument the SMOKE, FULL or LONG list of their module."""
    if "shape" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--shapes").upper()
        # Every module has the other two lists.
        without = ([],) if wanted == "LONG" else ()
        shapes = getattr(metafunc.module, wanted, *without)
        metafunc.parametrize("shape", shapes, ids=lambda s: "x".join(map(str, s)))


def pytest_benchmark_update_machine_info(machine_info: dict[str, object]) -> None:
    """Say what the numbers depend on."""
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["fcl_isa"] = _C.cpu_isa()
    machine_info["python"] = platform.python_version()
