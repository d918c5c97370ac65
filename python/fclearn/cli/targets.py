# SPDX-License-Identifier: Apache-2.0
"""What a verb may write over: nothing, unless it is told to, and then its own kind alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

#: Files that these verbs write: their names in a sentence, and what their headers say.
_KINDS = {"graph": ("a graph", "fclearn.KnnGraph"), "adapter": ("an adapter", "fclearn.Adapter")}

ReplaceFlag = Annotated[
    bool,
    typer.Option(
        "--replace", help="Replace what is there, if it is of the same kind; else it is refused."
    ),
]


def check_store_target(out: Path, *, replace: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse to write a feature store where something is; to be asked before any work is done.

    A store by a model that is gone cannot be made again. What an unfinished run keeps beside
    ``out`` is not in the way: the same command resumes.

    Args:
        out: Folder of the store to be; an empty one counts as nothing.
        replace: Whether a feature store may be there.
        inputs: What the command reads.

    Raises:
        ValueError: An input; a feature store without ``replace``; with it, too, anything else.
    """
    from fclearn.features.folder import check_target, read_fingerprint

    _check_no_input(out, inputs)
    target = check_target(out)
    if not target.is_dir() or not any(target.iterdir()):
        return
    try:
        found = f"the feature store of model {read_fingerprint(target).model!r}"
    except ValueError as error:
        raise ValueError(
            f"--out: {out}: expected nothing or a feature store to replace, found a folder with "
            f"files of one that is not whole: {error}"
        ) from error
    _check_wanted(out, found, replace=replace)


def store_source(store: Path, *given: object) -> str:
    """A digest of what a command makes of a store: of its files as they are, and of options.

    Args:
        store: The feature store that is read.
        given: Other files that are read, as paths, and options, as anything that has a text.
    """
    from fclearn.features.folder import FEATURES, FINGERPRINT
    from fclearn.features.manifest import FILES

    names = (FEATURES, FINGERPRINT, *FILES.values())
    files = [path for name in names if (path := store / name).is_file()]
    files += [one for one in given if isinstance(one, Path)]
    stats = [(path, path.stat()) for path in files]
    facts = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    options = [one for one in given if not isinstance(one, Path)]
    return hashlib.sha256(repr((facts, options)).encode()).hexdigest()[:32]


def is_made(out: Path, source: str) -> bool:
    """Whether a whole feature store is there that was made of this source and nothing else.

    Args:
        out: Folder of the store to be.
        source: As the `FeatureWriter` is told that makes it.
    """
    from fclearn.features import FeatureStore
    from fclearn.features.folder import read_source

    if read_source(out) != source:
        return False
    try:
        FeatureStore.open(out)
    except (OSError, ValueError):
        return False
    return True


def check_file_target(out: Path, kind: str, *, replace: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse to write a safetensors file where something is; to be asked before any work is done.

    Args:
        out: File to be.
        kind: ``"graph"`` or ``"adapter"``.
        replace: Whether a file of this kind may be there.
        inputs: What the command reads.

    Raises:
        ValueError: An input; a file of this kind without ``replace``; with it, too, a folder or
            another file.
    """
    from fclearn._tensor_files import has_kind

    _check_no_input(out, inputs)
    if out.is_dir():
        raise ValueError(f"--out: {out}: expected a name for the {kind} file, found a folder")
    if not out.exists():
        return
    named, header = _KINDS[kind]
    if not has_kind(out, header):
        raise ValueError(
            f"--out: {out}: expected nothing or {named} to replace, found another file"
        )
    _check_wanted(out, named, replace=replace)


def check_plan_target(out: Path, *, replace: bool) -> None:
    """Refuse to write a plan where one is; to be asked before any work is done.

    Other files in the folder, such as lists of what is done, are not in the way.

    Args:
        out: Folder of the plan to be.
        replace: Whether a plan may be there.

    Raises:
        ValueError: A plan without ``replace``; with it, too, a file, a feature store, a report of
            another kind, or files under the names of a plan's that are not those of one.
    """
    from fclearn.backfill.files import COLUMNS
    from fclearn.cli.plan_run import CALIBRATIONS, CURVE_PICTURE, PLAN_TABLE
    from fclearn.report.plans import PLAN_FILE
    from fclearn.report.runs import PLAN, check_report_folder

    check_report_folder(out, PLAN)
    table, numbers = out / PLAN_TABLE, out / PLAN_FILE
    # A run writes its table first: one that was stopped right then left a plan, too.
    is_plan = _holds_plan(numbers) or _first_line(table) == ",".join(COLUMNS)
    others = [table, numbers, out / CURVE_PICTURE, *sorted(out.glob(CALIBRATIONS))]
    for path in others:
        if path.exists() and not is_plan:
            raise ValueError(
                f"--out: {out}: expected nothing or a plan to replace, found another {path.name}"
            )
    if is_plan:
        _check_wanted(out, "a plan", replace=replace)


def _holds_plan(numbers: Path) -> bool:
    try:
        found = json.loads(numbers.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"verdict", "curve"} <= found.keys()


def _first_line(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(1000).rstrip("\n")


def _check_no_input(out: Path, inputs: Iterable[Path]) -> None:
    for path in inputs:
        if path.exists() and out.exists() and out.samefile(path):
            raise ValueError(
                f"--out: expected another name than {path}, which is read and stays as it is"
            )


def _check_wanted(out: Path, found: str, *, replace: bool) -> None:
    if not replace:
        raise ValueError(
            f"--out: {out}: expected nothing there, found {found}: give another name, or --replace"
        )
