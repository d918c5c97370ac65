# SPDX-License-Identifier: Apache-2.0
"""NI-FCL with class means of the old features, refined by a random walk.

``walk``: ``within-class`` (PageRank-weighted class means over the kNN graph of the old features:
outliers lose weight; with ``refresh_epochs``, over a graph of the new embeddings, made again every
so many epochs), ``global`` (features flow between classes too), ``soft-targets`` (each image's
target is its class mean mixed with those of its neighbours) or ``in-batch`` (the class means stay;
the embeddings of a batch walk over their own affinities before they are compared with them, so
that gradients flow through the walk).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fcl_ext
from fclearn.classifiers import PseudoClassifier
from fclearn.graph import KnnGraph
from fclearn.losses import LossModule, LossTerm, PseudoClassifierLoss, compatible_unit
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)
from fclearn.methods.uni_bct import RefreshedPrototypeLoss

_WALKS = ("within-class", "global", "soft-targets", "in-batch")


class BatchWalkLoss(LossModule):
    r"""Cross-entropy of embeddings that have walked over the affinities of their batch.

    With unit embeddings Z of B images, P the softmax of Z Zᵀ / temperature over the *other* images,
    the logits are those of (1 - damping)(I - damping P)⁻¹ Z: an image whose neighbours in the
    batch are of another class is pulled out from among them. The walk commutes with the product by
    the prototypes, so it is done on B x D, not on B x C.

    Args:
        prototypes: Shape ``(C, D_old)``; frozen here.
        scale: Inverse temperature of the classifier.
        temperature: Of the walk's probabilities, > 0.
        damping: Probability of walking on, in [0, 1).

    Raises:
        ValueError: A temperature or a damping out of range.

    Example:
        >>> term = BatchWalkLoss(torch.eye(3), damping=0.5)
        >>> term(torch.eye(3), torch.arange(3), torch.arange(3)).shape
        torch.Size([])
    """

    whole_batch = True
    prototypes: Tensor

    def __init__(
        self,
        prototypes: Tensor,
        *,
        scale: float = 10.0,
        temperature: float = 0.1,
        damping: float = 0.5,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number > 0, got {temperature}")
        if not 0 <= damping < 1:
            raise ValueError(f"damping: expected a number in [0, 1), got {damping}")
        self.register_buffer("prototypes", F.normalize(prototypes.detach(), dim=1))
        self.scale, self.temperature, self.damping = scale, temperature, damping

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Mean loss of the batch."""
        part = compatible_unit(embeddings, self.prototypes.shape[1])
        return fcl_ext.compat_loss(
            self._walked(part), self.prototypes, labels, scale=self.scale, normalize=False
        )

    def _walked(self, rows: Tensor) -> Tensor:
        if len(rows) < 2:  # nowhere to go
            return rows
        own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        affinities = (rows @ rows.T / self.temperature).masked_fill(own, -torch.inf)
        stays = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        # Rows of the matrix are strictly diagonally dominant: damping < 1.
        walked: Tensor = torch.linalg.solve(stays - self.damping * affinities.softmax(1), rows)
        return (1 - self.damping) * walked

    def extra_repr(self) -> str:
        """Shapes and hyper-parameters."""
        count, dim = self.prototypes.shape
        names = ("scale", "temperature", "damping")
        options = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"num_classes={count}, dim={dim}, {options}"


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    compat = LossTerm("compat", float(settings["weight"]), _compat(assets, settings))
    return [new_classifier(assets, dim, settings), compat]


def _compat(assets: Assets, settings: Settings) -> nn.Module:
    walk, refresh = settings["walk"], int(settings["refresh_epochs"])
    if walk not in _WALKS:
        raise ValueError(f"walk: expected one of {list(_WALKS)}, got {walk!r}")
    if refresh and walk != "within-class":
        raise ValueError(f"refresh_epochs: expected 0 with walk={walk!r}, got {refresh}")
    features, labels = assets.features, assets.labels
    scale, temperature = float(settings["scale"]), float(settings["temperature"])
    damping, k = float(settings["damping"]), int(settings["k"])
    pseudo = PseudoClassifier.from_means(features, labels)
    if walk == "in-batch":
        return BatchWalkLoss(
            pseudo.prototypes, scale=scale, temperature=temperature, damping=damping
        )
    if refresh:
        return RefreshedPrototypeLoss(
            features,
            labels,
            scale=scale,
            k=k,
            temperature=temperature,
            damping=damping,
            refresh_epochs=refresh,
        )
    graph = KnnGraph.build(
        features,
        min(k, len(features) - 1),
        labels=labels if walk == "within-class" else None,
    ).normalize(temperature=temperature)
    if walk == "soft-targets":
        soft = pseudo.soft_targets(graph, damping)
        return PseudoClassifierLoss(pseudo.prototypes, scale=scale, soft_targets=soft)
    return PseudoClassifierLoss(pseudo.refine(graph, damping).prototypes, scale=scale)


SPEC = MethodSpec(
    name="ni-fcl-walk",
    title="NI-FCL, class means refined by a random walk",
    source="Shen, Wu, Shan, ICLR 2021 submission; Zhang et al. (UniBCT), IJCAI 2022",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={
        **NEW_CLASSIFIER_DEFAULTS,
        "walk": "within-class",
        "k": 10,
        "temperature": 0.1,
        "damping": 0.9,
        "refresh_epochs": 0,
        "scale": 10.0,
        "weight": 1.0,
    },
    build=_build,
)
