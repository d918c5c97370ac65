# SPDX-License-Identifier: Apache-2.0
"""docs/cuda_resources.txt is of these CUDA kernels, on all architectures, and none has a fault.

No compiler is needed: the report holds digests of what it was compiled from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cuda_kernels import ARCHITECTURES, Kernel, tensor_instruction
from cuda_report import Report, digest, gaps, read, render

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "docs" / "cuda_resources.txt"
SOURCES = sorted((ROOT / "csrc" / "ops" / "cuda").glob("*.cu"))


@pytest.fixture(scope="module")
def committed() -> Report:
    return read(COMMITTED.read_text(encoding="utf-8"))


def test_the_committed_report_is_of_these_sources_and_all_architectures(committed):
    """Where this fails, kernels have changed: ``make cuda-resources`` on a machine with nvcc."""
    assert gaps(committed, SOURCES, ARCHITECTURES) == []


def test_no_committed_kernel_has_a_fault(committed):
    assert [fault for kernel in committed.kernels for fault in kernel.faults()] == []


def test_the_committed_report_reads_back(committed):
    assert render(committed) == COMMITTED.read_text(encoding="utf-8")


def test_tensor_cores_are_used_on_every_architecture(committed):
    """As many instructions as the products of a tile need, whichever the architecture."""
    counts: dict[tuple[str, str], dict[str, list[int]]] = {}
    for k in committed.kernels:
        if tensor_instruction(k.name, k.architecture) == "HMMA":
            of_kernel = counts.setdefault((k.file, k.name), {})
            of_kernel.setdefault(k.architecture, []).append(k.tensor_instructions)
    assert len(counts) > 20
    for of_kernel in counts.values():
        assert set(of_kernel) == set(ARCHITECTURES)
        assert min(n for found in of_kernel.values() for n in found) >= 16


def test_gaps_of_a_report_are_named(committed):
    """Each way in which a report can be of something else than the sources."""
    source = next(s for s in SOURCES if s.name == "walk_union.cu")
    whole = [k for k in committed.kernels if k.file == source.name]
    now = {source.name: digest(source)}

    def found(kernels: list[Kernel], digests: dict[str, str] = now) -> list[str]:
        return gaps(Report("nvcc", kernels, digests), [source], ARCHITECTURES)

    assert found(whole) == []
    assert found(whole, {source.name: "0" * 16}) == [
        "walk_union.cu: changed since it was compiled for the report"
    ]
    assert found(whole, now | {"gone.cu": "0" * 16}) == ["gone.cu: no such file"]
    lacking = [k for k in whole if k.architecture != "89"]
    assert found(lacking) == [f"walk_union.cu: 0 kernels on sm_89, {len(lacking) // 4} on another"]
    renamed = [replace(k, name="x") if k.architecture == "120" else k for k in whole]
    assert "other names" in found(renamed)[0]
    uncounted = [replace(k, tensor_instructions=None) for k in whole]
    assert all("not counted" in gap for gap in found(uncounted))
    assert found(uncounted)


def test_digest_sees_headers_and_code_not_comments(tmp_path, monkeypatch):
    monkeypatch.setattr("cuda_report.ROOT", tmp_path)
    (tmp_path / "csrc" / "common").mkdir(parents=True)
    source, header = tmp_path / "csrc" / "step.cu", tmp_path / "csrc" / "common" / "inner.h"
    outer = tmp_path / "csrc" / "common" / "outer.h"
    source.write_text('#include <cmath>\n#include "common/outer.h"\nint a;\n', encoding="utf-8")
    outer.write_text('#include "common/inner.h"\n', encoding="utf-8")
    header.write_text("// Says why.\nint b;\n", encoding="utf-8")
    first = digest(source)
    header.write_text("// Says so better.\nint b;\n", encoding="utf-8")
    assert digest(source) == first
    header.write_text("int b = 1;\n", encoding="utf-8")
    assert digest(source) != first
