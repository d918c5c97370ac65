# SPDX-License-Identifier: Apache-2.0
"""One JSON file per run of the comparison: written whole or not at all, checked when read."""

from __future__ import annotations

import base64
import json
import os
import platform
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

import fcl_ext
from fclearn._files import replacing
from fclearn.evaluation import CompatibilityReport
from fclearn.experiments.contenders import Contender
from fclearn.experiments.settings import BenchConfig

Record = dict[str, Any]

# Raise when the content of the files changes: those of another version are run again.
_FORMAT = 2
_DIGITS = 6
#: Kept for every query, so that methods can be compared query by query.
PAIRED_ROWS, PAIRED_METRICS = ("new/old", "new/new"), ("map", "cmc@1")
_STEPS = 2**16 - 1


def software_versions() -> dict[str, str]:
    """Of what results depend on."""
    return {
        "fcl_ext": fcl_ext.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def run_config(config: BenchConfig, spec: Contender) -> Record:
    """All that decides about a run: setting, seed, method and its own settings."""
    return {**config.to_dict(), "method": spec.name, "settings": dict(spec.defaults)}


def record_path(folder: Path, method: str, seed: int) -> Path:
    """Where the result of a run lies."""
    return folder / f"{method}-seed{seed}.json"


def make_record(
    config: BenchConfig,
    spec: Contender,
    *,
    data: Mapping[str, object],
    report: CompatibilityReport,
    ceiling: Mapping[str, object],
    train_seconds: float,
) -> Record:
    """The result of a run, with everything needed to tell it from others.

    Args:
        config: The setting, with the run's seed.
        spec: The method, at its defaults, or the map.
        data: Fingerprint and sizes.
        report: Metrics with intervals over queries.
        ceiling: Of the old space, by metric.
        train_seconds: Of training alone, evaluation left out.
    """
    numbers = report.to_dict()
    del numbers["verdict"]  # follows from the numbers
    result = {
        "format": _FORMAT,
        "config": run_config(config, spec),
        "title": spec.title,
        "given": [need.name.lower() for need in spec.needs],
        "data": dict(data),
        "report": numbers,
        "per_query": {
            row: {metric: _pack(report.per_query[row][metric]) for metric in PAIRED_METRICS}
            for row in PAIRED_ROWS
            if row in report.per_query
        },
        "ceiling": dict(ceiling),
        "train_seconds": train_seconds,
        "threads": torch.get_num_threads(),
        "versions": software_versions(),
    }
    return cast("Record", _rounded(result))


def save_record(path: Path, record: Record) -> None:
    """Write a record.

    Raises:
        OSError: The folder cannot be made or written.
    """
    with replacing(path) as temporary:
        text = json.dumps(record, indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def per_query(record: Record, row: str, metric: str) -> NDArray[np.float64] | None:
    """A metric of each query that counted, in the order of the images, to about 1e-5.

    Args:
        record: From `load_records`.
        row: Of `PAIRED_ROWS`.
        metric: Of `PAIRED_METRICS`.

    Returns:
        Shape ``(Q,)``; None where the record has no such row.
    """
    packed = record["per_query"].get(row, {}).get(metric)
    if packed is None:
        return None
    steps = np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<u2")
    return steps.astype(np.float64) / _STEPS


def load_record(path: Path) -> Record | None:
    """Read a record; None where there is none, or a damaged one or one of another format."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and record.get("format") == _FORMAT
    return record if whole else None


def load_records(folder: str | os.PathLike[str]) -> list[Record]:
    """All records of a folder, by seed and method.

    Raises:
        ValueError: A folder without any, or with those of different settings.
    """
    found = dict(_records(Path(folder)))
    if not found:
        raise ValueError(f"{folder}: expected results of fcl bench-methods (*.json), found none")
    first = next(iter(found))
    for path, record in found.items():
        changed = _changed(_setting(found[first]["config"]), _setting(record["config"]))
        if changed:
            raise ValueError(f"{path}: of another setting than {first} ({changed} differ)")
    return sorted(found.values(), key=lambda r: (_seed(r), r["config"]["method"]))


def check_folder(folder: Path, config: BenchConfig) -> None:
    """Refuse a folder with results of another setting; seeds and methods may be others.

    Raises:
        ValueError: It has some; the message names what differs.
    """
    wanted = _setting(cast("Record", _rounded(config.to_dict())))
    for path, record in _records(folder):
        changed = _changed(wanted, _setting(record["config"]))
        if changed:
            raise ValueError(
                f"{path}: made with another configuration ({changed} differ); "
                "remove it or choose another folder"
            )


def is_done(path: Path, config: BenchConfig, spec: Contender, fingerprint: str) -> bool:
    """Whether a run's result is there.

    Raises:
        ValueError: One is, of another configuration or other images.
    """
    record = load_record(path)
    if record is None:
        return False
    wanted = cast("Record", _rounded(run_config(config, spec)))
    changed = _changed(_completed(wanted), _completed(record["config"]))
    if not changed and record["data"]["fingerprint"] != fingerprint:
        changed = "the images"
    if changed:
        raise ValueError(
            f"{path}: made with another configuration ({changed} differ); "
            "remove it or choose another folder"
        )
    return True


def _pack(values: NDArray[np.float64]) -> str:
    steps = np.rint(values[~np.isnan(values)] * _STEPS).astype("<u2")
    return base64.b64encode(zlib.compress(steps.tobytes(), level=9)).decode("ascii")


def _records(folder: Path) -> Iterator[tuple[Path, Record]]:
    for path in sorted(folder.glob("*-seed*.json")):
        record = load_record(path)
        if record is not None:
            yield path, record


def _seed(record: Record) -> int:
    return int(record["config"]["train"]["seed"])


def _setting(config: Record) -> Record:
    """What all runs of a folder share."""
    train = {key: value for key, value in config["train"].items() if key != "seed"}
    kept = {key: value for key, value in config.items() if key not in {"method", "settings"}}
    return _completed({**kept, "train": train})


def _completed(config: Record) -> Record:
    """With what was added to all trainings after some records were written."""
    return {**config, "train": {"accumulate": 1, **config["train"]}}


def _changed(before: Record, now: Record, prefix: str = "") -> str:
    """Dotted names of what differs, by commas."""
    names = []
    for key in sorted({*before, *now}):
        left, right = before.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            names.append(_changed(left, right, f"{prefix}{key}."))
        elif left != right:
            names.append(prefix + key)
    return ", ".join(name for name in names if name)


def _rounded(value: object) -> object:
    """As it comes back from a file: rounded numbers, lists, text keys."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
