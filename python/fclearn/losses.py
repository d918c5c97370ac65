# SPDX-License-Identifier: Apache-2.0
"""Loss terms as modules: they hold what is frozen and call :mod:`fcl_ext` in one line.

How all are called, and what they may say of themselves: `LossModule`. Embeddings may be wider than
the old features: their first dims carry the compatibility.

Old features are no part of a module's state: as large as the training set, they would be written
with every checkpoint, and whoever resumes has them. What was computed from them is.

What a module holds frozen may be an array of NumPy, such as the memory map of a store: it is copied
as float32, while tensors keep their dtype. A NaN or an infinity in it is refused when it is made.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fcl_ext
from fclearn._frozen_rows import class_numbers, frozen_rows
from fclearn._loss_terms import EpochHook, LossModule, LossTerm
from fclearn._row_tables import at_rows

__all__ = [
    "CosineClassifierLoss",
    "DistillCompatLoss",
    "EpochHook",
    "InstanceCompatLoss",
    "L2CompatLoss",
    "LossModule",
    "LossTerm",
    "PseudoClassifierLoss",
    "compatible_part",
    "compatible_unit",
]


def compatible_part(embeddings: Tensor, dim: int) -> Tensor:
    """The first dims of the embeddings, those compared with the old features.

    Args:
        embeddings: Shape ``(B, D)``.
        dim: Dim of the old features.

    Raises:
        ValueError: Embeddings narrower than the old features.

    Example:
        >>> compatible_part(torch.ones(2, 5), 3).shape
        torch.Size([2, 3])
    """
    if embeddings.shape[1] < dim:
        raise ValueError(
            f"embeddings: expected at least the {dim} dims of the old features, "
            f"got {embeddings.shape[1]}"
        )
    return embeddings[:, :dim]


def compatible_unit(embeddings: Tensor, dim: int) -> Tensor:
    """The first dims of the embeddings, of unit length: what is compared with unit old features.

    Args:
        embeddings: Shape ``(B, D)``, floating.
        dim: Dim of the old features.

    Returns:
        Shape ``(B, dim)``; rows of zeros stay zero.

    Raises:
        ValueError: Embeddings narrower than the old features.

    Example:
        >>> compatible_unit(torch.tensor([[3.0, 4.0, 7.0]]), 2)
        tensor([[0.6000, 0.8000]])
    """
    return F.normalize(compatible_part(embeddings, dim), dim=1)


class CosineClassifierLoss(LossModule):
    """The new model's own classifier: trainable prototypes under a cosine softmax.

    Args:
        num_classes: C.
        dim: Embedding dim.
        scale: Inverse temperature.
        margin: Margin of the target class (0: none).
        margin_type: ``"cosface"`` or ``"arcface"``.
        label_smoothing: In [0, 1].

    Example:
        >>> term = CosineClassifierLoss(10, 4)
        >>> term(torch.randn(3, 4), torch.tensor([0, 5, 9])).shape
        torch.Size([])
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scale: float = 16.0,
        margin: float = 0.0,
        margin_type: fcl_ext.losses.MarginType = "cosface",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(num_classes, dim) / math.sqrt(dim))
        self.scale = scale
        self.margin = margin
        self.margin_type: fcl_ext.losses.MarginType = margin_type
        self.label_smoothing = label_smoothing

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Mean loss of the batch."""
        return fcl_ext.compat_loss(
            embeddings,
            self.prototypes,
            labels,
            scale=self.scale,
            margin=self.margin,
            margin_type=self.margin_type,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """Shapes and hyper-parameters."""
        count, dim = self.prototypes.shape
        return (
            f"num_classes={count}, dim={dim}, scale={self.scale}, margin={self.margin}, "
            f"margin_type={self.margin_type!r}, label_smoothing={self.label_smoothing}"
        )


class PseudoClassifierLoss(LossModule):
    r"""Cross-entropy against a frozen pseudo classifier (the influence loss of BCT).

    Args:
        prototypes: Tensor or array, floating of shape ``(C, D_old)``; frozen here.
        scale: Inverse temperature.
        label_smoothing: In [0, 1].
        soft_targets: Walk-refined target vectors, one per training image, tensor or array of shape
            ``(N, D_old)``; replace the prototype of the label.

    Raises:
        ValueError: Other shapes or dtypes, a NaN or an infinity, soft targets of another dim
            than the prototypes, or with label smoothing.

    References:
        Shen et al., *Towards Backward-Compatible Representation Learning*, CVPR 2020.
    """

    by_row = ("soft_targets",)
    prototypes: Tensor
    soft_targets: Tensor | None

    def __init__(
        self,
        prototypes: Tensor | np.ndarray,
        *,
        scale: float = 10.0,
        label_smoothing: float = 0.0,
        soft_targets: Tensor | np.ndarray | None = None,
    ) -> None:
        super().__init__()
        prototypes = frozen_rows("prototypes", prototypes)
        if soft_targets is not None:
            soft_targets = frozen_rows("soft_targets", soft_targets)
            if label_smoothing:
                raise ValueError(
                    "label_smoothing: soft targets are used as given, "
                    f"expected 0 with them, got {label_smoothing}"
                )
            if soft_targets.shape[1] != prototypes.shape[1]:
                raise ValueError(
                    f"soft_targets: expected {prototypes.shape[1]} dims as the prototypes, "
                    f"got {soft_targets.shape[1]}"
                )
        self.register_buffer("prototypes", F.normalize(prototypes, dim=1))
        self.register_buffer("soft_targets", None if soft_targets is None else soft_targets.clone())
        self.scale = scale
        self.label_smoothing = label_smoothing

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean loss of the batch; rows are needed with soft targets.

        Raises:
            ValueError: With soft targets, no rows, or another number than of embeddings.
        """
        part = compatible_unit(embeddings, self.prototypes.shape[1])
        if self.soft_targets is not None:
            if rows is None:
                raise ValueError("rows: soft targets are looked up by training row; got None")
            return fcl_ext.compat_loss(
                part,
                self.prototypes,
                targets=at_rows(self.soft_targets, rows, embeddings),
                scale=self.scale,
                normalize=False,
            )
        return fcl_ext.compat_loss(
            part,
            self.prototypes,
            labels,
            scale=self.scale,
            label_smoothing=self.label_smoothing,
            normalize=False,
        )

    def extra_repr(self) -> str:
        """Shapes and hyper-parameters."""
        count, dim = self.prototypes.shape
        soft = self.soft_targets is not None
        return (
            f"num_classes={count}, dim={dim}, scale={self.scale}, "
            f"label_smoothing={self.label_smoothing}, soft_targets={soft}"
        )


class InstanceCompatLoss(LossModule):
    """Every old feature a frozen row, the rows of one's class the target set.

    Args:
        features: Old features of the training images, tensor or array, floating of shape
            ``(N, D_old)``; a tensor has the dtype of the embeddings.
        labels: Their classes, integers of shape ``(N,)``, not far above N (see
            `fcl_ext.PositiveSets.from_labels`).
        scale: Inverse temperature.
        positives: Instead of the class's own rows: weighted sets, as from a random walk.

    Raises:
        ValueError: Features of another shape or dtype, a NaN or an infinity in them, or labels that
            are not one integer per feature, negative or large ids.
    """

    features: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    log_weights: Tensor | None

    def __init__(
        self,
        features: Tensor | np.ndarray,
        labels: Tensor | np.ndarray,
        *,
        scale: float = 10.0,
        positives: fcl_ext.PositiveSets | None = None,
    ) -> None:
        super().__init__()
        features = frozen_rows("features", features)
        if len(labels) != len(features):
            raise ValueError(
                f"labels: expected one per feature ({len(features)}), got {len(labels)}"
            )
        if positives is None:
            positives = fcl_ext.PositiveSets.from_labels(class_numbers(labels, len(features)))
        self.register_buffer("features", F.normalize(features, dim=1), persistent=False)
        self.register_buffer("crow_indices", positives.crow_indices, persistent=False)
        self.register_buffer("col_indices", positives.col_indices, persistent=False)
        self.register_buffer("log_weights", positives.log_weights)
        self.scale = scale

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Mean loss of the batch."""
        part = compatible_unit(embeddings, self.features.shape[1])
        return fcl_ext.compat_supcon(
            part,
            labels,
            self.features,
            positives=(self.crow_indices, self.col_indices, self.log_weights),
            scale=self.scale,
            normalize=False,
        )

    def extra_repr(self) -> str:
        """Shapes and hyper-parameters."""
        count, dim = self.features.shape
        return f"num_features={count}, dim={dim}, scale={self.scale}"


class L2CompatLoss(LossModule):
    """Squared distance between the unit embedding and the image's own old feature.

    Args:
        features: Old features of the training images, tensor or array, floating of shape
            ``(N, D_old)``.

    Raises:
        ValueError: Another shape or dtype, a NaN or an infinity.
    """

    by_row = ("features",)
    features: Tensor

    def __init__(self, features: Tensor | np.ndarray) -> None:
        super().__init__()
        unit = F.normalize(frozen_rows("features", features), dim=1)
        self.register_buffer("features", unit, persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        """Mean loss of the batch.

        Raises:
            ValueError: No rows, another number than of embeddings, or one out of range (CPU).
        """
        part = compatible_unit(embeddings, self.features.shape[1])
        return (part - at_rows(self.features, rows, embeddings)).square().sum(1).mean()

    def extra_repr(self) -> str:
        """Shapes."""
        return f"num_features={self.features.shape[0]}, dim={self.features.shape[1]}"


class DistillCompatLoss(LossModule):
    """KL(old || new) between the softmaxes of old feature and embedding over the same prototypes.

    Args:
        prototypes: Tensor or array, floating of shape ``(C, D_old)``; frozen here.
        features: Old features of the training images, tensor or array of shape ``(N, D_old)``: the
            teacher, read out once.
        scale: Inverse temperature.
        teacher_scale: Of the teacher's softmax, where it is to be sharper; None: the same.

    Raises:
        ValueError: Other shapes or dtypes, a NaN or an infinity.

    References:
        Li and Hoiem, *Learning without Forgetting*, ECCV 2016.
    """

    by_row = ("teacher_mean", "teacher_negative_entropy")
    prototypes: Tensor
    teacher_mean: Tensor
    teacher_negative_entropy: Tensor

    def __init__(
        self,
        prototypes: Tensor | np.ndarray,
        features: Tensor | np.ndarray,
        *,
        scale: float = 10.0,
        teacher_scale: float | None = None,
    ) -> None:
        super().__init__()
        unit = F.normalize(frozen_rows("prototypes", prototypes), dim=1)
        self.register_buffer("prototypes", unit)
        teacher_scale = scale if teacher_scale is None else teacher_scale
        old = frozen_rows("features", features)
        teacher = fcl_ext.teacher_readout(old, self.prototypes, scale=teacher_scale)
        self.register_buffer("teacher_mean", teacher.mean)
        self.register_buffer("teacher_negative_entropy", teacher.negative_entropy)
        self.scale, self.teacher_scale = scale, teacher_scale

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        """Mean loss of the batch.

        Raises:
            ValueError: No rows, another number than of embeddings, or one out of range (CPU).
        """
        part = compatible_unit(embeddings, self.prototypes.shape[1])
        mean = at_rows(self.teacher_mean, rows, embeddings)
        return fcl_ext.compat_kl(
            part,
            self.prototypes,
            teacher=(mean, self.teacher_negative_entropy[rows]),
            scale=self.scale,
            normalize=False,
        )

    def extra_repr(self) -> str:
        """Shapes and hyper-parameters."""
        count, dim = self.prototypes.shape
        teacher = "" if self.teacher_scale == self.scale else f", teacher={self.teacher_scale}"
        return f"num_classes={count}, dim={dim}, scale={self.scale}{teacher}"
