# SPDX-License-Identifier: Apache-2.0
"""Verb ``doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from fclearn.cli.console import JsonFlag, emit

if TYPE_CHECKING:
    from fclearn.diagnosis import Diagnosis


def doctor(json: JsonFlag = False) -> None:
    """Say what of fcl-ext works on this machine, what does not, and how to mend it.

    Versions, the instruction set the CPU kernels run on, whether the CUDA kernels are loaded and
    why not, optional packages that are missing, the environment variables that fcl-ext reads. The
    kernels are tried on a small problem. Exit code 1 when something essential is broken.

    \b
    Examples:
      fcl doctor
      fcl doctor --json
      FCL_CPU_ISA=avx2 fcl doctor
    """
    from fclearn.diagnosis import diagnose

    diagnosis = diagnose()
    if json:
        emit({"broken": diagnosis.broken, **asdict(diagnosis)})
    else:
        print("\n".join(_lines(diagnosis)))
    if diagnosis.broken:
        raise typer.Exit(1)


def _lines(diagnosis: Diagnosis) -> list[str]:
    from fclearn.diagnosis import ENVIRONMENT

    lines = []
    for title, facts in (
        ("versions", diagnosis.versions),
        ("CPU", diagnosis.cpu),
        ("CUDA", diagnosis.cuda),
    ):
        lines += [title, *_facts(facts), ""]
    lines.append("optional packages")
    for module, facts in diagnosis.packages.items():
        state = facts["version"] or f"missing; {facts['install']}"
        lines.append(f"  {module}: {state} ({facts['for']})")
    lines += ["", "environment"]
    for name, value in diagnosis.environment.items():
        lines.append(f"  {name}={'' if value is None else value} ({ENVIRONMENT[name]})")
    lines += ["", "checks"]
    for check in diagnosis.checks:
        remedy = f" -> {check.remedy}" if check.remedy else ""
        lines.append(f"  {check.status}: {check.name}: {check.detail}{remedy}")
    return lines


def _facts(facts: Mapping[str, object]) -> list[str]:
    return [f"  {name.replace('_', ' ')}: {_text(value)}" for name, value in facts.items()]


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
