# SPDX-License-Identifier: Apache-2.0
"""Fair comparison on a noisy machine: every round of a peer has a round of ours beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from peak_probe import peak_gflops

ROUNDS = 8


def run_interleaved(
    benchmark,
    peer: str,
    step: Callable[[], object],
    ours: Callable[[], object],
    *,
    flops: float,
    dtype: torch.dtype = torch.float32,
    repeat: int = 1,
) -> None:
    """Measure ``step`` by pytest-benchmark, with a peak probe and ``ours`` before every round.

    Args:
        benchmark: The fixture; its ``extra_info`` gets ``ratio`` (median over rounds of the time of
            ``step`` over that of ``ours``), ``peak_fraction`` (useful speed over the probes around
            the round) and ``extra_memory_mb``.
        peer: Name of ``step`` in the results.
        step: What is measured.
        ours: What it is compared with; ``step`` itself gives ratio 1 without a second run.
        flops: Useful operations of one call.
        dtype: Of the probe.
        repeat: Calls per round, for calls too short for the clock.
    """
    ours_seconds: list[float] = []
    step_seconds: list[float] = []
    peaks: list[float | None] = []

    def setup() -> None:
        if ours is not step:
            start = time.perf_counter()
            for _ in range(repeat):
                ours()
            ours_seconds.append((time.perf_counter() - start) / repeat)
        peaks.append(peak_gflops(dtype))

    def timed() -> None:
        start = time.perf_counter()
        for _ in range(repeat):
            step()
        step_seconds.append((time.perf_counter() - start) / repeat)

    step()
    ours()
    memory = extra_memory_mb(step)
    benchmark.pedantic(timed, setup=setup, rounds=ROUNDS)
    peaks.append(peak_gflops(dtype))
    info = benchmark.extra_info
    info["peer"] = peer
    info["seconds"] = statistics.median(step_seconds)
    info["ratio"] = 1.0
    if ours is not step:
        pairs = zip(step_seconds, ours_seconds, strict=True)
        info["ratio"] = statistics.median(theirs / mine for theirs, mine in pairs)
    around = [
        2 * flops / seconds / 1e9 / (before + after)
        for seconds, before, after in zip(step_seconds, peaks, peaks[1:], strict=False)
        if before is not None and after is not None
    ]
    info["peak_fraction"] = statistics.median(around) if around else None
    info["extra_memory_mb"] = memory


def extra_memory_mb(step: Callable[[], object]) -> float | None:
    """Peak resident memory of one call above what is resident before it, in MB (Linux)."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")  # forget the peak
    except OSError:
        return None

    def kilobytes(field: str) -> int:
        (line,) = (row for row in status.read_text().splitlines() if row.startswith(field))
        return int(line.split()[1])

    before = kilobytes("VmRSS")
    step()
    return (kilobytes("VmHWM") - before) / 1024
