# SPDX-License-Identifier: Apache-2.0
"""Your own images: a folder with one folder per class, or a manifest of files and labels.

Up to a gigabyte of decoded images is kept in memory; more are decoded again each time, on all
cores, while the batch before is at work.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fclearn._files import reason
from fclearn.datasets.base import ImageDataset
from fclearn.datasets.crops import RandomCrops
from fclearn.datasets.files import images_of
from fclearn.wording import some

_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


def load_image_folder(
    path: str | os.PathLike[str],
    *,
    size: int = 64,
    grey: bool = False,
    short_side: int | None = None,
    crops: RandomCrops | None = None,
) -> ImageDataset:
    """Images of ``path/<class>/<file>``, resized to a square.

    Args:
        path: Folder with one folder per class (as ImageNet's ``train``); the order of the class
            names is alphabetical. Files in deeper folders belong to their top folder's class, if
            there are images in a class folder itself, or one folder in each (as Tiny ImageNet's);
            hidden folders are no classes.
        size: Side of the images in pixels.
        grey: One channel instead of three.
        short_side: The short side is scaled to it, then the centre is kept; None: to ``size``.
        crops: To train on: random boxes in place of the centre. The images then stay files.

    Raises:
        ValueError: No such folder, no class folder, a class without images, an unreadable image; a
            folder that looks like the one above the wanted one, whose folders are train and test.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"image folder: {root} is not a folder")
    class_names = sorted(
        folder.name
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
    )
    if not class_names:
        raise ValueError(f"image folder: expected one folder per class in {root}, found none")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = sorted(f for f in (root / name).rglob("*") if f.suffix.lower() in _EXTENSIONS)
        if not found:
            raise ValueError(f"image folder: class {name!r} in {root} has no images")
        files += found
        labels += [label] * len(found)
    _check_depth(root, files)
    ids = [file.relative_to(root).as_posix() for file in files]
    images = images_of(files, size, grey, short_side=short_side, crops=crops)
    return ImageDataset(
        images, np.array(labels, np.int64), ids, class_names=class_names, files=files
    )


def _check_depth(root: Path, files: Sequence[Path]) -> None:
    """Refuse class folders that hold no image, but several folders of images each or some."""
    holders = {file.parent for file in files}
    classes = {holder.relative_to(root).parts[0] for holder in holders}
    if len(holders) == len(classes) or any(holder.parent == root for holder in holders):
        return
    wanted = sorted({str(holder.parent) for holder in holders})
    raise ValueError(
        f"image folder: expected images in the class folders of {root}, found none in "
        f"{some(sorted(classes))}, but folders of images: give "
        f"{some(wanted, str)}, if the classes are there, else a manifest (path,label)"
    )


def load_image_manifest(
    path: str | os.PathLike[str],
    *,
    size: int = 64,
    grey: bool = False,
    short_side: int | None = None,
    crops: RandomCrops | None = None,
) -> ImageDataset:
    """Images listed in a csv or parquet file with columns ``path,label`` and maybe ``id,group``.

    Args:
        path: The manifest. Image paths are relative to its folder, labels are class names.
        size: Side of the images in pixels.
        grey: One channel instead of three.
        short_side: As `load_image_folder`.
        crops: As `load_image_folder`.

    Raises:
        ValueError: A missing file, a missing column, no rows, an unreadable image.
    """
    manifest = Path(path)
    if not manifest.is_file():
        raise ValueError(f"image manifest: {manifest} is not a file")
    if manifest.suffix == ".parquet":
        try:
            rows = pq.read_table(manifest).to_pylist()
        except Exception as error:  # a hostile file can fail in many ways inside pyarrow
            text = f"image manifest: {manifest} cannot be read: {reason(error)}"
            raise ValueError(text) from error
    else:
        rows = _read_csv(manifest)
    if not rows:
        raise ValueError(f"image manifest: {manifest} has no rows")
    for column in ("path", "label"):
        if column not in rows[0]:
            raise ValueError(
                f"image manifest: expected a column {column!r} in {manifest}, got {sorted(rows[0])}"
            )
    for number, row in enumerate(rows):
        for column in ("path", "label", "id", "group"):
            if row.get(column, "missing") in (None, ""):
                raise ValueError(f"image manifest: {manifest}: row {number} has no {column}")
    class_names, labels = _numbered([str(row["label"]) for row in rows])
    group_names: list[str] = []
    groups = None
    if "group" in rows[0]:
        group_names, groups = _numbered([str(row["group"]) for row in rows])
    files = [manifest.parent / str(row["path"]) for row in rows]
    return ImageDataset(
        images_of(files, size, grey, short_side=short_side, crops=crops),
        labels,
        [str(row["id"] if "id" in row else row["path"]) for row in rows],
        groups,
        class_names,
        group_names,
        files,
    )


def _read_csv(manifest: Path) -> list[dict[str, str]]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"image manifest: {manifest} cannot be read: {reason(error)}") from error
    for number, row in enumerate(rows):
        if None in row:  # where DictReader puts what has no column
            raise ValueError(f"image manifest: {manifest}: row {number} has too many cells")
    return rows


def _numbered(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    distinct = sorted(set(names))
    number = {name: place for place, name in enumerate(distinct)}
    return distinct, np.array([number[name] for name in names], dtype=np.int64)
