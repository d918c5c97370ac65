# SPDX-License-Identifier: Apache-2.0
"""Icon fonts: drawing, cache, styles."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from fclearn.datasets import (
    icons,
    load_icons,
)


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
