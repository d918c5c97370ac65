# SPDX-License-Identifier: Apache-2.0
"""Adapters that are trained: a head on frozen features, by regression or by compatibility."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from fclearn.adapters._modules import FORMS, HeadModule, affine_of, apply_head
from fclearn.adapters.base import Adapter
from fclearn.adapters.maps import procrustes, ridge, whitened_procrustes
from fclearn.classifiers import PseudoClassifier
from fclearn.losses import InstanceCompatLoss, L2CompatLoss, PseudoClassifierLoss

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: (mapped rows, their row numbers) -> loss
_Loss = Callable[[Tensor, Tensor], Tensor]


class TrainingOptions(TypedDict, total=False):
    """Options of every trained head, as `MlpMap` explains them."""

    hidden: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    dropout: float
    seed: int


class _TrainedHead(Adapter):
    """A head, trained by AdamW from a map in closed form on."""

    head = "mlp"
    orthogonal = False

    def __init__(
        self,
        *,
        hidden: int = 256,
        epochs: int = 10,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("hidden", hidden), ("epochs", epochs), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate: expected a number > 0, got {learning_rate}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {dropout}")
        self.hidden, self.epochs, self.batch_size = hidden, epochs, batch_size
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.dropout, self.seed = dropout, seed

    @property
    def source_dim(self) -> int:
        """D_source."""
        return self._state["linear.weight"].shape[1]

    def _train(
        self, source: Tensor, start: tuple[Tensor, Tensor], loss: _Loss, share: float = 1.0
    ) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            head = HeadModule(*start, self.head, self.hidden, orthogonal=self.orthogonal)
            optimizer = torch.optim.AdamW(head.groups(self.weight_decay), lr=self.learning_rate)
            steps = self.epochs * -(-len(source) // self.batch_size)
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
            )
            for _ in range(self.epochs):
                for rows in torch.randperm(len(source)).split(self.batch_size):
                    value = loss(head(F.dropout(source[rows], self.dropout)), rows)
                    optimizer.zero_grad()
                    value.backward()
                    optimizer.step()
                    head.after_step()
                    schedule.step()
        return head.finish(*start, share)

    def _transform(self, rows: Tensor) -> Tensor:
        return apply_head(rows, self._state)

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """As `Adapter.affine`: None with a hidden layer."""
        return affine_of(self._state)


class MlpMap(_TrainedHead):
    """Regression by a residual MLP on top of ridge: mean squared distance to the unit target.

    Args:
        hidden: Width of the hidden layer.
        epochs: Passes over the pairs.
        batch_size: Pairs per step.
        learning_rate: Peak of AdamW's, decayed to zero along a cosine.
        weight_decay: Of AdamW.
        dropout: Of the inputs.
        seed: Order of the pairs, dropout, initial weights.

    References:
        *Drift-Adapter*, EMNLP 2025 (a 256-wide MLP on pairs).

    Example:
        >>> x = torch.nn.functional.normalize(torch.randn(20, 3), dim=1)
        >>> MlpMap(hidden=4, epochs=1).fit(source=x, target=x).transform(x).shape
        torch.Size([20, 3])
    """

    name = "mlp"

    def _fit(self, source: Tensor, target: Tensor, labels: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002
        own = L2CompatLoss(target)
        return self._train(
            source, ridge(source, target), lambda mapped, rows: own(mapped, rows, rows)
        )


class CompatHead(_TrainedHead):
    """The compatibility loss on a head over frozen features: for black-box new models.

    The terms of the ``ni-fcl`` method: all target features as rows of a classifier whose positives
    are summed inside the logarithm, a cosine head learned on the target features, and the item's
    own target feature by squared distance. Labels are classes, or clusters where there are none.

    Few classes teach a head their own ways, too. So it starts at a map in closed form, and what is
    taken is a point on the way from there to the trained head. What target features have in common
    tells no two of them apart, but draws queries to those that have most of it: own features, and
    the start, go without part of it.

    Args:
        scale: Inverse temperature of both classifiers.
        instance_weight: Of the instance rows.
        head_weight: Of the learned head.
        own_weight: Of the item's own target feature.
        centring: Share of the mean target feature that is taken off own features, in [0, 1].
        whitening: Of the source before the rotation that the head starts from: power of its
            inverse covariance, in [0, 1]; 0.5 makes all directions equal.
        share: Of the way from the start to the trained head, in [0, 1]. A rotation (``orthogonal``)
            goes all of it, and starts without whitening.
        head: ``"linear"``: an affine map; ``"low-rank"``: the rotation it starts from, frozen, and
            a learned map of rank ``hidden`` beside it; ``"mlp"``: an affine map and a hidden layer
            beside it. The first two are affine, so faiss takes them.
        orthogonal: The affine map's weight stays a rotation (between different dims, its rows or
            columns orthonormal), so that it neither stretches nor drops a direction.
        **training: The options of `MlpMap`, ``hidden`` to ``seed``.

    References:
        Wortsman et al., *Robust fine-tuning of zero-shot models*, CVPR 2022 (weights between the
        start and the trained model).

    Example:
        >>> x = torch.nn.functional.normalize(torch.randn(20, 3), dim=1)
        >>> labels = torch.arange(20) % 4
        >>> CompatHead(hidden=4, epochs=1).fit(source=x, target=x, labels=labels).source_dim
        3
    """

    name = "compat-head"
    needs_labels = True

    def __init__(
        self,
        *,
        scale: float = 10.0,
        instance_weight: float = 1.0,
        head_weight: float = 1.0,
        own_weight: float = 1.0,
        centring: float = 0.6,
        whitening: float = 0.25,
        share: float = 0.5,
        head: str = "mlp",
        orthogonal: bool = False,
        **training: Unpack[TrainingOptions],
    ) -> None:
        """Refuse options out of range."""
        super().__init__(**training)
        if not scale > 0:
            raise ValueError(f"scale: expected a number > 0, got {scale}")
        if head not in FORMS:
            raise ValueError(f"head: expected one of {list(FORMS)}, got {head!r}")
        for name, value in (("centring", centring), ("whitening", whitening), ("share", share)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
        self.scale = scale
        self.centring, self.whitening, self.share = centring, whitening, share
        self.head, self.orthogonal = head, orthogonal
        self.weights = (instance_weight, head_weight, own_weight)

    def _fit(self, source: Tensor, target: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        assert labels is not None
        classes = torch.unique(labels, return_inverse=True)[1]
        own = F.normalize(target - self.centring * target.mean(0), dim=1)
        terms = (
            InstanceCompatLoss(target, classes, scale=self.scale),
            PseudoClassifierLoss(
                PseudoClassifier.fit(target, classes, seed=self.seed).prototypes, scale=self.scale
            ),
            L2CompatLoss(own),
        )

        def loss(mapped: Tensor, rows: Tensor) -> Tensor:
            values = [
                weight * term(mapped, classes[rows], rows)
                for weight, term in zip(self.weights, terms, strict=True)
                if weight
            ]
            return torch.stack(values).sum()

        # Least squares shrinks what tells classes apart; a rotation keeps it.
        if self.orthogonal:
            return self._train(source, procrustes(source, own), loss)
        start = whitened_procrustes(source, own, self.whitening)
        return self._train(source, start, loss, self.share)
