# SPDX-License-Identifier: Apache-2.0
"""What the GPU measurements share: timing, rows of the table, data, the check before the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 9


@dataclass
class Row:
    """One measurement: median time, and memory beyond the inputs at its highest."""

    op: str
    shape: str
    dtype: str
    who: str
    milliseconds: float
    megabytes: float
    rate: float  # useful 1e12 operations per second, or 1e12 bytes for the walk
    unit: str


class Clock:
    """Times a function on a device, and the memory it takes there."""

    def __init__(self, device: str) -> None:
        """Choose events on CUDA, the wall clock elsewhere."""
        self.cuda = device == "cuda"

    def run(self, function: Callable[[], object]) -> tuple[float, float]:
        """Median milliseconds of ROUNDS calls, and the highest extra megabytes of one."""
        return self.run_all({"": function})[""]

    def run_all(
        self, functions: Mapping[str, Callable[[], object]]
    ) -> dict[str, tuple[float, float]]:
        """The same for several, whose rounds take turns: what slows one slows all."""
        megabytes = {name: self._extra_megabytes(function) for name, function in functions.items()}
        milliseconds: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(ROUNDS):
            for name, function in functions.items():
                milliseconds[name].append(self._once(function))
        return {
            name: (statistics.median(milliseconds[name]), megabytes[name]) for name in functions
        }

    def _extra_megabytes(self, function: Callable[[], object]) -> float:
        if not self.cuda:
            function()
            return 0.0
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def _once(self, function: Callable[[], object]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            function()
            return (time.perf_counter() - start) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


def unit_rows(rows: int, dim: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator), dim=1).to(device, dtype)


def assert_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((got.double() - expected.double()).norm() / expected.double().norm())
    if not error <= tolerance:
        raise AssertionError(f"wrong result: relative error {error:.2e} > {tolerance:.0e}")
