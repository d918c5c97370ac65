# SPDX-License-Identifier: Apache-2.0
"""Runs tests on a build of the CPU library with gcc's sanitizers.

``address``: AddressSanitizer and UndefinedBehaviorSanitizer. ``thread``: ThreadSanitizer; loops
then run on threads that it understands (``csrc/common/parallel_threads.h``), and nothing has to be
suppressed. Only our library is instrumented; Python and torch are as they are.

    python tools/sanitize.py address            # build, then the tests of all operators
    python tools/sanitize.py thread tests/test_random_walk.py -k tol
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = {"address": "address,undefined", "thread": "thread"}
RUNTIME = {"address": "libasan.so", "thread": "libtsan.so"}
#: Tests that call the operators; those of fclearn reach the same code through them.
TESTS = (
    *("class_walk", "compat_loss", "compat_losses", "compat_supcon", "csr_transpose", "edge_dot"),
    *("graph_prepare", "knn_graph", "knn_graph_segments", "knn_search", "losses"),
    *("pack_prototypes", "random_walk", "random_walk_bf16", "readout_sets"),
    *("softmax_readout", "softmax_readout_split", "sparse_readout", "walk_panels"),
)
#: Not run: torch.compile starts a compiler of its own; the GPU is emulated by another library.
DESELECT = "not compile and not opcheck and not emulat"
# sys.path is PYTHONPATH alone and an editable install's import hook is gone, so that the copy with
# the instrumented library is what is tested; if it is not, nothing is.
RUNNER = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__name__.startswith("ScikitBuild")]
import fcl_ext, pytest
if not fcl_ext.__file__.startswith(sys.argv[1]):
    sys.exit(f"tests would not see the instrumented library, but {fcl_ext.__file__}")
sys.exit(pytest.main(sys.argv[2:]))
"""


def build(kind: str, folder: Path) -> Path:
    """Compile with the sanitizer; returns the folder to put on the import path."""
    pybind11 = subprocess.check_output(
        [sys.executable, "-m", "pybind11", "--cmakedir"], text=True
    ).strip()
    options = {
        "FCL_SANITIZE": FLAGS[kind],
        "FCL_CUDA": "OFF",
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",
        # Without NDEBUG: assertions hold here too.
        "CMAKE_CXX_FLAGS_RELWITHDEBINFO": "-O1 -g1",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11,
        "SKBUILD_PROJECT_VERSION": "0",
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    run = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *defines]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder)], check=True)
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "fcl_ext", tree / "fcl_ext", ignore=ignore)
    command = ["cmake", "--install", str(folder), "--prefix", str(tree)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return tree


def environment(kind: str, tree: Path) -> dict[str, str]:
    """Variables under which an instrumented library is loaded by a Python that is not."""
    # The C++ runtime too: one that comes later than the sanitizer's start has its throw not found.
    libraries = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in (RUNTIME[kind], "libstdc++.so.6")
    ]
    # Leaks of an interpreter at exit are not ours. A test asks for more memory than there is.
    address = "detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=1"
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": address,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1",
        "PYTHONPATH": os.pathsep.join(map(str, (tree, ROOT / "python", ROOT / "tests"))),
    }


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=FLAGS)
    parser.add_argument("--build-only", action="store_true")
    known, pytest_arguments = parser.parse_known_args()
    tree = build(known.kind, ROOT / "build" / f"sanitize-{known.kind}")
    if known.build_only:
        return 0
    if not any(argument.startswith("tests") for argument in pytest_arguments):
        pytest_arguments += [f"tests/test_{name}.py" for name in TESTS]
    if "-k" not in pytest_arguments:
        pytest_arguments += ["-k", DESELECT]
    # ThreadSanitizer needs its shadow memory where a randomised layout may have put something.
    fixed_layout = ["setarch", platform.machine(), "--addr-no-randomize"]
    # Reports go to the terminal, past pytest's capture, before the process ends.
    options = ["-q", "-x", "--capture=sys"]
    command = [sys.executable, "-c", RUNNER, str(tree), *options, *pytest_arguments]
    variables = environment(known.kind, tree)
    return subprocess.run(
        [*fixed_layout, *command], cwd=ROOT, env=variables, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
