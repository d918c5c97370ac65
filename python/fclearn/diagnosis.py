# SPDX-License-Identifier: Apache-2.0
"""Whether fcl-ext works on this machine: versions, instruction set, CUDA, packages, environment."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: What was tried.
        status: ``"failed"``: something essential is broken. ``"warning"``: something is missing
            that not everyone needs.
        detail: What was found, in one line.
        remedy: What to do about it; empty where nothing is to be done.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class OptionalPackage:
    """A package that some functions need.

    Attributes:
        module: As imported.
        extra: Of fcl-ext, as in ``pip install "fcl-ext[extra]"``.
        purpose: What needs it.
    """

    module: str
    extra: str
    purpose: str


OPTIONAL_PACKAGES = (
    OptionalPackage("faiss", "cpu", "approximate graphs, faiss galleries, fcl export --index"),
    OptionalPackage("onnx", "onnx", "fcl export to ONNX"),
    OptionalPackage("timm", "timm", "encoders timm/NAME"),
    OptionalPackage(
        "sentence_transformers", "sentence-transformers", "terms in SentenceTransformerTrainer"
    ),
    OptionalPackage("lightning", "lightning", "terms in a LightningModule"),
    OptionalPackage(
        "pytorch_metric_learning", "metric-learning", "fclearn.integrations.metric_learning"
    ),
)

#: Variables that fcl-ext reads, and what each does.
ENVIRONMENT: Mapping[str, str] = {
    "FCL_CPU_ISA": "CPU kernels: portable, avx2, avx512, avx512_bf16 or amx_bf16",
    "FCL_CACHE_BYTES": "size of the last-level cache, where the system tells it wrongly",
    "FCL_CUDA_PATH": "set of CUDA kernels: simt, mma, sm90, gather or union",
    "FCL_CUDA_CACHE_BYTES": "size of the GPU's L2 cache, for walks in panels of columns",
    "FCL_CACHE": "folder of the rendered icons (default: ~/.cache/fcl-ext)",
    "FCL_METHODS": "Python modules with methods of your own, by commas: docs/own_method.md",
    "FCL_DEBUG": "1: tracebacks of errors",
    "OMP_NUM_THREADS": "threads of torch, and so of the kernels",
    "OMP_WAIT_POLICY": "PASSIVE: idle threads of torch do not spin",
}


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        versions: Of Python, fcl-ext, torch and the parts of the build.
        cpu: Instruction set chosen and those available, threads, cores.
        cuda: Whether the CUDA kernels are loaded, why not, devices, verified paths.
        packages: Optional ones: version (None: missing) and how to get them.
        environment: Values of `ENVIRONMENT`; None where unset.
        checks: What was tried.
    """

    versions: dict[str, str | None]
    cpu: dict[str, object]
    cuda: dict[str, object]
    packages: dict[str, dict[str, str | None]]
    environment: dict[str, str | None]
    checks: tuple[Check, ...]

    @property
    def broken(self) -> bool:
        """Whether something essential is."""
        return any(check.status == "failed" for check in self.checks)


def diagnose() -> Diagnosis:
    """Look at this machine and try the kernels; never raises.

    Example:
        >>> diagnosis = diagnose()
        >>> diagnosis.broken, diagnosis.cpu["isa"] in diagnosis.cpu["isas"]
        (False, True)
    """
    native, loaded = _load_kernels()
    checks = [_required_packages(), loaded]
    if native is not None:
        checks += [_kernels_agree_with_torch(), *_gpu_without_kernels(native)]
    checks.append(_cache_is_writable())
    return Diagnosis(
        _versions(native),
        {} if native is None else _cpu(),
        {} if native is None else _cuda(native),
        {item.module: _package(item) for item in OPTIONAL_PACKAGES},
        {name: os.environ.get(name) for name in ENVIRONMENT},
        tuple(checks),
    )


def _load_kernels() -> tuple[ModuleType | None, Check]:
    name = "kernels load"
    try:
        with warnings.catch_warnings():
            # Missing CUDA kernels have an entry of their own.
            warnings.simplefilter("ignore", RuntimeWarning)
            native = importlib.import_module("fcl_ext")
        compiled = importlib.import_module("fcl_ext._C")
        isa = compiled.cpu_isa()
    except Exception as error:  # whatever it is, it must be told, not raised
        remedy = "reinstall: pip install --force-reinstall --no-deps fcl-ext"
        if "FCL_CPU_ISA" in str(error):
            remedy = "unset FCL_CPU_ISA, or set it to an instruction set this CPU has"
        elif isinstance(error, ModuleNotFoundError):
            remedy = f"pip install {error.name}" if error.name == "torch" else remedy
        return None, Check(name, "failed", _line(error), remedy)
    return native, Check(name, "ok", f"CPU kernels for {isa}")


def _kernels_agree_with_torch() -> Check:
    name = "kernels compute"
    try:
        from fclearn._self_test import COMPARISONS  # noqa: PLC0415  (torch may be what is missing)

        wrong = [what for what, agrees in COMPARISONS.items() if not agrees()]
    except Exception as error:  # as above
        return Check(name, "failed", _line(error), "report this, with the output of fcl doctor")
    if wrong:
        detail = f"{', '.join(wrong)}: not what torch computes"
        return Check(name, "failed", detail, "try FCL_CPU_ISA=portable, and report this")
    return Check(name, "ok", f"{', '.join(COMPARISONS)}: as torch")


def _gpu_without_kernels(native: ModuleType) -> list[Check]:
    import torch  # noqa: PLC0415  (as above)

    if not torch.cuda.is_available():
        return []
    if native.has_cuda_kernels():
        return [Check("CUDA kernels", "ok", "loaded")]
    remedy = "build with FCL_CUDA=ON where nvcc is; CPU tensors work"
    return [Check("CUDA kernels", "warning", str(native.cuda_error()), remedy)]


def _required_packages() -> Check:
    name = "required packages"
    try:
        requirements = importlib.metadata.requires("fcl-ext") or []
    except importlib.metadata.PackageNotFoundError:
        detail = "fcl-ext is imported from its sources, not installed: not checked"
        return Check(name, "warning", detail, "pip install --no-build-isolation .")
    from packaging.requirements import Requirement  # noqa: PLC0415  (as above)

    wrong = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _installed(requirement.name)
        if found is None:
            wrong.append(f"{requirement} is missing")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement} expected, {found} found")
    if wrong:
        return Check(name, "failed", "; ".join(wrong), "pip install --upgrade fcl-ext")
    return Check(name, "ok", "all there, new enough")


def _cache_is_writable() -> Check:
    name = "cache folder"
    folder = Path(os.environ.get("FCL_CACHE") or Path.home() / ".cache" / "fcl-ext")
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Check(name, "ok", str(folder))
    remedy = "set FCL_CACHE to a folder that can be written; only the icon fonts need it"
    return Check(name, "warning", f"{folder} cannot be written", remedy)


def _versions(native: ModuleType | None) -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "fcl_ext": None,
        **{name: _installed(name) for name in ("torch", "numpy")},
    }
    if native is not None:
        compiled = importlib.import_module("fcl_ext._C")
        torch = importlib.import_module("torch")
        found |= {
            "torch": torch.__version__,  # with the build, like +cpu, which the package may not tell
            "fcl_ext": compiled.version,
            "built against torch": compiled.torch_build_version,
            "compiler": compiled.compiler,
        }
    return found


def _cpu() -> dict[str, object]:
    import torch  # noqa: PLC0415  (as above)

    compiled = importlib.import_module("fcl_ext._C")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "isa": compiled.cpu_isa(),
        "isas": list(compiled.available_cpu_isas()),
        "threads": torch.get_num_threads(),
        "usable_cores": usable,
    }


def _cuda(native: ModuleType) -> dict[str, object]:
    import torch  # noqa: PLC0415  (as above)

    paths = importlib.import_module("fcl_ext.cuda_paths")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "kernels_loaded": native.has_cuda_kernels(),
        "why_not": native.cuda_error(),
        "torch_cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(index) for index in range(count)],
        "verified_paths": [
            f"{entry.op}: {entry.path}, {entry.device}" for entry in paths.verified()
        ],
    }


def _package(item: OptionalPackage) -> dict[str, str | None]:
    version = None
    if importlib.util.find_spec(item.module) is not None:
        names = importlib.metadata.packages_distributions().get(item.module, [])
        version = next((found for name in names if (found := _installed(name))), "installed")
    return {
        "version": version,
        "for": item.purpose,
        "install": f'pip install "fcl-ext[{item.extra}]"',
    }


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
