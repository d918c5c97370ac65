# SPDX-License-Identifier: Apache-2.0
"""Folders of reports: written again one by one, or put side by side on one page."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jinja2

from fclearn.features.folder import FEATURES, FINGERPRINT
from fclearn.report._files import dump, load, with_facts, write_files
from fclearn.report._sections import Section, command, render_sections
from fclearn.report._side_by_side import chains_section, upgrades_section
from fclearn.report.chains import CHAIN, chain_section, rebuild_chain
from fclearn.report.comparison import Run, check_comparable, paired_differences
from fclearn.report.plans import PLAN_FILE, plan_section, write_plan_page
from fclearn.report.probes import PROBE, probe_section, rebuild_probe
from fclearn.report.writer import rebuild_report

COMPARISON_FILE = "comparison.json"
UPGRADE, PLAN, COMPARISON = "upgrade", "plan", "comparison"
_KINDS = (UPGRADE, CHAIN, PROBE, PLAN)
#: Files with numbers that only one kind has.
_NUMBERS = {PLAN_FILE: PLAN, COMPARISON_FILE: COMPARISON}


def rebuild(run_dir: str | os.PathLike[str]) -> dict[str, object]:
    """Write the page of one run again: of an upgrade, a chain, a probe, or a plan.

    Args:
        run_dir: Folder of `write_report`, `write_chain_report`, `write_probe_report`, or of
            ``fcl plan``.

    Returns:
        Its numbers.

    Raises:
        FileNotFoundError: No numbers there.
        ValueError: Not the files of a report.
    """
    run = _open(Path(run_dir))
    if run.kind == UPGRADE:
        return rebuild_report(run_dir)
    if run.kind == CHAIN:
        rebuild_chain(run.folder, run.data)
    elif run.kind == PROBE:
        rebuild_probe(run.folder, run.data)
    else:
        write_plan_page(run.folder, run.data)
    return dict(run.data)


def check_report_folder(output_dir: str | os.PathLike[str], kind: str) -> None:
    """Refuse a folder with the page of another kind: every kind has its own in ``report.html``.

    Nor may it be a feature store, which would be none any more with other files in it. A page of
    the same kind is that of an earlier run of the same command, which is replaced.

    Args:
        output_dir: Where the report will go; need not be there.
        kind: `UPGRADE`, ``CHAIN``, ``PROBE``, `PLAN` or `COMPARISON`.

    Raises:
        ValueError: A file, a feature store, a report of another kind, or a page that is none of
            ours.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder for the report, found a file")
    if any((folder / name).exists() for name in (FEATURES, FINGERPRINT)):
        raise ValueError(f"{folder}: expected a folder for the report, found a feature store")
    found = [kind for name, kind in _NUMBERS.items() if (folder / name).is_file()]
    if (folder / "report.json").is_file():
        found.append(_open(folder).kind)
    # The page comes after its numbers, so that one without any was written by somebody else.
    if not found and (folder / "report.html").exists():
        found.append("unknown")
    for other in found:
        if other != kind:
            raise ValueError(
                f"{folder}: expected a folder without another report, as both would be its "
                f"report.html, found one of kind {other!r}, wanted {kind!r}: give another folder"
            )


def write_comparison(
    run_dirs: Sequence[str | os.PathLike[str]], output_dir: str | os.PathLike[str]
) -> dict[str, object]:
    """Write ``report.html`` of several runs side by side, and ``comparison.json``.

    Upgrades stand in one table, the first being what others are compared with; so do chains. Both
    must have measured the same queries and gallery. Every chain, every probe and every plan
    has a section of its own, too.

    Args:
        run_dirs: Folders as in `rebuild`, two or more.
        output_dir: Folder to write to; none of them.

    Returns:
        The content of ``comparison.json``.

    Raises:
        FileNotFoundError: A folder without numbers.
        ValueError: Fewer than two folders, one twice, runs that measured something else (the two
            and what differs are named), files that are not those of reports; as
            `check_report_folder`.
    """
    folders, target = [Path(one) for one in run_dirs], Path(output_dir)
    if len({folder.resolve() for folder in folders}) != len(folders) or len(folders) < 2:
        raise ValueError(f"runs: expected two or more folders, each once, got {len(folders)}")
    if target.resolve() in {folder.resolve() for folder in folders}:
        raise ValueError(
            f"{target}: expected a folder other than the runs', which stay as they are"
        )
    check_report_folder(target, COMPARISON)
    runs = [_open(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    by_kind = {kind: [run for run in runs if run.kind == kind] for kind in _KINDS}
    try:
        sections, differences = _sections(by_kind)
    except (KeyError, TypeError, AttributeError, jinja2.TemplateError) as error:
        names = ", ".join(str(folder) for folder in folders)
        raise ValueError(
            f"{names}: one is not the folder of a report by this release: "
            f"{type(error).__name__}: {error}"
        ) from error
    described = [{"name": run.name, "kind": run.kind, "folder": str(run.folder)} for run in runs]
    data = with_facts({"runs": described, "differences": differences}, None)
    page = render_sections(
        sections,
        {"title": f"{len(runs)} runs side by side", "command": _command(folders, target)},
        kind="comparison",
        hidden=(),
        numbers_file=COMPARISON_FILE,
    )
    write_files(target, {COMPARISON_FILE: dump(data), "report.html": page})
    return data


def _sections(by_kind: dict[str, list[Run]]) -> tuple[list[Section], list[dict[str, object]]]:
    sections: list[Section] = []
    differences: list[dict[str, object]] = []
    upgrades, chains = by_kind[UPGRADE], by_kind[CHAIN]
    if len(upgrades) > 1:
        check_comparable(upgrades)
    if upgrades:
        found, without = paired_differences(upgrades)
        differences = [{**asdict(one), "test": asdict(one.test)} for one in found]
        sections.append(upgrades_section(upgrades, found, without))
    if len(chains) > 1:
        check_comparable(chains)
        sections.append(chains_section(chains))
    sections += [chain_section(run.data, f"Chain {run.name}") for run in chains]
    sections += [probe_section(run.data, f"Probe {run.name}") for run in by_kind[PROBE]]
    sections += [plan_section(run.data, f"Backfill {run.name}") for run in by_kind[PLAN]]
    again: Section = {
        "title": "The runs",
        "blocks": [
            command(str(run.data.get("command") or f"# {run.folder}: no command recorded"))
            for kind in by_kind
            for run in by_kind[kind]
        ],
    }
    return [*sections, again], differences


def _open(folder: Path, name: str = "") -> Run:
    if (folder / "report.json").is_file():
        data = load(folder / "report.json")
        if not isinstance(data, dict):
            raise ValueError(f"{folder}: report.json is not that of a report: not an object")
        kind = data.get("kind", UPGRADE)
        if kind not in {UPGRADE, CHAIN, PROBE}:
            raise ValueError(f"{folder}: report.json is not that of a report: kind {kind!r}")
        return Run(name, folder, kind, data)
    if (folder / PLAN_FILE).is_file():
        data = load(folder / PLAN_FILE)
        if isinstance(data, dict):
            return Run(name, folder, PLAN, data)
    raise FileNotFoundError(
        f"{folder}: expected the folder of a report, found no report.json, nor the {PLAN_FILE} of "
        "a plan"
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _command(folders: Sequence[Path], target: Path) -> str:
    return shlex.join(["fcl", "report", *map(str, folders), "--out", str(target)])
