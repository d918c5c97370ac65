# SPDX-License-Identifier: Apache-2.0
"""What a method is, and what it may ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fclearn._frozen_rows import check_finite
from fclearn.graph import KnnGraph
from fclearn.losses import CosineClassifierLoss, LossTerm

Setting = int | float | str | bool
Settings = Mapping[str, Setting]


class Need(Enum):
    """Things a method may need; the values say what they are and how they are passed."""

    LABELS = "labels of the training images (labels)"
    FEATURE_CACHE = "the old model's features of the training images (old_features)"
    OLD_MODEL = "the old model itself, to ask about augmented images (old_model)"
    OLD_CLASSIFIER = "the old classifier (old_classifier)"
    INDEPENDENT_FEATURES = "the independent new model's features of them (independent_features)"
    OLD_SCORES = "the old service's scores of the training images among each other (old_scores)"


@dataclass(frozen=True)
class Assets:
    """What you own, row-aligned with the training images.

    Attributes:
        labels: Shape ``(N,)``, int64, 0 .. C - 1.
        old_features: The old model's features of the same images, shape ``(N, D_old)``.
        old_classifier: Rows of the old model's classifier for some of the classes, shape
            ``(K, D_old)``, and
        old_classes: which classes these are, shape ``(K,)``, int64.
        independent_features: Features of the same images by the new architecture, trained without
            compatibility, shape ``(N, D_independent)``.
        old_model: The old model, from images to features; asked, never trained.
        old_scores: What the old service finds for each image among the others: a graph of N nodes,
            not normalised, as of `fclearn.score_lists.read_score_lists`.

    Raises:
        TypeError: Arrays in the place of tensors.
        ValueError: Tensors that are not aligned, labels that are no class numbers, features that
            are not finite.
    """

    labels: Tensor
    old_features: Tensor | None = None
    old_classifier: Tensor | None = None
    old_classes: Tensor | None = None
    independent_features: Tensor | None = None
    old_model: nn.Module | None = None
    old_scores: KnnGraph | None = None

    def __post_init__(self) -> None:
        _check_labels(self.labels)
        if self.old_features is not None:
            _check_rows("old_features", self.old_features, len(self.labels))
        if self.independent_features is not None:
            _check_rows("independent_features", self.independent_features, len(self.labels))
        if self.old_classifier is not None:
            self._check_old_classifier(self.old_classifier)
        if self.old_scores is not None:
            _check_scores(self.old_scores, len(self.labels))

    def _check_old_classifier(self, rows: Tensor) -> None:
        _check_rows("old_classifier", rows)
        if self.old_features is not None and rows.shape[1:] != self.old_features.shape[1:]:
            raise ValueError(
                f"old_classifier: expected {self.old_dim} dims as the old features, "
                f"got {rows.shape[1]}"
            )
        if self.old_classes is not None:
            _check_tensor("old_classes", self.old_classes, "int64 of shape (K,)")
        if self.old_classes is None or len(self.old_classes) != len(rows):
            raise ValueError("old_classes: expected one class per row of old_classifier")
        classes = self.old_classes.tolist()
        if len(set(classes)) != len(classes) or not set(classes) <= set(range(self.num_classes)):
            raise ValueError(
                f"old_classes: expected distinct labels in [0, {self.num_classes}), got {classes}"
            )

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.labels.max()) + 1

    @property
    def old_dim(self) -> int:
        """Dim of the old features; 0 without any."""
        return 0 if self.old_features is None else self.old_features.shape[1]

    @property
    def features(self) -> Tensor:
        """The old features, of unit length.

        Raises:
            ValueError: There are none.
        """
        if self.old_features is None:
            raise ValueError(f"missing: {Need.FEATURE_CACHE.value}")
        return F.normalize(self.old_features.to(torch.float32), dim=1)

    def has(self, need: Need) -> bool:
        """Whether a need is met."""
        if need is Need.FEATURE_CACHE:
            return self.old_features is not None
        if need is Need.INDEPENDENT_FEATURES:
            return self.independent_features is not None
        if need is Need.OLD_MODEL:
            return self.old_model is not None
        if need is Need.OLD_CLASSIFIER:
            return self.old_classifier is not None
        if need is Need.OLD_SCORES:
            return self.old_scores is not None
        return True


@dataclass(frozen=True)
class MethodSpec:
    """A method: an idea, its source, its needs and its loss terms.

    Attributes:
        name: As on the command line.
        title: In a table.
        source: Paper.
        needs: What it cannot do without.
        defaults: Its settings.
        build: From assets, embedding dim and settings to loss terms.

    Example:
        >>> from fclearn.methods import get_method
        >>> get_method("l2").idea
        "L2: pull each embedding to its image's own old feature (a baseline of the BCT paper)."
    """

    name: str
    title: str
    source: str
    needs: tuple[Need, ...]
    defaults: Settings
    build: Callable[[Assets, int, Settings], list[LossTerm]]

    @property
    def idea(self) -> str:
        """How it works: the docstring of the module that builds it."""
        module = inspect.getmodule(self.build)
        return inspect.cleandoc((module and module.__doc__) or "")


def _check_tensor(name: str, value: object, expected: str) -> None:
    if isinstance(value, Tensor):
        return
    got, hint = type(value).__name__, ""
    if isinstance(value, np.ndarray):
        got = f"a numpy array, {value.dtype} of {list(value.shape)}"
        hint = "; torch.from_numpy makes one of it"
    raise TypeError(f"{name}: expected a tensor, {expected}, got {got}{hint}")


def _check_labels(labels: Tensor) -> None:
    _check_tensor("labels", labels, "int64 of shape (N,)")
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(
            f"labels: expected int64 of shape (N,), got {labels.dtype} of {list(labels.shape)}"
        )
    if len(labels) == 0:
        raise ValueError("labels: expected at least one")
    if int(labels.min()) < 0:
        raise ValueError(f"labels: expected values >= 0, got {int(labels.min())}")


def _check_rows(name: str, rows: Tensor, num_labels: int | None = None) -> None:
    _check_tensor(name, rows, "floating of shape (N, D)")
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(
            f"{name}: expected floating of shape (N, D), got {rows.dtype} of {list(rows.shape)}"
        )
    if num_labels is not None and len(rows) != num_labels:
        raise ValueError(f"{name}: expected one row per label ({num_labels}), got {len(rows)}")
    check_finite(name, rows)
    zero = (~rows.any(1)).nonzero()
    if len(zero):
        # As a row of an instance-level classifier it would attract every image a little.
        raise ValueError(
            f"{name}: row {int(zero[0])} is zero and has no direction ({len(zero)} such "
            "rows); leave these images out"
        )


def _check_scores(scores: KnnGraph, num_labels: int) -> None:
    if scores.num_nodes != num_labels:
        raise ValueError(
            f"old_scores: expected one list per label ({num_labels}), got {scores.num_nodes}"
        )
    if scores.mode is not None:
        raise ValueError(
            f"old_scores: expected scores, got a normalised graph (mode={scores.mode!r})"
        )


NEW_CLASSIFIER_DEFAULTS: Settings = {"classifier_scale": 16.0, "label_smoothing": 0.0}


def new_classifier(assets: Assets, dim: int, settings: Settings) -> LossTerm:
    """The new model's own cosine classifier, the same in every method."""
    return LossTerm(
        "new",
        1.0,
        CosineClassifierLoss(
            assets.num_classes,
            dim,
            scale=float(settings["classifier_scale"]),
            label_smoothing=float(settings["label_smoothing"]),
        ),
    )
