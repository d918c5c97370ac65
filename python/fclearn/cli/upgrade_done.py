# SPDX-License-Identifier: Apache-2.0
"""What is in the folder of an upgrade before it runs: steps that have ended, or other things."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from fclearn.cli.train_run import check_same_run
from fclearn.config import TrainRunConfig, load_config
from fclearn.features.folder import FINGERPRINT

REPORT = "report.json"
_STORES = ("--old-query", "--new-query", "--independent-query")


def check_configs(runs: Mapping[Path, TrainRunConfig]) -> None:
    """Refuse to write configurations over other files, or over those of other settings.

    Args:
        runs: What each file is to hold.

    Raises:
        ValueError: A file that is not the configuration of a training into the same folder; a
            training that was begun with other settings.
    """
    for path, run in runs.items():
        if path.exists() and not _is_config_of(path, run.output):
            raise ValueError(
                f"output: {path}: expected nothing or the configuration of a training into "
                f"{run.output}, found another file: give another output"
            )
        check_same_run(run, Path(run.output))


def is_of_these(made: Path, images: Path) -> bool:
    """Whether a file is there that is younger than the last change to the folders of the images.

    That takes no list of a million files. Where it is not, the command looks closer and says so.

    Args:
        made: File that a training or an embedding writes at its end.
        images: Folder with one folder per class; images added, renamed or removed change theirs.
    """
    if not made.is_file():
        return False
    written = made.stat().st_mtime_ns
    folders = [images, *(path for path in images.iterdir() if path.is_dir())]
    return all(folder.stat().st_mtime_ns <= written for folder in folders)


def is_reported(report: Path, stores: Sequence[Path]) -> bool:
    """Whether a report of these stores is there and none of them is newer.

    Args:
        report: Folder of the report.
        stores: Old, new and independent queries.
    """
    file = report / REPORT
    if not file.is_file() or _stores_of(file) != [str(store) for store in stores]:
        return False
    written = file.stat().st_mtime_ns
    prints = [store / FINGERPRINT for store in stores]
    return all(one.is_file() and one.stat().st_mtime_ns <= written for one in prints)


def check_report(report: Path, stores: Sequence[Path]) -> None:
    """Refuse to write a report over one of other stores.

    Args:
        report: Folder of the report.
        stores: Old, new and independent queries.

    Raises:
        ValueError: Such a report.
    """
    file = report / REPORT
    if not file.is_file():
        return
    found, wanted = _stores_of(file), [str(store) for store in stores]
    if found != wanted:
        told = ", ".join(found) if found else "something else"
        raise ValueError(
            f"output: {report}: expected nothing or a report on {', '.join(wanted)}, found one on "
            f"{told}: give another output, or remove it"
        )


def _is_config_of(path: Path, output: str) -> bool:
    try:
        found = load_config(TrainRunConfig, path)
    except (OSError, ValueError, TypeError):
        return False
    return Path(found.output).resolve() == Path(output).resolve()


def _stores_of(report: Path) -> list[str]:
    """The stores in the command that a report was made by; empty where it does not say."""
    try:
        words = shlex.split(json.loads(report.read_text(encoding="utf-8"))["command"])
        return [words[words.index(option) + 1] for option in _STORES]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return []
