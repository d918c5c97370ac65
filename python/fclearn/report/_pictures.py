# SPDX-License-Identifier: Apache-2.0
"""Examples as strings: small PNGs and short texts that a page or a JSON file can hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fclearn.report.examples import Hit, RetrievalExample

_PREFIX = "data:image/png;base64,"
# Shown at 56 px; twice that for dense screens.
_MAX_SIDE = 112
_MAX_TEXT = 240


class StoredHit(TypedDict):
    """A `Hit` as JSON; without a picture, ``image`` is empty."""

    image: str
    label: str
    correct: bool
    text: str


class StoredExample(TypedDict):
    """A `RetrievalExample` as JSON."""

    image: str
    text: str
    label: str
    note: str
    old: list[StoredHit]
    new: list[StoredHit]


def as_data_uri(png: bytes) -> str:
    """A PNG file as ``data:`` URI."""
    return _PREFIX + base64.b64encode(png).decode("ascii")


def decode(uri: str) -> NDArray[np.uint8]:
    """Pixels of a picture made by `encode`, shape ``(H, W)`` or ``(H, W, 3)``.

    Raises:
        ValueError: Not a PNG data URI.
    """
    if not uri.startswith(_PREFIX):
        raise ValueError(f"image: expected a {_PREFIX}… string, got {uri[:40]!r}")
    try:
        data = base64.b64decode(uri[len(_PREFIX) :], validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            return np.array(picture.convert("L" if picture.mode == "L" else "RGB"))
    except (ValueError, OSError) as error:
        raise ValueError(f"image: not a PNG: {error}") from error


def encode(image: NDArray[np.uint8]) -> str:
    """A picture as ``data:`` URI, shrunk to thumbnail size if it is larger.

    Args:
        image: Shape ``(H, W)`` or ``(H, W, 3)``, uint8.

    Raises:
        ValueError: Another shape or dtype.
    """
    gray, rgb = image.ndim == 2, image.ndim == 3 and image.shape[-1] == 3
    if image.dtype != np.uint8 or not (gray or rgb) or image.size == 0:
        raise ValueError(
            "image: expected uint8 of shape [H, W] or [H, W, 3], got "
            f"{image.dtype} of shape {list(image.shape)}"
        )
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return as_data_uri(buffer.getvalue())


def store(examples: Sequence[RetrievalExample]) -> list[StoredExample]:
    """Examples as JSON values."""

    def hits(found: Sequence[Hit]) -> list[StoredHit]:
        return [
            {
                "image": _picture(hit.image),
                "text": _short(hit.text),
                "label": hit.label,
                "correct": bool(hit.correct),
            }
            for hit in found
        ]

    return [
        {
            "image": _picture(example.image),
            "text": _short(example.text),
            "label": example.label,
            "note": example.note,
            "old": hits(example.old),
            "new": hits(example.new),
        }
        for example in examples
    ]


def checked(examples: object) -> list[StoredExample]:
    """Examples read from a file.

    Raises:
        ValueError: Not what `store` made.
    """
    if not isinstance(examples, list):
        raise ValueError(f"expected a list of examples, got {type(examples).__name__}")
    for example in examples:
        for item in (example, *example["old"], *example["new"]):
            text, image = item["text"], item["image"]
            if image or not text:
                decode(image)
    return examples


def _picture(image: NDArray[np.uint8] | None) -> str:
    return "" if image is None else encode(image)


def _short(text: str) -> str:
    """A text as it is shown: on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1].rstrip() + "…"
