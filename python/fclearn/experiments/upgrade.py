# SPDX-License-Identifier: Apache-2.0
"""The recipe of an upgrade: which classes who sees, which models, one budget for all trainings.

An old model is trained on some classes, its features of the new training images and of held-out
ones are stored, then it is deleted. New models are trained with what it left, and classes nobody
was trained on decide: every held-out image is a query, the others are the gallery, without the
query's own group, whose images are near-copies.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fclearn.datasets import LabelledSet, split_classes
from fclearn.evaluation import CompatibilityReport, compatibility_report
from fclearn.features import FeatureSource
from fclearn.training import TrainConfig


@dataclass(frozen=True)
class UpgradeConfig:
    """Sizes and budgets; the same training budget for every model.

    Attributes:
        num_old_classes: Classes the old model is trained on.
        num_new_classes: Classes of the new training set, the old ones among them.
        num_test_classes: Held-out classes; None: all that are left.
        old_encoder: Architecture of the old model: a smaller one, as upgrades go.
        new_encoder: Architecture of all new models.
        old_dim: Dim of the old features.
        new_dim: Dim of the new embedding; its first ``old_dim`` dims carry compatibility.
        train: Hyper-parameters of all trainings.
        old_clean_share: The old model's ``clean_share``: it was trained as models are, with every
            image augmented, and nobody thought of an upgrade then.
    """

    num_old_classes: int = 100
    num_new_classes: int = 400
    num_test_classes: int | None = None
    old_encoder: str = "tiny-cnn"
    new_encoder: str = "small-cnn"
    old_dim: int = 64
    new_dim: int = 256
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=40))
    old_clean_share: float = 0.0

    @property
    def trained_encoder(self) -> str:
        """What `build_encoder` makes new models of."""
        return self.new_encoder

    def to_dict(self) -> dict[str, Any]:
        """All that results depend on, as plain values."""
        return asdict(self)


#: Exercises everything in seconds; its numbers mean nothing.
QUICK = UpgradeConfig(
    num_old_classes=10,
    num_new_classes=30,
    num_test_classes=20,
    old_dim=16,
    new_dim=24,
    train=TrainConfig(epochs=2, batch_size=32),
)


@dataclass(frozen=True)
class UpgradeData:
    """Who sees what.

    Attributes:
        old: Training images of the old model; none of one that others have trained.
        new: Training images of the new models.
        test: Held-out images, of classes in neither.
    """

    old: LabelledSet
    new: LabelledSet
    test: LabelledSet


def split_images(images: LabelledSet, config: UpgradeConfig) -> UpgradeData:
    """Share out the classes; the old ones come first in the new training set.

    Args:
        images: All of them.
        config: Numbers of classes, and the seed of the shuffle (``config.train.seed``).

    Raises:
        ValueError: Too few classes.

    Example:
        >>> from fclearn.datasets import ImageDataset
        >>> images = ImageDataset(np.zeros((6, 8, 8), np.uint8), np.arange(6), ids=list("abcdef"),
        ...                       class_names=list("abcdef"))
        >>> data = split_images(images, UpgradeConfig(num_old_classes=1, num_new_classes=4))
        >>> data.old.num_classes, data.new.num_classes, data.test.num_classes
        (1, 4, 2)
    """
    added = config.num_new_classes - config.num_old_classes
    old, rest, held_out = split_classes(
        images.num_classes, config.num_old_classes, added, seed=config.train.seed
    )
    return UpgradeData(
        images.select_classes(old),
        images.select_classes(np.concatenate([old, rest])),
        images.select_classes(held_out[: config.num_test_classes]),
    )


def report_upgrade(
    test: LabelledSet,
    *,
    old: FeatureSource,
    new: FeatureSource,
    independent: FeatureSource,
    self_test: bool = True,
    seed: int = 0,
) -> CompatibilityReport:
    """Compare models on the held-out images, each of them query and gallery row.

    Args:
        test: The images; a query's gallery leaves out its group, or where there are no groups the
            query itself.
        old: Features of the old model, shape ``(N, D_old)``.
        new: Of a new model, shape ``(N, D_new)``; or mapped ones, shape ``(N, D_old)``.
        independent: Of the new model trained on its own.
        self_test: ``new`` would also serve as a gallery.
        seed: Of the resamples behind the intervals.
    """
    # A query's own group holds the query itself, too.
    grouped = test.groups is not None
    return compatibility_report(
        old_query=old,
        old_gallery=old,
        new_query=new,
        new_gallery=new if self_test else None,
        independent_query=independent,
        independent_gallery=independent,
        query_labels=test.labels,
        gallery_labels=test.labels,
        exclude_self=not grouped,
        query_groups=test.groups,
        gallery_groups=test.groups,
        seed=seed,
    )
