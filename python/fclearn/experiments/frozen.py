# SPDX-License-Identifier: Apache-2.0
"""Features of frozen models, computed once and kept: old models that are black boxes for real."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fclearn.datasets import Glosses, ImageDataset
from fclearn.datasets.icons import cache_folder
from fclearn.embedding import embed
from fclearn.experiments.image_models import EfficientNetLite0
from fclearn.experiments.text_models import TEXT_MODELS
from fclearn.features import FeatureStore, FeatureWriter, Fingerprint

#: Texts that are lost at most where a run is killed.
_BLOCK = 2048
# Raise when other features come of the same texts or images.
_VERSION = 1

#: Frozen models by name, and how many numbers they make of an item.
FROZEN_DIMS: dict[str, int] = {
    "efficientnet-lite0": EfficientNetLite0.dim,
    **{name: model.dim for name, model in TEXT_MODELS.items()},
}


def frozen_texts(
    name: str, glosses: Glosses, cache_dir: str | os.PathLike[str] | None = None
) -> FeatureStore:
    """Features of texts by a frozen model, from the cache where they are there.

    Args:
        name: Of `TEXT_MODELS`.
        glosses: The texts.
        cache_dir: As of `load_icons`.

    Returns:
        One row per text, as the model makes them; of one it knows nothing of, a row of zeros.

    Raises:
        ModuleNotFoundError: A package is missing; it is named.
    """
    path, fingerprint = _place(name, [*glosses.ids, *glosses.texts], cache_dir)
    if not path.is_dir():
        count, dim = len(glosses.texts), fingerprint.dim
        writer = FeatureWriter(path, count, dim, "float32", fingerprint)
        for first, last in writer.missing():
            for begin in range(first, last, _BLOCK):
                writer.write(
                    begin, _embedded(name, glosses.texts[begin : min(begin + _BLOCK, last)])
                )
        writer.finish({"id": glosses.ids})
    return FeatureStore.open(path)


def _embedded(name: str, texts: Sequence[str]) -> NDArray[np.float32]:
    # Texts of one length are padded little.
    order = np.argsort([len(text) for text in texts], kind="stable")
    rows = np.empty((len(texts), FROZEN_DIMS[name]), np.float32)
    rows[order] = TEXT_MODELS[name].embed([texts[row] for row in order])
    return rows


def frozen_images(
    name: str, images: ImageDataset, cache_dir: str | os.PathLike[str] | None = None
) -> FeatureStore:
    """Features of images by a frozen model, from the cache where they are there.

    Args:
        name: ``"efficientnet-lite0"``.
        images: Drawings, ink 255 on 0.
        cache_dir: As of `load_icons`.

    Returns:
        One row per image, as the model makes them.

    Raises:
        ModuleNotFoundError: A package is missing; it is named.
    """
    side = [str(images.images.shape[1])]
    path, fingerprint = _place(name, [*images.ids, *side], cache_dir)
    if not path.is_dir():
        embed(EfficientNetLite0(), images, path, fingerprint=fingerprint, normalize=False)
    return FeatureStore.open(path)


def _place(
    name: str, items: Sequence[str], cache_dir: str | os.PathLike[str] | None
) -> tuple[Path, Fingerprint]:
    """Where the features of these items are kept, and what they are."""
    digest = hashlib.sha256("\n".join([str(_VERSION), *items]).encode()).hexdigest()[:12]
    fingerprint = Fingerprint(name, FROZEN_DIMS[name], norm="none", preprocessing=digest)
    return cache_folder(cache_dir) / "frozen" / f"{name}-{digest}", fingerprint
