# SPDX-License-Identifier: Apache-2.0
"""Several upgrades in a row: old → v1 → v2 → v3, each compatible with the one before it alone.

Each model is trained on more classes than the one before it, and gets nothing of that one but its
features of its own training images; no model ever sees the features of an older one. Held-out
classes decide: every newer model's queries in every older gallery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from fclearn.datasets import LabelledSet, split_classes
from fclearn.evaluation import ChainReport, chain_report
from fclearn.experiments.splits import data_fingerprint
from fclearn.experiments.stages import Stages
from fclearn.experiments.upgrade import UpgradeConfig, UpgradeData
from fclearn.features import FeatureStore, as_tensor
from fclearn.methods import Need, get_method
from fclearn.training import TrainConfig


@dataclass(frozen=True)
class ChainConfig:
    """A chain of T models, oldest first.

    Attributes:
        classes: Classes each model is trained on, among them those of all before it, ``(T,)``.
        encoders: Networks, ``(T,)``.
        dims: Embedding dims, ``(T,)``; the first dims of a model carry the one before it.
        train: Hyper-parameters of all trainings.

    Raises:
        ValueError: Fewer than two models, lengths that differ, classes that do not grow, dims that
            shrink.

    Example:
        >>> ChainConfig().names
        ('old', 'v1', 'v2', 'v3')
    """

    classes: tuple[int, ...] = (100, 200, 300, 400)
    encoders: tuple[str, ...] = ("tiny-cnn", "small-cnn", "small-cnn", "small-cnn")
    dims: tuple[int, ...] = (64, 128, 192, 256)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=40))

    def __post_init__(self) -> None:
        count = len(self.classes)
        if count < 2:
            raise ValueError(f"classes: expected those of two models or more, got {self.classes}")
        for name in ("encoders", "dims"):
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"{name}: expected {count}, one per model, got {getattr(self, name)}"
                )
        if self.classes[0] < 1 or any(a >= b for a, b in pairwise(self.classes)):
            raise ValueError(f"classes: expected numbers that grow, got {self.classes}")
        if self.dims[0] < 1 or any(a > b for a, b in pairwise(self.dims)):
            raise ValueError(f"dims: expected numbers that do not shrink, got {self.dims}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models."""
        return ("old", *(f"v{number}" for number in range(1, len(self.classes))))


#: Exercises everything in seconds; its numbers mean nothing.
QUICK_CHAIN = ChainConfig(
    classes=(10, 20, 30),
    encoders=("tiny-cnn", "tiny-cnn", "tiny-cnn"),
    dims=(8, 12, 16),
    train=TrainConfig(epochs=2, batch_size=32),
)


def run_chain(
    config: ChainConfig,
    images: LabelledSet,
    method: str,
    work: Path,
    *,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> ChainReport:
    """Train the models one after another, or find what an earlier call left; measure all pairs.

    Args:
        config: The chain; ``config.train.seed`` splits the classes and starts all trainings.
        images: All of them.
        method: Of `fclearn.methods.METHODS`, one that needs old features at most.
        work: Folder of features and checkpoints; methods share the oldest model in it.
        progress: Show progress on stderr, if that is a terminal.
        say: Gets a line per model.

    Returns:
        mAP of every model's queries in its own gallery and in all older ones.

    Raises:
        ValueError: A method that needs more, too few classes, a folder of another configuration.
        DivergenceError: As `Trainer.fit`.
    """
    needs = {*get_method(method).needs} - {Need.LABELS, Need.FEATURE_CACHE}
    if needs:
        raise ValueError(
            f"method: expected one that needs old features at most, {method!r} needs "
            + ", ".join(sorted(need.value for need in needs))
        )
    sizes = np.diff([0, *config.classes])
    *parts, held_out = split_classes(images.num_classes, *sizes, seed=config.train.seed)
    if not len(held_out):
        raise ValueError(
            f"classes: expected fewer than the {images.num_classes} of the images, which leave "
            f"some to test on, got {config.classes[-1]}"
        )
    everything = images.select_classes(np.concatenate([*parts, held_out]))
    facts = {"chain": asdict(config), "images": _fingerprint(everything)}
    stores: list[FeatureStore] = []
    for number, name in enumerate(config.names):
        say(f"{method}, seed {config.train.seed}: {name}")
        training = everything.select_classes(range(config.classes[number]))
        before = max(number - 1, 0)
        stages = Stages(
            UpgradeConfig(
                num_old_classes=config.classes[before],
                num_new_classes=config.classes[number],
                old_encoder=config.encoders[before],
                new_encoder=config.encoders[number],
                old_dim=config.dims[before],
                new_dim=config.dims[number],
                train=config.train,
            ),
            UpgradeData(training, training, everything),
            work / name if number == 0 else work / method / name,
            f"chain {method if number else ''} {name}",
            facts=facts,
            frozen=stores[-1] if number else None,
            progress=progress,
        )
        old_train, old_everything = stages.old_features()
        if number == 0:
            stores.append(old_everything)
        else:
            stores.append(stages.new_features(method, stages.assets(old_train)))
    test = everything.select_classes(range(config.classes[-1], everything.num_classes))
    row_of = {item: row for row, item in enumerate(everything.ids)}
    rows = np.array([row_of[item] for item in test.ids])
    models = [as_tensor(store, rows) for store in stores]
    grouped = test.groups is not None
    return chain_report(
        models,
        models,
        query_labels=test.labels,
        gallery_labels=test.labels,
        names=config.names,
        exclude_self=not grouped,
        query_groups=test.groups,
        gallery_groups=test.groups,
        seed=config.train.seed,
    )


def with_seed(config: ChainConfig, seed: int) -> ChainConfig:
    """The same chain with another split of the classes and other starts."""
    return replace(config, train=replace(config.train, seed=seed))


def _fingerprint(images: LabelledSet) -> str:
    nothing = images.select_classes([])
    return data_fingerprint(UpgradeData(nothing, nothing, images))
