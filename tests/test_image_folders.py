# SPDX-License-Identifier: Apache-2.0
"""Image folders and manifests."""

from __future__ import annotations

import csv
import re
import shutil
import struct
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_samples import refused
from PIL import Image

from fclearn.datasets import (
    load_image_folder,
    load_image_manifest,
)


def _picture(path, colour, size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    _picture(root / "dog" / "b.png", (200, 100, 50))
    _picture(root / "dog" / "deeper" / "still" / "a.PNG", (1, 2, 3))
    _picture(root / "cat" / "c.jpg", (0, 0, 250))
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "README").write_text("beside the classes")
    return root


def test_folder_one_folder_per_class(folder):
    data = load_image_folder(folder, size=10)
    assert list(data.class_names) == ["cat", "dog"]
    assert data.ids == ["cat/c.jpg", "dog/b.png", "dog/deeper/still/a.PNG"]
    assert data.labels.tolist() == [0, 1, 1]
    assert data.groups is None
    assert data.files == [folder / name for name in data.ids]
    assert data.select_classes([1]).files == data.files[1:]
    with pytest.raises(ValueError, match="files: expected 3, one per image, got 1"):
        replace(data, files=data.files[:1])
    assert data.images.shape == (3, 10, 10, 3)
    assert (data.images[1] == [200, 100, 50]).all()
    grey = load_image_folder(folder, size=10, grey=True)
    assert grey.images.shape == (3, 10, 10)
    assert (grey.images[1] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (7, 7), (301, 99)])
def test_folder_scales_the_short_side_and_keeps_the_centre(tmp_path, size):
    pixels = np.zeros((size[1], size[0]), np.uint8)
    width, height = size
    short = min(size)
    left, top = (width - short) // 2, (height - short) // 2
    pixels[top : top + short, left : left + short] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
    data = load_image_folder(tmp_path, size=8, grey=True)
    assert data.images.shape == (1, 8, 8)
    assert (data.images[0, 2:6, 2:6] == 255).all()
    assert data.images.min() > 100


def test_folder_refuses(folder, tmp_path):
    with pytest.raises(ValueError, match=r"image folder: .*nowhere is not a folder"):
        load_image_folder(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match=r"expected one folder per class in .*bare, found none"):
        load_image_folder(tmp_path / "bare")
    with pytest.raises(ValueError, match="size: expected 8 to 1024 pixels, got 4"):
        load_image_folder(folder, size=4)
    (folder / "eel").mkdir()
    with pytest.raises(ValueError, match=r"class 'eel' in .* has no images"):
        load_image_folder(folder)


@pytest.mark.parametrize("above", ["", "data"])
def test_the_folder_above_train_and_test_is_refused(tmp_path, above, fcl):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            _picture(tmp_path / "images" / above / part / name / "a.png", (1, 2, 3))
    root = tmp_path / "images"
    both = f"give {root / above / 'test'}, {root / above / 'train'}, if the classes are there"
    with pytest.raises(ValueError, match=re.escape(f"in the class folders of {root}, ")) as error:
        load_image_folder(root)
    assert both in str(error.value)
    train = ["train", "--method", "independent", "data.kind=folder", f"data.path={root}"]
    assert refused(fcl(*train, f"output={tmp_path / 'run'}"), both, "else a manifest (path,label)")
    shutil.rmtree(root / above / "test")
    if above:
        with pytest.raises(ValueError, match=re.escape(f"give {root / above / 'train'}, if")):
            load_image_folder(root)
    assert list(load_image_folder(root / above / "train", size=8).class_names) == ["cat", "dog"]


def test_folders_of_classes_may_be_mixed_or_have_one_folder_each(tmp_path):
    for name in ("cat", "dog"):  # as Tiny ImageNet's
        _picture(tmp_path / "images" / name / "images" / "a.png", (1, 2, 3))
    assert load_image_folder(tmp_path / "images", size=8).class_names == ["cat", "dog"]
    for part in ("front", "side"):
        _picture(tmp_path / "images" / "dog" / part / "b.png", (1, 2, 3))
    with pytest.raises(ValueError, match="found none in 'cat', 'dog', but folders of images"):
        load_image_folder(tmp_path / "images", size=8)
    _picture(tmp_path / "images" / "cat" / "c.png", (1, 2, 3))
    data = load_image_folder(tmp_path / "images", size=8)
    assert data.labels.tolist() == [0, 0, 1, 1, 1]


def test_hidden_folders_are_no_classes(folder):
    (folder / ".ipynb_checkpoints").mkdir()
    assert list(load_image_folder(folder, size=8).class_names) == ["cat", "dog"]


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated", "bomb"])
def test_unreadable_image_is_named(folder, content):
    bad = folder / "cat" / "bad.png"
    if content == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(bad)
        content = bad.read_bytes()[:2000]
    elif content == "bomb":
        # The header of a 60,000 x 60,000 picture: refused before any memory is taken.
        _picture(bad, (0, 0, 0))
        whole = bytearray(bad.read_bytes())
        whole[16:24] = struct.pack(">II", 60_000, 60_000)
        whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
        content = bytes(whole)
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=r"image .*bad\.png: cannot be read: "):
        load_image_folder(folder)


ROWS = [
    {"path": "dog/b.png", "label": "hound", "id": "one", "group": "left"},
    {"path": "cat/c.jpg", "label": "cat", "id": "two", "group": "right"},
    {"path": "dog/deeper/still/a.PNG", "label": "hound", "id": "three", "group": "left"},
]


def _write_manifest(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_manifest(folder, name):
    _write_manifest(folder / name, ROWS)
    data = load_image_manifest(folder / name, size=8)
    assert list(data.class_names) == ["cat", "hound"]
    assert data.labels.tolist() == [1, 0, 1]
    assert data.ids == ["one", "two", "three"]
    assert data.groups.tolist() == [0, 1, 0]
    assert data.files == [folder / row["path"] for row in ROWS]
    assert list(data.group_names) == ["left", "right"]
    assert (data.images[0] == [200, 100, 50]).all()
    bare = [{"path": row["path"], "label": row["label"]} for row in ROWS]
    _write_manifest(folder / name, bare)
    data = load_image_manifest(folder / name, size=8, grey=True)
    assert data.ids == [row["path"] for row in ROWS]
    assert data.groups is None
    assert data.channels == 1


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_manifest_refuses(folder, name):
    file = folder / name
    with pytest.raises(ValueError, match=rf"image manifest: .*{name} is not a file"):
        load_image_manifest(file)
    for column in ("path", "label"):
        _write_manifest(file, [{k: v for k, v in row.items() if k != column} for row in ROWS])
        with pytest.raises(ValueError, match=f"expected a column '{column}' in .*{name}, got"):
            load_image_manifest(file)
    _write_manifest(file, [{**ROWS[0], "path": "dog/gone.png"}])
    with pytest.raises(ValueError, match=r"image .*gone\.png: cannot be read: "):
        load_image_manifest(file)
    _write_manifest(file, [ROWS[0], {**ROWS[1], "id": "one"}])
    with pytest.raises(ValueError, match="ids: expected distinct ids, got 'one' twice"):
        load_image_manifest(file)


def test_manifest_without_rows_or_with_a_gap(folder):
    file = folder / "list.csv"
    file.write_text("path,label\n")
    with pytest.raises(ValueError, match=r"list\.csv has no rows"):
        load_image_manifest(file)
    file.write_text("path,label\ndog/b.png,hound\ncat/c.jpg\n")
    with pytest.raises(ValueError, match="row 1 has no label"):
        load_image_manifest(file)
    (folder / "list.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match=r"list\.parquet"):
        load_image_manifest(folder / "list.parquet")
