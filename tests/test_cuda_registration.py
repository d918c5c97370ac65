# SPDX-License-Identifier: Apache-2.0
"""The CUDA library without a GPU: what it links, what torch sees of it, what its absence does.

The registration itself can only be seen in a torch that has CUDA. One build serves every torch, so
after ``make dev`` in the usual environment this file also runs in another of the same Python:
``OTHER/bin/python -m pytest tests/test_cuda_registration.py``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import fcl_ext
from support import PLAIN_IMPORTS

OPERATORS = sorted(
    name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fcl::")
)
PACKAGE = [Path(folder) for folder in fcl_ext.__path__]
LIBRARY = next(
    (f / "libfcl_ops_cuda.so" for f in PACKAGE if (f / "libfcl_ops_cuda.so").exists()), None
)
# What is done once per graph has no CUDA kernel.
CPU_ONLY = {
    "fcl::class_walk",
    "fcl::graph_prepare",
    "fcl::pack_prototypes",
    "fcl::walk_windows",
}
needs_library = pytest.mark.skipif(LIBRARY is None, reason="the CUDA library was not built")
needs_cuda_torch = pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")


def test_every_schema_is_seen():
    assert len(OPERATORS) == 21


@needs_cuda_torch
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_a_cuda_kernel(operator):
    assert fcl_ext.cuda_error() is None
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA")
    assert has_kernel == (operator not in CPU_ONLY)


@needs_library
def test_library_links_torch_cuda_alone():
    """It names torch's CUDA library, or a CUDA torch would not load it, and no CUDA runtime."""
    dynamic = subprocess.run(
        ["readelf", "--dynamic", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.*?)\]", dynamic)
    assert "libtorch_cuda.so" in needed
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if re.search("python|cudart|c10|gomp", name)]
    # A path to the link-time stand-in must not survive the installation.
    assert "RUNPATH" not in dynamic
    assert "RPATH" not in dynamic


def _calls():
    """Arguments for every operator, and the shapes that come out; None where data decide."""
    x, w, y = torch.empty(5, 4), torch.empty(7, 4), torch.empty(5, dtype=torch.int64)
    crow, col = torch.empty(6, dtype=torch.int64), torch.empty(9, dtype=torch.int32)
    wide, values, lse = torch.empty(9, dtype=torch.int64), torch.empty(9), torch.empty(5)
    row_crow, pair = torch.empty(8, dtype=torch.int64), torch.empty(2, dtype=torch.int64)
    graph = (crow, col, values, x)
    return {
        "softmax_readout": ((x, w, None, y, 2.0, True), [(5,), (5, 4)]),
        "softmax_readout_backward": (
            (x, w, None, y, lse, lse, x, 2.0, True, True, False),
            [(5, 4), (7, 4), (0, 4)],
        ),
        "class_walk": ((crow, col, values, y, 3, 0.5, 0.01, 3), [(6,), None, None]),
        "compat_loss": (
            (x, w, y, None, 2.0, 0.1, False, 0.0, True, -1, "mean", True, True),
            [(), (5, 4), (5, 4), (4, 5)],
        ),
        "compat_loss_backward": (
            (x, w, y, torch.empty(4, 5), lse, 2.0, 0.0, True, -1),
            [(7, 4)],
        ),
        "compat_loss_gradients": (
            (x, w, y, None, 2.0, 0.1, False, 0.0, True, -1, "mean"),
            [(), (5, 4), (7, 4)],
        ),
        "sparse_readout": ((x, w, y, crow, wide, values, 2.0, True), [(5,), (5, 4)]),
        "sparse_readout_backward_rows": (
            (x, w, lse, lse, row_crow, wide, values, crow, y, 2.0),
            [(7, 4)],
        ),
        "pack_prototypes": ((w, True), [(7 * 32,), (7,)]),
        "random_walk": ((*graph, 0.5, 3), [(5, 4)]),
        "random_walk_backward": ((*graph, x, 0.5, 3, True, True), [(5, 4), (9,)]),
        "random_walk_resume": ((*graph, x, 0.5, 3, 1), [(5, 4)]),
        "walk_windows": ((crow, col), [(2,), None, None, None, None]),
        "random_walk_union": (
            (
                *(pair, torch.empty(16, dtype=torch.int32), pair),
                *(torch.empty(9, dtype=torch.uint8), values, x, 0.5, 3),
            ),
            [(5, 4)],
        ),
        "random_walk_tol": ((*graph, 0.5, 1e-3, 50, "max"), [(5, 4), ()]),
        "edge_dot": ((crow, col, x, x), [(9,)]),
        "csr_transpose": ((crow, col, 7), [(8,), (9,), (9,)]),
        "graph_prepare": ((crow, col), [(5,), (6,), (9,), (9,)]),
        "knn_graph": ((x, 2, "cosine"), [(5, 2), (5, 2)]),
        "knn_graph_segments": ((x, crow, 2, "cosine"), [(5, 2), (5, 2)]),
        "knn_search": ((x, w, 2, "cosine"), [(5, 2), (5, 2)]),
    }


@pytest.mark.parametrize("operator", OPERATORS)
def test_fake_cuda_tensors(operator):
    name = operator.removeprefix("fcl::")
    # The size of a sparse result is a symbol, which the environment makes.
    with FakeTensorMode(shape_env=ShapeEnv()), torch.device("cuda"):
        arguments, shapes = _calls()[name]
        out = getattr(torch.ops.fcl, name)(*arguments)
    outputs = [out] if isinstance(out, torch.Tensor) else list(out)
    for tensor, shape in zip(outputs, shapes, strict=True):
        assert shape is None or tuple(tensor.shape) == shape
    # The number of steps is known to the host, which has waited for it.
    devices = ["cuda"] * len(outputs)
    if name == "random_walk_tol":
        devices[1] = "cpu"
    assert [t.device.type for t in outputs] == devices


def _import_copy(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Import a copy of the package in a process whose torch claims to have CUDA."""
    code = f"{PLAIN_IMPORTS}import torch; torch.version.cuda = torch.version.cuda or '13.0'; {code}"
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("state", ["missing", "corrupted"])
def test_a_bad_cuda_library_is_one_warning_and_the_cpu_works(state, tmp_path):
    package = tmp_path / "fcl_ext"
    for folder in reversed(PACKAGE):
        shutil.copytree(folder, package, dirs_exist_ok=True)
    library = package / "libfcl_ops_cuda.so"
    library.unlink(missing_ok=True)
    if state == "corrupted":
        library.write_bytes(b"not a library")
    run = _import_copy(
        tmp_path,
        "import fcl_ext; assert not fcl_ext.has_cuda_kernels(); x = torch.eye(2); "
        "print(fcl_ext.softmax_readout(x, x, scale=1.0)[0].tolist())",
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("[1.31")
    assert run.stderr.count("Warning") == 1
    reason = "was not built" if state == "missing" else "does not load"
    assert re.search(
        f"RuntimeWarning: fcl_ext: CUDA kernels are not available: .*{reason}", run.stderr
    )
    assert "CPU tensors work" in run.stderr
