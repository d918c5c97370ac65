# SPDX-License-Identifier: Apache-2.0
"""What a method may need beside the images, from files into `fclearn.methods.Assets`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fclearn._lines import read_lines
from fclearn.cache_check import check_cache
from fclearn.cli.alignment import check_directions, check_labels, rows_of_ids
from fclearn.cli.console import say
from fclearn.cli.images import load_images
from fclearn.config import TrainRunConfig
from fclearn.datasets import ImageDataset
from fclearn.features import FeatureStore, as_tensor
from fclearn.graph import KnnGraph
from fclearn.methods import Assets, MethodSpec, Need, get_method
from fclearn.model_folder import ModelCard, load_model
from fclearn.score_lists import read_score_lists
from fclearn.wording import some

_HOW_TO_GIVE = {
    Need.FEATURE_CACHE: ("old_features", "give a store, as in old_features=runs/old/train"),
    Need.INDEPENDENT_FEATURES: (
        "independent_features",
        "give a store, as in independent_features=runs/independent/train",
    ),
    Need.OLD_MODEL: ("old_model", "give the folder of fcl train, as in old_model=runs/old"),
    Need.OLD_CLASSIFIER: (
        "old_classifier",
        "give its rows and their class names, as in old_classifier=rows.npy old_classes=names.txt",
    ),
    Need.OLD_SCORES: (
        "old_scores",
        "give a TREC run file of the images searched for among each other, as in "
        "old_scores=run.txt",
    ),
}


def check_needs(config: TrainRunConfig, spec: MethodSpec) -> None:
    """Refuse a method whose needs have no key in the configuration, before anything is loaded.

    Raises:
        ValueError: The key, the need and how to give it.
    """
    for need in spec.needs:
        if need in _HOW_TO_GIVE:
            key, how = _HOW_TO_GIVE[need]
            if getattr(config, key) is None:
                raise ValueError(f"{key}: method {spec.name!r} needs {need.value}: {how}")
    if config.old_model is not None and config.old_features is None:
        raise ValueError(
            "old_features: expected beside old_model: fcl embed MODEL_DIR DATA --out STORE makes it"
        )
    for given, lacking in (
        ("old_classifier", "old_classes"),
        ("old_classes", "old_classifier"),
    ):
        if getattr(config, given) is not None and getattr(config, lacking) is None:
            raise ValueError(
                f"{lacking}: expected beside {given}: the rows of the old classifier (.npy), and "
                "a text file with the class name of each"
            )


def load_assets(config: TrainRunConfig, data: ImageDataset) -> Assets:
    """Labels, features, old classifier and scores, aligned with the images.

    Args:
        config: Says where they are.
        data: The training images.

    Raises:
        ValueError: Files that do not fit the images or each other.
        OSError: A file that cannot be read.
    """
    rows, classes = _old_classifier(config, data)
    old_features = _features(config.old_features, data)
    old_model = None
    if config.old_model is not None and old_features is not None:
        encoder, card = load_model(config.old_model)
        _check_old_model(config, encoder, card, old_features)
        if Need.OLD_MODEL in get_method(config.method.name).needs:
            _check_same_images(config.old_model, card, data)
            old_model = encoder
    return Assets(
        torch.from_numpy(data.labels),
        old_features=old_features,
        old_model=old_model,
        old_classifier=rows,
        old_classes=classes,
        independent_features=_features(config.independent_features, data),
        old_scores=_scores(config.old_scores, data),
    )


def _scores(path: str | None, data: ImageDataset) -> KnnGraph | None:
    if path is None:
        return None
    lists = read_score_lists(path, data.ids)
    if lists.metadata:
        say(f"{path}: the scores of every list are equal: 1/rank stands for them")
    return lists


def _features(path: str | None, data: ImageDataset) -> Tensor | None:
    if path is None:
        return None
    store = FeatureStore.open(path)
    _check_classes(store, data)
    rows = rows_of_ids(store, data.ids, "the images")
    check_labels(store, rows, data.labels, data.class_names, "the images")
    check_directions(store.features[rows], store.ids, store.path, rows)
    if store.fingerprint.metric != "cosine":
        say(
            f"{path}: its similarity is {store.fingerprint.metric!r}, but losses compare "
            "directions: new queries will match its rows by cosine"
        )
    return as_tensor(store, rows)


def _check_classes(store: FeatureStore, data: ImageDataset) -> None:
    """Refuse a store that lacks a whole class, which says more than a list of ids."""
    known = np.isin(np.array(data.ids), np.array(store.ids))
    lacking = np.setdiff1d(data.labels, data.labels[known])
    if len(lacking) and known.any():
        names = some([data.class_names[label] for label in lacking])
        raise ValueError(
            f"{store.path}: no features for any image of {len(lacking)} of the "
            f"{len(np.unique(data.labels))} classes: {names}; "
            "embed them, too, or leave the classes out by data.classes"
        )


def _check_same_images(folder: str, card: ModelCard, data: ImageDataset) -> None:
    """Refuse an old model that cannot be shown what the new one is trained on."""
    image = data.tensor(np.array([0]))[0]
    wanted, found = (card.channels, card.size, card.size), tuple(image.shape)
    if wanted != found:
        raise ValueError(
            f"old_model {folder}: it sees images of shape {wanted}, the new model is trained on "
            f"{found}; it can only be asked about augmented images of the same size and colours"
        )


def _check_old_model(
    config: TrainRunConfig, encoder: nn.Module, card: ModelCard, features: Tensor
) -> None:
    """Refuse stored features that the old model would not make again."""
    folder = config.old_model
    store = FeatureStore.open(config.old_features or "")
    card.fingerprint.check_same(store.fingerprint, f"old_model {folder} and old_features")
    files = config.data.kind in {"folder", "manifest"}
    seen = replace(
        config.data,
        size=card.size,
        grey=card.grey,
        short_side=card.short_side if files else None,
        augmentation="drawings",
    )
    try:
        check_cache(encoder, load_images(seen), features)
    except ValueError as error:
        raise ValueError(f"old_model {folder} and old_{error}") from error


def _old_classifier(
    config: TrainRunConfig, data: ImageDataset
) -> tuple[Tensor | None, Tensor | None]:
    if config.old_classifier is None or config.old_classes is None:
        return None, None
    rows = as_tensor(config.old_classifier)
    names = read_lines(config.old_classes, "class names")
    blank = next((number for number, name in enumerate(names, 1) if not name.strip()), None)
    if blank is not None:
        raise ValueError(
            f"{config.old_classes}: expected one class name a line, as the place counts, got a "
            f"blank line {blank}"
        )
    if len(names) != len(rows):
        raise ValueError(
            f"{config.old_classes}: expected one class name a line for each of the {len(rows)} "
            f"rows of {config.old_classifier}, got {len(names)} lines"
        )
    if len(set(names)) != len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(
            f"{config.old_classes}: expected distinct class names, got {twice!r} twice"
        )
    present = np.unique(data.labels)
    label_of = {data.class_names[label]: int(label) for label in present}
    kept = [place for place, name in enumerate(names) if name in label_of]
    if not kept:
        raise ValueError(
            f"{config.old_classes}: none of its {len(names)} classes is one of the images', such "
            f"as {some(list(label_of))}"
        )
    if len(kept) < len(names):
        say(
            f"{len(names) - len(kept)} of the {len(names)} rows of the old classifier are of "
            "classes without images: left out"
        )
    return rows[kept], torch.tensor([label_of[names[place]] for place in kept])
