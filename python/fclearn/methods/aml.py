# SPDX-License-Identifier: Apache-2.0
r"""AML, asymmetric metric learning: new embeddings are anchors, old features what they meet.

With unit vectors, D a Euclidean distance, a an anchor (a new embedding), p the old feature of
another image of its class, n one of another class, and f(a) the anchor's own old feature, ``loss``
is one of

* ``regression``: 1/2 D(a, f(a))^2, no labels needed;
* ``contrastive``: 1/2 D(a, p)^2 + 1/2 max(0, m - D(a, n))^2;
* ``contrastive+``: the same, with f(a) as one more positive;
* ``triplet``: max(0, D(a, p)^2 - D(a, n)^2 + m);
* ``multi-similarity``: soft maxima over all pairs of the batch.

Positives are the images of the class in the batch and one more, drawn from all training images
(a batch rarely holds two of a class); negatives are the hardest of the batch. ``symmetric`` lets
new embeddings meet new embeddings instead: the paper's symmetric training, for comparison, in
which only the own old feature of ``contrastive+`` still ties the two models. The paper trains
with this loss alone; here the new classifier that every method has stands beside it, and the
default weight is that at which ``regression`` is the method ``l2`` at its default.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import fcl_ext
from fclearn._row_tables import at_rows
from fclearn.losses import LossModule, LossTerm, compatible_unit
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)

_LOSSES = ("regression", "contrastive", "contrastive+", "triplet", "multi-similarity")
# Scales and threshold of multi-similarity, as in its paper and in AML's code.
_POSITIVE_SCALE, _NEGATIVE_SCALE, _THRESHOLD = 2.0, 40.0, 0.5


class AsymmetricMetricLoss(LossModule):
    """Pairs of new embeddings with old features, under one of the losses of metric learning.

    Args:
        features: Old features of the training images, shape ``(N, D_old)``.
        labels: Their classes, shape ``(N,)``, int64.
        loss: One of those above.
        margin: Of contrastive (a distance) or triplet (a squared distance).
        num_negatives: Hardest negatives per anchor, for contrastive and triplet.
        symmetric: New embeddings meet new embeddings.

    Raises:
        ValueError: An unknown loss, an option out of range, symmetric regression.

    References:
        Budnik and Avrithis, *Asymmetric Metric Learning for Knowledge Transfer*, CVPR 2021.
        Wang et al., *Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning*,
        CVPR 2019.

    Example:
        >>> term = AsymmetricMetricLoss(torch.eye(3), torch.tensor([0, 0, 1]), loss="regression")
        >>> rows = torch.tensor([2])
        >>> term(torch.tensor([[0.0, 0.0, 7.0]]), torch.tensor([1]), rows).item()
        0.0
    """

    whole_batch = True
    by_row = ("features", "place")
    features: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    place: Tensor

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        loss: str = "contrastive+",
        margin: float = 0.7,
        num_negatives: int = 5,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        if loss not in _LOSSES:
            raise ValueError(f"loss: expected one of {list(_LOSSES)}, got {loss!r}")
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin: expected a number >= 0, got {margin}")
        if num_negatives < 1:
            raise ValueError(f"num_negatives: expected at least 1, got {num_negatives}")
        if symmetric and loss == "regression":
            raise ValueError("symmetric: regression has no pairs of new embeddings")
        self.loss, self.margin = loss, margin
        self.num_negatives, self.symmetric = num_negatives, symmetric
        sets = fcl_ext.PositiveSets.from_labels(labels)
        place = torch.empty_like(labels)
        # Where each row stands among those of its class.
        place[sets.col_indices] = (
            torch.arange(len(labels), device=labels.device)
            - sets.crow_indices[labels[sets.col_indices]]
        )
        for name, tensor in (
            ("features", F.normalize(features.detach(), dim=1)),
            ("crow_indices", sets.crow_indices),
            ("col_indices", sets.col_indices),
            ("place", place),
        ):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of the batch."""
        anchors = compatible_unit(embeddings, self.features.shape[1])
        own = at_rows(self.features, rows, embeddings)
        if self.loss == "regression":
            return 0.5 * (anchors - own).square().sum(1).mean()
        others, other_labels, other_rows = anchors, labels, rows
        if not self.symmetric:
            drawn = self._another_of_the_class(labels, rows)
            others = torch.cat([own, self.features[drawn]])
            other_labels = torch.cat([labels, labels])
            other_rows = torch.cat([rows, drawn])
        cosines = anchors @ others.T
        same = labels[:, None] == other_labels
        positive = same & (rows[:, None] != other_rows)
        if self.loss == "multi-similarity":
            return _multi_similarity(cosines, positive, ~same).mean()
        hardest, negative = _hardest(cosines, ~same, self.num_negatives)
        if self.loss == "triplet":
            return self._triplet(cosines, positive, hardest, negative).mean()
        pull, count = (0.5 * _squared(cosines) * positive).sum(1), positive.sum(1)
        if self.loss == "contrastive+":
            pull, count = pull + 0.5 * (anchors - own).square().sum(1), count + 1
        # Away from 0, where the square root has no gradient: any margin ends there anyway.
        distance = _squared(hardest).clamp(min=1e-12).sqrt()
        push = 0.5 * F.relu(self.margin - distance).square()
        return (pull / count.clamp(min=1) + _mean(push, negative)).mean()

    def _triplet(
        self, cosines: Tensor, positive: Tensor, hardest: Tensor, negative: Tensor
    ) -> Tensor:
        losses = F.relu(_squared(cosines)[:, :, None] - _squared(hardest)[:, None] + self.margin)
        pairs = positive[:, :, None] & negative[:, None]
        return _mean(losses.flatten(1), pairs.flatten(1))

    def _another_of_the_class(self, labels: Tensor, rows: Tensor) -> Tensor:
        """A random other row of each image's class; its own row if there is none."""
        others = (self.crow_indices[labels + 1] - self.crow_indices[labels] - 1).clamp(min=1)
        draw = torch.rand(len(labels), device=labels.device)
        step = 1 + (draw * others).long().clamp(max=others - 1)
        size = self.crow_indices[labels + 1] - self.crow_indices[labels]
        return self.col_indices[self.crow_indices[labels] + (self.place[rows] + step) % size]

    def extra_repr(self) -> str:
        """Shapes and hyper-parameters."""
        count, dim = self.features.shape
        return (
            f"num_features={count}, dim={dim}, loss={self.loss!r}, margin={self.margin}, "
            f"num_negatives={self.num_negatives}, symmetric={self.symmetric}"
        )


def _squared(cosines: Tensor) -> Tensor:
    """Squared distance of unit vectors."""
    return 2 - 2 * cosines


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the marked values of each row; 0 for none."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def _hardest(cosines: Tensor, negative: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest cosines to negatives, and which of them are some."""
    places = (
        cosines.detach()
        .masked_fill(~negative, -math.inf)
        .topk(min(count, cosines.shape[1]), dim=1)
        .indices
    )
    return cosines.gather(1, places), negative.gather(1, places)


def _multi_similarity(cosines: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    away, near = -_POSITIVE_SCALE * (cosines - _THRESHOLD), _NEGATIVE_SCALE * (cosines - _THRESHOLD)
    return _log_one_plus(away, positive) / _POSITIVE_SCALE + (
        _log_one_plus(near, negative) / _NEGATIVE_SCALE
    )


def _log_one_plus(exponents: Tensor, mask: Tensor) -> Tensor:
    """``log(1 + sum exp)`` over the marked ones."""
    masked = exponents.masked_fill(~mask, -math.inf)
    return torch.logsumexp(F.pad(masked, (1, 0)), dim=1)


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    loss = str(settings["loss"])
    margin = settings["triplet_margin" if loss == "triplet" else "contrastive_margin"]
    module = AsymmetricMetricLoss(
        assets.features,
        assets.labels,
        loss=loss,
        margin=float(margin),
        num_negatives=int(settings["num_negatives"]),
        symmetric=bool(settings["symmetric"]),
    )
    return [
        new_classifier(assets, dim, settings),
        LossTerm("compat", float(settings["weight"]), module),
    ]


SPEC = MethodSpec(
    name="aml",
    title="AML (asymmetric metric learning)",
    source="Budnik, Avrithis, CVPR 2021",
    needs=(Need.LABELS, Need.FEATURE_CACHE),
    defaults={
        **NEW_CLASSIFIER_DEFAULTS,
        "loss": "contrastive+",
        "symmetric": False,
        "contrastive_margin": 0.7,
        "triplet_margin": 0.1,
        "num_negatives": 5,
        "weight": 10.0,
    },
    build=_build,
)
