# SPDX-License-Identifier: Apache-2.0
"""Images: the dataset itself, icon fonts, folders, manifests, Fashion-MNIST, and damaged files."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fclearn.datasets import (
    ImageDataset,
    fashion_mnist,
    icons,
    load_fashion_mnist,
    load_icons,
    load_image_folder,
    load_image_manifest,
    split_classes,
)


def _dataset(num=6, *, rgb=False, **changes):
    shape = (num, 8, 10, 3) if rgb else (num, 8, 10)
    arguments = {
        "images": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
        "labels": np.arange(num) % 3,
        "ids": [f"image-{row}" for row in range(num)],
        "groups": np.arange(num) // 2,
        "class_names": ["ant", "bee", "cat"],
        "group_names": ["x", "y", "z"],
    }
    return ImageDataset(**{**arguments, **changes})


# --- ImageDataset ---


def test_dataset_facts():
    grey, rgb = _dataset(), _dataset(rgb=True)
    assert (len(grey), grey.num_classes, grey.channels, rgb.channels) == (6, 3, 1, 3)


@pytest.mark.parametrize("rgb", [False, True])
def test_tensor_is_the_pixels_over_255(rgb):
    data = _dataset(rgb=rgb)
    batch = data.tensor([4, 1])
    assert batch.dtype == torch.float32
    assert batch.shape == (2, 3 if rgb else 1, 8, 10)
    pixels = data.images[[4, 1]].astype(np.float64) / 255
    expected = pixels.transpose(0, 3, 1, 2) if rgb else pixels[:, None]
    np.testing.assert_allclose(batch.numpy(), expected, rtol=1e-6)
    batch.zero_()
    assert data.images[4].any()
    assert data.tensor([]).shape == (0, 3 if rgb else 1, 8, 10)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ([5, 0], [5, 0]),
        (np.array([False, True, False, False, True, False]), [1, 4]),
        ([-1], [5]),
        ([], []),
    ],
)
def test_subset_keeps_rows_aligned(index, rows):
    data = _dataset()
    part = data.subset(index)
    assert part.ids == [data.ids[row] for row in rows]
    assert part.labels.tolist() == data.labels[rows].tolist()
    assert part.groups.tolist() == data.groups[rows].tolist()
    assert np.array_equal(part.images, data.images[rows])
    assert (part.class_names, part.group_names) == (data.class_names, data.group_names)
    assert _dataset(groups=None).subset(index).groups is None


def test_select_classes_relabels_in_the_order_given():
    data = _dataset()
    part = data.select_classes([2, 0])
    assert list(part.class_names) == ["cat", "ant"]
    assert part.ids == ["image-0", "image-2", "image-3", "image-5"]
    assert part.labels.tolist() == [1, 0, 1, 0]
    assert part.groups.tolist() == [0, 1, 1, 2]
    assert len(data.select_classes([])) == 0


@pytest.mark.parametrize("classes", [[0, 0], [3], [-1]])
def test_select_classes_refuses(classes):
    with pytest.raises(ValueError, match=r"classes: expected distinct labels in \[0, 3\), got"):
        _dataset().select_classes(classes)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"images": np.zeros((6, 8, 8))}, TypeError, "images: expected dtype uint8, got float64"),
        (
            {"images": np.zeros((6, 8, 8, 4), np.uint8)},
            ValueError,
            r"images: expected shape \[N, H, W\] or \[N, H, W, 3\], got \[6, 8, 8, 4\]",
        ),
        ({"images": np.zeros((6, 8), np.uint8)}, ValueError, r"images: .* got \[6, 8\]"),
        ({"labels": np.zeros(6)}, TypeError, "labels: expected dtype int64, got float64"),
        (
            {"labels": np.zeros(5, np.int64)},
            ValueError,
            r"labels: expected shape \[6\], got \[5\]",
        ),
        (
            {"labels": np.array([0, 1, 2, 3, 0, 0])},
            ValueError,
            r"labels: expected values in \[0, 3\) \(one per class name\), got 0 to 3",
        ),
        ({"labels": np.array([0, 1, -1, 0, 0, 0])}, ValueError, r"got -1 to 1"),
        ({"ids": ["a"]}, ValueError, "ids: expected 6, one per image, got 1"),
        ({"ids": list("abcdbe")}, ValueError, "ids: expected distinct ids, got 'b' twice"),
        (
            {"groups": np.zeros((6, 1), np.int64)},
            ValueError,
            r"groups: expected shape \[6\], got \[6, 1\]",
        ),
    ],
)
def test_dataset_refuses(changes, kind, message):
    with pytest.raises(kind, match=message):
        _dataset(**changes)


def test_split_classes_partitions_and_repeats():
    parts = split_classes(20, 5, 8, seed=3)
    assert [len(part) for part in parts] == [5, 8, 7]
    assert sorted(np.concatenate(parts)) == list(range(20))
    assert all((np.diff(part) > 0).all() for part in parts)
    again = split_classes(20, 5, 8, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    other = split_classes(20, 5, 8, seed=4)
    assert not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))
    assert [len(part) for part in split_classes(3, 3)] == [3, 0]


@pytest.mark.parametrize("sizes", [(11,), (6, 5), (-1,)])
def test_split_classes_refuses(sizes):
    with pytest.raises(ValueError, match="sizes: expected at most 10 classes in all"):
        split_classes(10, *sizes)


# --- icons ---


@pytest.fixture(scope="module")
def icon_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("icons")


@pytest.fixture(scope="module")
def drawings(icon_folder):
    return load_icons(icon_folder, 16)


def test_icons_are_many_classes_from_several_families(drawings):
    # DATA: thousands of drawings of hundreds of names; the exact number depends on the package.
    assert 3000 < len(drawings) < 6000
    assert 400 < drawings.num_classes < 800
    assert drawings.images.shape == (len(drawings), 16, 16)
    assert list(drawings.group_names) == list(icons.FAMILIES)
    for label in range(drawings.num_classes):
        rows = drawings.labels == label
        assert rows.sum() >= icons.MIN_DRAWINGS
        assert len(np.unique(drawings.groups[rows])) >= icons.MIN_FAMILIES


def test_icons_hold_no_image_twice_and_none_empty(drawings):
    assert len({image.tobytes() for image in drawings.images}) == len(drawings)
    assert drawings.images.any(axis=(1, 2)).all()
    # The ink fills the middle: a margin of a pixel stays free.
    assert not drawings.images[:, 0].any()
    assert not drawings.images[:, :, -1].any()


def test_icon_ids_tell_family_and_class(drawings):
    for row in range(0, len(drawings), 97):
        family, _, name = drawings.ids[row].split("/")
        assert drawings.group_names[drawings.groups[row]] == family
        assert icons.split_style(name)[0] == drawings.class_names[drawings.labels[row]]


def _same(left, right):
    return (
        np.array_equal(left.images, right.images)
        and np.array_equal(left.labels, right.labels)
        and np.array_equal(left.groups, right.groups)
        and left.ids == right.ids
        and list(left.class_names) == list(right.class_names)
        and list(left.group_names) == list(right.group_names)
    )


def test_icons_second_call_reads_the_cache(drawings, icon_folder, monkeypatch):
    def fail(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(icons, "_render_all", fail)
    assert _same(load_icons(icon_folder, 16), drawings)
    assert [file.suffix for file in icon_folder.iterdir()] == [".npz"]
    with pytest.raises(AssertionError, match="drawn again"):
        load_icons(icon_folder, 17)


def test_icons_are_deterministic(drawings, tmp_path):
    assert _same(load_icons(tmp_path / "not" / "yet", 16), drawings)


@pytest.fixture
def few_icons(monkeypatch):
    families = {name: icons.FAMILIES[name] for name in ("codicon", "elusive", "remix")}
    monkeypatch.setattr(icons, "FAMILIES", families)


@pytest.mark.usefixtures("few_icons")
@pytest.mark.parametrize("damage", ["truncated", "empty", "not a zip", "other arrays", "flipped"])
def test_damaged_icon_cache_is_drawn_again(damage, tmp_path):
    drawn = load_icons(tmp_path, 8)
    (cache,) = tmp_path.glob("icons-*.npz")
    whole = cache.read_bytes()
    if damage == "truncated":
        versions = [whole[: len(whole) // 2]]
    elif damage == "empty":
        versions = [b""]
    elif damage == "not a zip":
        versions = [b"hello" * 100]
    elif damage == "other arrays":
        np.savez(cache, images=np.zeros((3, 8, 8)), labels=np.zeros(3))
        versions = [cache.read_bytes()]
    else:
        # Anywhere: in the directory of the archive, in a header, in compressed data.
        versions = []
        for place in np.random.default_rng(0).integers(0, len(whole), 40):
            flipped = bytearray(whole)
            flipped[place] ^= 0xFF
            versions.append(bytes(flipped))
    for content in versions:
        cache.write_bytes(content)
        assert _same(load_icons(tmp_path, 8), drawn)
        assert _same(icons._read_cache(cache), drawn)


@pytest.mark.usefixtures("few_icons")
def test_icon_cache_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FCL_CACHE", str(tmp_path / "cache"))
    load_icons(size=8)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_icons_refuse(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="size: expected at least 8 pixels, got 7"):
        load_icons(tmp_path, 7)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps qtawesome"):
        load_icons(tmp_path)


def test_missing_font_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected one file codicon-\[0-9\]\*\.ttf, got 0"):
        icons._glyphs(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("heart", ("heart", "")),
        ("heart-outline", ("heart", "outline")),
        ("heart-2-fill", ("heart", "2-fill")),
        ("line-chart-line", ("line-chart", "line")),
        ("fill", ("fill", "")),
        ("2-line", ("2", "line")),
        ("numeric-9-box-outline", ("numeric-9-box", "outline")),
        ("outlined-flag", ("outlined-flag", "")),
    ],
)
def test_split_style(name, split):
    assert icons.split_style(name) == split


# --- image folders and manifests ---


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


# --- Fashion-MNIST ---


def _write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fashion(tmp_path):
    random = np.random.default_rng(0)
    for prefix, count in (("train", 12), ("t10k", 4)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        _write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        labels = (np.arange(count) % 10).astype(np.uint8)
        _write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return tmp_path


def test_fashion_mnist(fashion):
    train, test = load_fashion_mnist(fashion), load_fashion_mnist(fashion, part="test")
    assert train.images.shape == (12, 28, 28)
    assert train.labels.tolist() == [*range(10), 0, 1]
    assert train.ids[3] == "train/3"
    assert test.ids[3] == "test/3"
    assert len(test) == 4
    assert train.num_classes == 10
    first = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    assert np.array_equal(train.images, first)
    assert train.tensor([0, 1]).shape == (2, 1, 28, 28)


def test_fashion_mnist_refuses_missing_files(fashion, tmp_path):
    with pytest.raises(ValueError, match="part: expected 'train' or 'test', got 'val'"):
        load_fashion_mnist(fashion, part="val")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"labels.* is missing; .*apt install dataset-fashion"):
        load_fashion_mnist(fashion)
    assert fashion_mnist.DEFAULT_PATH.startswith("/usr/share")


def test_fashion_mnist_refuses_damaged_files(fashion):
    file = fashion / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[20] ^= 0xFF
    body = gzip.decompress(whole)
    # Dims whose product wraps around 64 bits to zero.
    wrapped = body[:4] + struct.pack(">3I", 2**31, 2**31, 4)
    for content in (
        b"",
        b"hello",
        whole[:100],
        bytes(flipped),
        gzip.compress(b""),
        gzip.compress(body[:-1]),
        gzip.compress(b"\0\0\x0d" + body[3:]),
        gzip.compress(wrapped),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"train-images.* is (damaged|not an idx file)"):
            load_fashion_mnist(fashion)


def test_fashion_mnist_refuses_other_labels(fashion):
    file = fashion / "train-labels-idx1-ubyte.gz"
    _write_idx(file, np.zeros(11, np.uint8))
    with pytest.raises(ValueError, match="12 images, 11 labels"):
        load_fashion_mnist(fashion)
    _write_idx(file, np.full(12, 10, np.uint8))
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 10\)"):
        load_fashion_mnist(fashion)
