# SPDX-License-Identifier: Apache-2.0
"""Queries to look at in a report of stores: their texts or pictures, where manifests have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fclearn.cli.console import say
from fclearn.cli.eval_run import Side, ordered
from fclearn.evaluation import CompatibilityReport
from fclearn.features import FeatureStore
from fclearn.report import RetrievalExample, make_examples

if TYPE_CHECKING:
    from fclearn.evaluation.types import Labels, RankingOptions


class ImageFiles:
    """Images that are read when asked for.

    Args:
        paths: Of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read nothing yet."""
        self._paths = paths

    def __len__(self) -> int:
        """How many there are."""
        return len(self._paths)

    def __getitem__(self, row: int, /) -> NDArray[np.uint8]:
        """Pixels, shape ``(H, W, 3)``.

        Raises:
            ValueError: A file that is not an image.
        """
        try:
            with Image.open(self._paths[row]) as picture:
                return np.array(picture.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self._paths[row]}: cannot be shown: {error}") from error


def examples_of(
    report: CompatibilityReport,
    old: Side,
    new: Side,
    labels: tuple[Labels, Labels],
    ranking: RankingOptions,
) -> list[RetrievalExample]:
    """Queries with their best hits, or none where the manifests have neither texts nor pictures.

    Texts are in a column ``text``; pictures in a column ``path``, from the root as ``fcl embed``
    writes them, or relative to the store's folder or to where the command runs.

    Args:
        report: Of these stores.
        old: Queries and gallery.
        new: Queries.
        labels: Of queries and gallery: rows that share one are right.
        ranking: What was left out, as in `evaluate_retrieval`.

    Raises:
        ValueError: As `make_examples`.
    """
    assert old.gallery is not None
    sides = (old.query, old.gallery)
    texts = [_texts(store) for store in sides]
    files = [_files(store) for store in sides]
    has_texts, has_files = None not in texts, None not in files
    if not has_texts and not has_files:
        return []
    try:
        return make_examples(
            report,
            old_query=old.query.features,
            old_gallery=old.gallery.features,
            new_query=ordered(new.query, old.query),
            query_labels=labels[0],
            gallery_labels=labels[1],
            query_images=files[0] if has_files else None,
            gallery_images=files[1] if has_files else None,
            query_texts=texts[0] if has_texts else None,
            gallery_texts=texts[1] if has_texts else None,
            **ranking,
        )
    except ValueError as error:
        # Numbers do not depend on pictures: a report without them is better than none.
        say(f"no queries to look at: {error}")
        return []


def _texts(store: FeatureStore) -> list[str] | None:
    texts = store.manifest.get("text")
    return None if texts is None else [str(one or "") for one in texts]


def _files(store: FeatureStore) -> ImageFiles | None:
    """The images of a store, if it names files and the first one is there."""
    paths = store.manifest.get("path")
    if paths is None or not len(paths):
        return None
    for root in (store.path, Path()):
        if (root / str(paths[0])).is_file():
            return ImageFiles([root / str(path) for path in paths])
    return None
