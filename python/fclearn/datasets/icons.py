# SPDX-License-Identifier: Apache-2.0
"""Real drawings from a package: user-interface icons of six font families.

A class is an icon name without its style suffixes (``heart-outline``, ``heart-2-fill`` →
``heart``); an image is one drawing of it in one style of one family. The names are the designers'
own, so labels are noisy, as real labels are. The fonts come with the ``qtawesome`` package, whose
Qt code is never imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fclearn._files import replacing
from fclearn.datasets.base import ImageDataset

#: Family → prefixes of its font files. Of Material Design 5 and 6 and Font Awesome 5 and 6 only the
#: newer is used: the older one holds near-copies.
FAMILIES = {
    "codicon": ("codicon",),
    "elusive": ("elusiveicons-webfont",),
    "font-awesome": (
        "fontawesome6-solid-webfont",
        "fontawesome6-regular-webfont",
        "fontawesome6-brands-webfont",
    ),
    "material-design": ("materialdesignicons6-webfont",),
    "phosphor": ("phosphor",),
    "remix": ("remixicon",),
}
STYLES = frozenset(
    {
        *("alt", "bold", "duotone", "fill", "filled", "light", "line", "o", "outline"),
        *("outlined", "regular", "solid", "thin", "variant"),
    }
)

MIN_DRAWINGS, MIN_FAMILIES = 4, 2
# Raise when anything below changes what is drawn: cached files of another version are not used.
_VERSION = 1
_SUPERSAMPLING = 2


@dataclass(frozen=True)
class _Glyph:
    class_name: str
    family: str
    icon_id: str
    font: Path
    character: str


def load_icons(cache_dir: str | os.PathLike[str] | None = None, size: int = 32) -> ImageDataset:
    """Render every icon that at least two families draw, once, and cache the images.

    Args:
        cache_dir: Where the rendered images are kept; default ``$FCL_CACHE`` or
            ``~/.cache/fcl-ext``.
        size: Height and width in pixels.

    Returns:
        Grey images, ink 255 on 0, shape ``(N, size, size)``: classes with at least 4 distinct
        drawings in at least 2 families. ``groups`` are the families; ids read
        ``family/font/icon-name``.

    Raises:
        ModuleNotFoundError: ``qtawesome``, which ships the fonts, is not installed.
        ValueError: A size below 8.

    Example:
        >>> icons = load_icons()  # doctest: +SKIP
    """
    if size < 8:
        raise ValueError(f"size: expected at least 8 pixels, got {size}")
    folder = font_folder()
    package_version = "-".join(path.stem for path in sorted(folder.glob("*.ttf")))
    key = f"{_VERSION}-{size}-{zlib.crc32(package_version.encode()):08x}"
    path = cache_folder(cache_dir) / f"icons-{key}.npz"
    cached = _read_cache(path)
    if cached is None:
        cached = _render_all(folder, size)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                images=cached.array(),
                labels=cached.labels,
                groups=_groups(cached),
                ids=np.array(cached.ids),
                class_names=np.array(cached.class_names),
            )
    return cached


def font_folder() -> Path:
    """Folder of the ``qtawesome`` wheel that holds fonts and charmaps; nothing is imported."""
    spec = importlib.util.find_spec("qtawesome")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the icon fonts come with the package qtawesome: pip install --no-deps qtawesome"
        )
    return Path(spec.origin).parent / "fonts"


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The argument, else ``$FCL_CACHE``, else ``~/.cache/fcl-ext``; made if it does not exist."""
    default = os.environ.get("FCL_CACHE") or Path.home() / ".cache" / "fcl-ext"
    path = Path(default if cache_dir is None else cache_dir)
    path.mkdir(parents=True, exist_ok=True)
    return path


def split_style(name: str) -> tuple[str, str]:
    """``"heart-2-outline"`` → ``("heart", "2-outline")``; no style gives ``""``."""
    parts = name.split("-")
    kept = len(parts)
    while kept > 1 and (parts[kept - 1] in STYLES or parts[kept - 1].isdigit()):
        kept -= 1
    return "-".join(parts[:kept]), "-".join(parts[kept:])


def _read_cache(path: Path) -> ImageDataset | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return ImageDataset(
                file["images"],
                file["labels"],
                file["ids"].tolist(),
                file["groups"],
                file["class_names"].tolist(),
                list(FAMILIES),
            )
    except Exception:  # damaged, in one of the many ways a zip can be: drawn again, and replaced
        return None


def _render_all(folder: Path, size: int) -> ImageDataset:
    classes: dict[str, list[_Glyph]] = defaultdict(list)
    for glyph in _glyphs(folder):
        classes[glyph.class_name].append(glyph)
    seen: set[bytes] = set()
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    ids: list[str] = []
    groups: list[int] = []
    names: list[str] = []
    fonts: dict[Path, ImageFont.FreeTypeFont] = {}
    families = list(FAMILIES)
    for class_name in sorted(classes):
        if not _enough(classes[class_name]):
            continue
        drawn: dict[bytes, tuple[NDArray[np.uint8], _Glyph]] = {}
        for glyph in classes[class_name]:
            if glyph.font not in fonts:
                fonts[glyph.font] = ImageFont.truetype(str(glyph.font), size * _SUPERSAMPLING)
            image = _render(fonts[glyph.font], glyph.character, size)
            if image is not None and image.tobytes() not in seen:
                drawn.setdefault(image.tobytes(), (image, glyph))
        if not _enough([glyph for _, glyph in drawn.values()]):
            continue
        seen.update(drawn)
        for image, glyph in drawn.values():
            images.append(image)
            labels.append(len(names))
            ids.append(glyph.icon_id)
            groups.append(families.index(glyph.family))
        names.append(class_name)
    return ImageDataset(np.stack(images), np.array(labels), ids, np.array(groups), names, families)


def _enough(glyphs: list[_Glyph]) -> bool:
    return len(glyphs) >= MIN_DRAWINGS and len({glyph.family for glyph in glyphs}) >= MIN_FAMILIES


def _glyphs(folder: Path) -> list[_Glyph]:
    """One glyph per class and style of a font, in a fixed order."""
    glyphs: dict[tuple[str, str, str], _Glyph] = {}
    for family, prefixes in FAMILIES.items():
        for prefix in prefixes:
            font = _only(folder, f"{prefix}-[0-9]*.ttf")
            charmap = json.loads(
                _only(folder, f"{prefix}-charmap-[0-9]*.json").read_text(encoding="utf-8")
            )
            for name in sorted(charmap):
                class_name, style = split_style(name)
                glyphs.setdefault(
                    (class_name, prefix, style),
                    _Glyph(
                        class_name,
                        family,
                        f"{family}/{prefix}/{name}",
                        font,
                        chr(int(charmap[name], 16)),
                    ),
                )
    return list(glyphs.values())


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"{folder}: expected one file {pattern}, got {len(found)}")
    return found[0]


def _render(font: ImageFont.FreeTypeFont, character: str, size: int) -> NDArray[np.uint8] | None:
    """The glyph's ink scaled to fill the middle of a square, keeping its proportions."""
    left, top, right, bottom = font.getbbox(character)
    width, height = int(right - left), int(bottom - top)
    if min(width, height) <= 0:
        return None
    large = Image.new("L", (width, height), 0)
    ImageDraw.Draw(large).text((-left, -top), character, fill=255, font=font)
    margin = max(1, size // 16)
    shrink = (size - 2 * margin) / max(width, height)
    fitted = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    image = Image.new("L", (size, size), 0)
    image.paste(
        large.resize(fitted, Image.Resampling.BOX),
        ((size - fitted[0]) // 2, (size - fitted[1]) // 2),
    )
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels if pixels.any() else None


def _groups(data: ImageDataset) -> NDArray[np.int64]:
    assert data.groups is not None
    return data.groups
