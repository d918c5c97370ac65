# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the op libraries: always the CPU one, the CUDA one where torch has CUDA."""

from __future__ import annotations

import ctypes
import warnings
from pathlib import Path

import torch

import fcl_ext
from fcl_ext import cuda_paths

_CPU_LIBRARY = "libfcl_ops.so"
_CUDA_LIBRARY = "libfcl_ops_cuda.so"

_cuda_error: str | None = "fcl_ext is not loaded yet"


def _find(name: str) -> Path | None:
    # An editable install keeps Python files and built libraries in two folders of __path__.
    for folder in fcl_ext.__path__:
        candidate = Path(folder) / name
        if candidate.is_file():
            return candidate
    return None


def load_libraries() -> None:
    """Load the op libraries.

    Raises:
        ImportError: The CPU library is missing: the package was not built.

    Warns:
        RuntimeWarning: torch has CUDA, but the CUDA kernels are missing or do not load; tensors on
            the CPU still work.
    """
    global _cuda_error  # noqa: PLW0603  (process-wide state of the loaded libraries)
    cpu = _find(_CPU_LIBRARY)
    if cpu is None:
        raise ImportError(
            f"fcl_ext: {_CPU_LIBRARY} not found in {list(fcl_ext.__path__)}; build it with "
            "`pip install --no-build-isolation .`"
        )
    torch.ops.load_library(str(cpu))
    if torch.version.cuda is None:
        _cuda_error = f"this torch ({torch.__version__}) has no CUDA"
        return
    cuda = _find(_CUDA_LIBRARY)
    if cuda is None:
        _cuda_error = f"{_CUDA_LIBRARY} was not built (FCL_CUDA=ON builds it; nvcc is needed)"
    else:
        try:
            torch.ops.load_library(str(cuda))
            cuda_paths.export(ctypes.CDLL(str(cuda)), cuda_paths.verified())
            _cuda_error = None
        except OSError as error:
            _cuda_error = f"{_CUDA_LIBRARY} does not load: {error}"
    if _cuda_error is not None:
        warnings.warn(
            f"fcl_ext: CUDA kernels are not available: {_cuda_error}. CPU tensors work.",
            RuntimeWarning,
            stacklevel=3,
        )


def has_cuda_kernels() -> bool:
    """Whether the CUDA kernels are loaded (a GPU may still be absent).

    Example:
        >>> import fcl_ext
        >>> fcl_ext.has_cuda_kernels() == (fcl_ext.cuda_error() is None)
        True
    """
    return _cuda_error is None


def cuda_error() -> str | None:
    """Why the CUDA kernels are not loaded, or None if they are."""
    return _cuda_error
