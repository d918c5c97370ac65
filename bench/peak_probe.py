# SPDX-License-Identifier: Apache-2.0
"""Speed of the vector units and of memory at this moment: the yardstick of a noisy machine.

A shared machine's clock may halve from one second to the next. So every measurement has a probe of
the same moment beside it, and results are quoted as fractions of it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fcl_ext import _C

# Instructions a kernel set computes with, per storage dtype.
_PROBES = {
    ("avx2", torch.float32): "probe_avx2",
    ("avx512", torch.float32): "probe_avx512",
    ("avx512_bf16", torch.float32): "probe_avx512",
    ("avx512_bf16", torch.bfloat16): "probe_avx512_bf16",
    ("amx_bf16", torch.float32): "probe_avx512",
    ("amx_bf16", torch.bfloat16): "probe_amx_bf16",
}
_MILLISECONDS = 25
_PAUSE = 0.02


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    target = Path(tempfile.mkdtemp(prefix="fcl_peak_")) / "libpeak_probe.so"
    source = Path(__file__).with_suffix(".cpp")
    flags = ["-O3", "-march=native", "-shared", "-fPIC"]
    if subprocess.run([compiler, *flags, source, "-o", target], check=False).returncode != 0:
        return None
    return ctypes.CDLL(str(target))


def peak_gflops(dtype: torch.dtype = torch.float32) -> float | None:
    """GFLOP/s of multiply-adds on registers, on as many threads as torch uses; None: no probe."""
    library = _library()
    name = _PROBES.get((_C.cpu_isa(), dtype))
    if library is None or name is None:
        return None
    probe = getattr(library, name)
    probe.argtypes, probe.restype = [ctypes.c_int64], ctypes.c_double
    rounds = _rounds(name)
    # Workers of a parallel loop that just ended may spin for some milliseconds yet.
    time.sleep(_PAUSE)
    flops: list[float] = []
    seconds = _on_all_threads(lambda _: flops.append(probe(rounds)))
    return sum(flops) / seconds / 1e9


def gather_gb_per_s(rows: torch.Tensor, count: int = 200_000) -> float | None:
    """GB/s of reading random rows of a float32 matrix, on as many threads as torch uses.

    In panels of 128 columns; None where there is no compiler or no full panel.
    """
    library = _library()
    dim = rows.shape[1] // 128 * 128
    if library is None or dim == 0:
        return None
    probe = library.probe_gather
    probe.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    probe.restype = ctypes.c_float
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(rows), (threads, count), generator=generator, dtype=torch.int32)
    assert rows.is_contiguous()
    assert rows.dtype == torch.float32
    time.sleep(_PAUSE)
    seconds = _on_all_threads(
        lambda thread: probe(rows.data_ptr(), ids[thread].data_ptr(), count, rows.shape[1])
    )
    return 4e-9 * threads * count * dim / seconds


def _on_all_threads(work: Callable[[int], object]) -> float:
    """Seconds until `work` is done on every thread; it must let go of Python's lock."""
    threads = [
        threading.Thread(target=work, args=(thread,)) for thread in range(torch.get_num_threads())
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


@functools.cache
def _rounds(name: str) -> int:
    """Rounds that take about _MILLISECONDS on one thread: long beside the start of a thread."""
    probe = getattr(_library(), name)
    probe.argtypes, probe.restype = [ctypes.c_int64], ctypes.c_double
    trial = 200_000
    start = time.perf_counter()
    probe(trial)
    return max(1, int(trial * _MILLISECONDS / 1e3 / (time.perf_counter() - start)))
