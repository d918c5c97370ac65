# SPDX-License-Identifier: Apache-2.0
r"""UniBCT: BCT's loss against prototypes that the new model helps to refine while it trains.

Within each class, images are joined by how near their *new* embeddings are; the old features walk
over that graph, R = (1 - d)(I - d P)^-1 with the rows of P summing to 1, and the mean of R F_old
is the class's prototype: old features that the better model finds out of place lose weight. The
prototypes start from a graph of the old features and are refined again every ``refresh_epochs``
epochs, from the embeddings each image last had in training. For the first ``warmup_epochs`` the
loss is off.

The only released code of this refinement makes the columns of P sum to 1, with which the class
mean provably does not change, so that it trains on plain means. That is not copied. It also joins
every pair of a class; here each image has its ``k`` nearest, so cost and memory grow with the
images, not with their squares. It warms up for 10 of 35 epochs and refines at 10 and 20.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

import fcl_ext
from fclearn._row_tables import check_rows
from fclearn.classifiers import PseudoClassifier
from fclearn.graph import KnnGraph
from fclearn.losses import LossModule, LossTerm, compatible_unit
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)


class RefreshedPrototypeLoss(LossModule):
    """Cross-entropy against class means of old features, walked over a graph of the embeddings.

    Args:
        features: Old features of the training images, shape ``(N, D_old)``.
        labels: Their classes, shape ``(N,)``, int64.
        scale: Inverse temperature.
        k: Neighbours within the class.
        temperature: Of the walk's probabilities.
        damping: Probability of walking on, in (0, 1).
        warmup_epochs: The loss is zero in the first epochs.
        refresh_epochs: Epochs between two refinements, counted from the first; 0: never again.

    Raises:
        ValueError: An option out of range, or what `PseudoClassifier.refine` refuses.

    References:
        Zhang et al., *Towards Universal Backward-Compatible Representation Learning*, IJCAI 2022.
    """

    whole_batch = True
    features: Tensor
    feature_labels: Tensor
    last_embeddings: Tensor
    by_row = ("feature_labels", "last_embeddings")
    prototypes: Tensor

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        scale: float = 10.0,
        k: int = 10,
        temperature: float = 0.05,
        damping: float = 0.9,
        warmup_epochs: int = 0,
        refresh_epochs: int = 10,
    ) -> None:
        super().__init__()
        for name, value in (("warmup_epochs", warmup_epochs), ("refresh_epochs", refresh_epochs)):
            if value < 0:
                raise ValueError(f"{name}: expected at least 0, got {value}")
        unit = F.normalize(features.detach().float(), dim=1)
        self.register_buffer("features", unit, persistent=False)
        self.register_buffer("feature_labels", labels.clone(), persistent=False)
        # Part of the checkpoint, as the prototypes are: both follow from the epochs before.
        self.register_buffer("last_embeddings", unit.clone())
        self.scale, self.k, self.temperature, self.damping = scale, k, temperature, damping
        self.warmup_epochs, self.refresh_epochs = warmup_epochs, refresh_epochs
        self._active = True
        self.register_buffer("prototypes", self._refined())

    def _refined(self) -> Tensor:
        graph = KnnGraph.build(self.last_embeddings, self.k, labels=self.feature_labels)
        means = PseudoClassifier.from_means(self.features, self.feature_labels)
        return means.refine(graph.normalize(self.temperature), self.damping).prototypes

    def on_epoch(self, epoch: int, epochs: int) -> None:  # noqa: ARG002
        """Refine the prototypes, if this epoch is one to do so."""
        self._active = epoch > self.warmup_epochs
        if self.refresh_epochs and epoch > 1 and (epoch - 1) % self.refresh_epochs == 0:
            self.prototypes.copy_(self._refined())

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of the batch, whose embeddings are kept for the next refinement.

        Raises:
            ValueError: Another number of rows than of embeddings.
        """
        check_rows(rows, embeddings)
        part = compatible_unit(embeddings, self.prototypes.shape[1])
        if self.training:
            self.last_embeddings[rows] = part.detach().to(self.last_embeddings.dtype)
        if not self._active:
            return embeddings.new_zeros(())
        return fcl_ext.compat_loss(
            part, self.prototypes.to(part.dtype), labels, scale=self.scale, normalize=False
        )

    def extra_repr(self) -> str:
        """Shapes and hyper-parameters."""
        count, dim = self.prototypes.shape
        names = ("scale", "k", "temperature", "damping", "warmup_epochs", "refresh_epochs")
        options = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"num_classes={count}, dim={dim}, {options}"


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    module = RefreshedPrototypeLoss(
        assets.features,
        assets.labels,
        scale=float(settings["scale"]),
        k=int(settings["k"]),
        temperature=float(settings["temperature"]),
        damping=float(settings["damping"]),
        warmup_epochs=int(settings["warmup_epochs"]),
        refresh_epochs=int(settings["refresh_epochs"]),
    )
    return [
        new_classifier(assets, dim, settings),
        LossTerm("compat", float(settings["weight"]), module),
    ]


SPEC = MethodSpec(
    name="uni-bct",
    title="UniBCT (prototypes refined in training)",
    source="Zhang et al., IJCAI 2022",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={
        **NEW_CLASSIFIER_DEFAULTS,
        "k": 10,
        "temperature": 0.05,
        "damping": 0.9,
        "warmup_epochs": 0,
        "refresh_epochs": 10,
        "scale": 10.0,
        "weight": 1.0,
    },
    build=_build,
)
