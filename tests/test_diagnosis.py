# SPDX-License-Identifier: Apache-2.0
"""``fcl doctor``: what it finds, and that it finds what is broken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fcl_ext
from fclearn import diagnosis
from fclearn.cli import main
from fclearn.diagnosis import ENVIRONMENT, OPTIONAL_PACKAGES, diagnose

ROOT = Path(__file__).parents[1]


def checks(found):
    return {check.name: check for check in found.checks}


def test_a_sound_installation_is_not_broken():
    found = diagnose()
    assert not found.broken
    assert found.versions["torch"] == torch.__version__
    assert found.versions["fcl_ext"] == fcl_ext.__version__
    assert found.cpu["threads"] == torch.get_num_threads()
    assert found.cuda["kernels_loaded"] == fcl_ext.has_cuda_kernels()
    assert found.cuda["why_not"] == fcl_ext.cuda_error()
    assert checks(found)["kernels compute"].status == "ok"


def test_instruction_sets_are_in_order_and_hold_the_chosen_one():
    isas = diagnose().cpu["isas"]
    assert isas == ["portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"][: len(isas)]
    assert diagnose().cpu["isa"] == os.environ.get("FCL_CPU_ISA", isas[-1])


def doctor_in(environment):
    """Exit code and JSON of the command in a process of its own."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    run = subprocess.run(
        [sys.executable, "-m", "fclearn.cli", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, json.loads(run.stdout)


def test_an_instruction_set_is_taken_and_an_unknown_one_is_broken():
    code, found = doctor_in({"FCL_CPU_ISA": "portable"})
    assert (code, found["cpu"]["isa"]) == (0, "portable")
    code, found = doctor_in({"FCL_CPU_ISA": "mmx"})
    assert (code, found["broken"]) == (1, True)
    failed = [check for check in found["checks"] if check["status"] == "failed"]
    assert [check["name"] for check in failed] == ["kernels load"]
    assert "got mmx" in failed[0]["detail"]
    assert "unset FCL_CPU_ISA" in failed[0]["remedy"]
    assert found["versions"]["torch"]  # what can be said is still said


def test_a_wrong_kernel_is_found(monkeypatch):
    right = fcl_ext.compat_loss
    monkeypatch.setattr(fcl_ext, "compat_loss", lambda *a, **k: 1.01 * right(*a, **k))
    found = checks(diagnose())["kernels compute"]
    assert found.status == "failed"
    assert found.detail == "compat_loss: not what torch computes"


def test_a_kernel_that_raises_is_found(monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(fcl_ext, "random_walk", fail)
    found = checks(diagnose())["kernels compute"]
    assert (found.status, found.detail) == ("failed", "RuntimeError: no luck")


def test_required_packages_missing_or_too_old(monkeypatch):
    wanted = ["nowhere-to-be-found>=1", "numpy>=9999", "torch>=2.10", 'x>=1; extra == "test"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: wanted)
    found = checks(diagnose())["required packages"]
    assert found.status == "failed"
    version = importlib.metadata.version("numpy")
    assert found.detail == (
        f"nowhere-to-be-found>=1 is missing; numpy>=9999 expected, {version} found"
    )


def test_a_gpu_without_kernels_is_a_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(fcl_ext, "has_cuda_kernels", lambda: False)
    monkeypatch.setattr(fcl_ext, "cuda_error", lambda: "not built")
    found = diagnose()
    assert checks(found)["CUDA kernels"].detail == "not built"
    assert not found.broken


def test_a_cache_folder_that_cannot_be_made_is_a_warning(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FCL_CACHE", str(tmp_path / "file" / "below"))
    found = checks(diagnose())["cache folder"]
    assert found.status == "warning"
    monkeypatch.setenv("FCL_CACHE", str(tmp_path / "new" / "below"))
    assert checks(diagnose())["cache folder"].status == "ok"


def test_missing_optional_packages_say_how_to_get_them(monkeypatch, capsys):
    missing = diagnosis.OptionalPackage("nowhere_to_be_found", "cpu", "nothing")
    monkeypatch.setattr(diagnosis, "OPTIONAL_PACKAGES", (missing,))
    assert main(["doctor"]) == 0
    assert (
        'nowhere_to_be_found: missing; pip install "fcl-ext[cpu]" (nothing)'
        in capsys.readouterr().out
    )


def test_optional_packages_are_extras():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for item in OPTIONAL_PACKAGES:
        name = item.module.replace("_", "-")
        assert re.search(rf'^{item.extra} = \["{name}', project, re.MULTILINE)


def test_every_variable_the_sources_read_is_listed():
    read = set()
    for folder, pattern in (("csrc", r'getenv\("(\w+)"'), ("python", r'environ\.get\("(FCL_\w+)"')):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".cpp", ".h", ".py"}:
                read |= set(re.findall(pattern, path.read_text(encoding="utf-8")))
    assert {"FCL_CPU_ISA", "FCL_CACHE"} <= read
    assert read <= set(ENVIRONMENT)


@pytest.mark.parametrize("name", ["FCL_CPU_ISA", "FCL_CACHE_BYTES"])
def test_values_of_variables_are_told(name, monkeypatch):
    monkeypatch.setenv(name, "portable")
    assert diagnose().environment[name] == "portable"
