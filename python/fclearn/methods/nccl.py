# SPDX-License-Identifier: Apache-2.0
r"""NCCL: neighbours in the old space, weighted by how near they are, are the targets.

Supervised contrast from embedding z_i to old features f_j, each positive (the same class) weighted
by w_ij = (1 + cos(f_i, f_j)) / 2, and old features of which a classifier is not sure left out:
l_i = -1/n sum_{j in class} w_ij log softmax_j(s z_i.f_j). The same contrast in the space of the
classifiers' outputs (W_new z against W_old f) is added with a small weight.

The weights are linear in f_j, so l_i = w_i (lse_i - s z_i.t_i) with one target vector t_i per
image, computed once: the rows are *all* cached old features, where the paper keeps a queue of
8192. Outputs of the classifiers are compared by cosine, through D x D products of their rows: no
output vector of C numbers is ever made. The old classifier is a head learned on the old features.
A feature is left out if its entropy under that head exceeds ``max_entropy`` times log C.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import fcl_ext
from fclearn._row_tables import at_rows
from fclearn.classifiers import PseudoClassifier
from fclearn.losses import CosineClassifierLoss, LossModule, LossTerm, compatible_unit
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)

# At which `PseudoClassifier.fit` trains, so that its probabilities mean something.
_HEAD_SCALE = 20.0


class NeighbourContrastLoss(LossModule):
    r"""Weighted contrast of embeddings against all credible old features.

    Args:
        features: Unit old features of the training images, shape ``(N, D_old)``: they weight.
        labels: Their classes, shape ``(N,)``, int64.
        credible: Which of them are rows to contrast with, shape ``(N,)``, bool.
        scale: Inverse temperature.
        head: Rows of the old classifier, shape ``(C, D_old)``. With it, its outputs are contrasted
            with those of
        classifier: the new classifier, instead of features with embeddings.

    References:
        Wu et al., *Neighborhood Consensus Contrastive Learning for Backward-Compatible
        Representation*, AAAI 2022.
    """

    by_row = ("targets", "weights")
    bank: Tensor
    targets: Tensor
    weights: Tensor
    head: Tensor | None

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        credible: Tensor,
        *,
        scale: float = 10.0,
        head: Tensor | None = None,
        classifier: CosineClassifierLoss | None = None,
    ) -> None:
        super().__init__()
        rows = features.detach()
        if head is not None:
            # <W f, W g> = f (W^T W) g: the length of W f without its C numbers.
            rows = rows / (rows @ (head.T @ head) * rows).sum(1, keepdim=True).sqrt()
        targets, weights = _weighted_targets(features.detach(), rows, labels, credible)
        self.register_buffer("bank", rows[credible], persistent=False)
        self.register_buffer("targets", targets, persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("head", head, persistent=False)
        self.classifier = classifier
        self.scale = scale

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        """Mean loss of the batch.

        Raises:
            ValueError: Another number of rows than of embeddings.
        """
        losses = fcl_ext.compat_loss(
            self._query(embeddings),
            self.bank,
            targets=at_rows(self.targets, rows, embeddings),
            scale=self.scale,
            normalize=False,
            reduction="none",
        )
        return (self.weights[rows] * losses).mean()

    def _query(self, embeddings: Tensor) -> Tensor:
        """What the rows of the bank are multiplied with: a D_old-vector per image."""
        if self.head is None or self.classifier is None:
            return compatible_unit(embeddings, self.bank.shape[1])
        unit = F.normalize(embeddings, dim=1)
        prototypes = F.normalize(self.classifier.prototypes, dim=1)
        # An embedding that no row of the classifier points at has outputs of length zero.
        squared = (unit @ (prototypes.T @ prototypes) * unit).sum(1, keepdim=True)
        return unit @ (prototypes.T @ self.head) / squared.clamp(min=1e-12).sqrt()

    def extra_repr(self) -> str:
        """Shapes and hyper-parameters."""
        count, dim = self.bank.shape
        return f"num_rows={count}, dim={dim}, scale={self.scale}, outputs={self.head is not None}"


def _weighted_targets(
    features: Tensor, rows: Tensor, labels: Tensor, credible: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean of the class's rows weighted by nearness of features, (N, D), and mean weight."""
    targets, weights = torch.zeros_like(rows), rows.new_zeros(len(rows))
    order = torch.argsort(labels, stable=True)
    for members in order.split(torch.bincount(labels).tolist()):
        chosen = members[credible[members]]
        if len(chosen) == 0:
            continue
        # sum_j (1 + f_i.f_j)/2 r_j = (sum_j r_j + (sum_j r_j f_j^T) f_i) / 2
        near, gain = features[chosen], rows[chosen]
        weight = 0.5 * (1 + features[members] @ near.mean(0)).clamp(min=1e-6)
        total = 0.5 * (gain.mean(0) + features[members] @ (near.T @ gain / len(chosen)))
        targets[members], weights[members] = total / weight[:, None], weight
    return targets, weights


def _credible(features: Tensor, head: Tensor, max_entropy: float) -> Tensor:
    teacher = fcl_ext.teacher_readout(features, head, scale=_HEAD_SCALE)
    credible = -teacher.negative_entropy <= max_entropy * math.log(len(head))
    if not bool(credible.any()):
        raise ValueError(
            f"max_entropy: at {max_entropy} no old feature is credible; expected a share of "
            "log C, up to 1 for all features"
        )
    return credible


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    head = PseudoClassifier.fit(assets.features, assets.labels, scale=_HEAD_SCALE).prototypes
    credible = _credible(assets.features, head, float(settings["max_entropy"]))
    scale = float(settings["scale"])
    new = new_classifier(assets, dim, settings)
    assert isinstance(new.module, CosineClassifierLoss)
    own = (assets.features, assets.labels, credible)
    return [
        new,
        LossTerm("compat", float(settings["weight"]), NeighbourContrastLoss(*own, scale=scale)),
        LossTerm(
            "compat",
            float(settings["logit_weight"]),
            NeighbourContrastLoss(*own, scale=scale, head=head, classifier=new.module),
        ),
    ]


SPEC = MethodSpec(
    name="nccl",
    title="NCCL (neighbourhood consensus)",
    source="Wu et al., AAAI 2022",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={
        **NEW_CLASSIFIER_DEFAULTS,
        "scale": 10.0,
        "max_entropy": 0.5,
        "weight": 1.0,
        "logit_weight": 0.01,
    },
    build=_build,
)
