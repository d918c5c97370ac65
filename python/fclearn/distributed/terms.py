# SPDX-License-Identifier: Apache-2.0
"""Loss terms whose classifiers are spread over the processes, made of those of one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcl_ext import PositiveSets
from fclearn._row_tables import at_rows
from fclearn.distributed.collectives import Group
from fclearn.distributed.losses import nearest_class, sharded_compat_loss
from fclearn.distributed.readout import logsumexp_over_shards, positives_over_shards
from fclearn.distributed.sharding import local, own_rows, sharded
from fclearn.losses import (
    CosineClassifierLoss,
    DistillCompatLoss,
    InstanceCompatLoss,
    LossModule,
    LossTerm,
    PseudoClassifierLoss,
    compatible_unit,
)


class ShardedTerm(LossModule):
    """A loss term of own rows against classes of all processes; base of the others.

    Args:
        group: Processes.
    """

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group


class ShardedCosineClassifierLoss(ShardedTerm):
    """`fclearn.losses.CosineClassifierLoss` with its rows spread over the processes.

    Args:
        term: One process's, the same on every process.
        group: Processes.
        device: Where own rows go.
    """

    def __init__(self, term: CosineClassifierLoss, group: Group, device: torch.device) -> None:
        super().__init__(group)
        self.num_classes = len(term.prototypes)
        self.first, _ = own_rows(self.num_classes, group)
        self.prototypes = nn.Parameter(sharded(term.prototypes.detach(), group, device))
        self.scale, self.margin = term.scale, term.margin
        self.margin_type, self.label_smoothing = term.margin_type, term.label_smoothing

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Mean loss of own rows."""
        return sharded_compat_loss(
            embeddings,
            local(self.prototypes),
            labels,
            first=self.first,
            num_classes=self.num_classes,
            group=self.group,
            scale=self.scale,
            margin=self.margin,
            margin_type=self.margin_type,
            label_smoothing=self.label_smoothing,
        )

    def num_correct(self, embeddings: Tensor, labels: Tensor) -> float:
        """Own rows whose class has the highest cosine."""
        shard = local(self.prototypes).detach()
        found = nearest_class(embeddings, shard, first=self.first, group=self.group)
        return float((found == labels).sum())


class ShardedPseudoClassifierLoss(ShardedTerm):
    """`fclearn.losses.PseudoClassifierLoss` with its rows spread over the processes.

    Args:
        term: One process's, the same on every process.
        group: Processes.
        device: Where own rows go.
    """

    by_row = ("soft_targets",)
    prototypes: Tensor
    soft_targets: Tensor | None

    def __init__(self, term: PseudoClassifierLoss, group: Group, device: torch.device) -> None:
        super().__init__(group)
        self.num_classes, self.dim = term.prototypes.shape
        self.first, _ = own_rows(self.num_classes, group)
        self.register_buffer("prototypes", sharded(term.prototypes, group, device))
        self.register_buffer("soft_targets", term.soft_targets)
        self.scale, self.label_smoothing = term.scale, term.label_smoothing

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of own rows."""
        unit = compatible_unit(embeddings, self.dim)
        shard = local(self.prototypes)
        if self.soft_targets is None:
            return sharded_compat_loss(
                unit,
                shard,
                labels,
                first=self.first,
                num_classes=self.num_classes,
                group=self.group,
                scale=self.scale,
                label_smoothing=self.label_smoothing,
                normalize=False,
            )
        targets = at_rows(self.soft_targets, rows, embeddings)
        logsumexp = logsumexp_over_shards(
            unit, shard, first=self.first, group=self.group, scale=self.scale
        )
        return (logsumexp - self.scale * (unit * targets).sum(1)).mean()


class ShardedInstanceCompatLoss(ShardedTerm):
    """`fclearn.losses.InstanceCompatLoss` with its old features spread over the processes.

    Args:
        term: One process's, the same on every process.
        group: Processes.
        device: Where own rows go.
    """

    features: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    log_weights: Tensor | None
    log_counts: Tensor

    def __init__(self, term: InstanceCompatLoss, group: Group, device: torch.device) -> None:
        super().__init__(group)
        begin, end = own_rows(len(term.features), group)
        self.first, self.scale = begin, term.scale
        crow = term.crow_indices
        is_own = (term.col_indices >= begin) & (term.col_indices < end)
        # Edges before each label that are own ones.
        before = F.pad(is_own.cumsum(0), (1, 0))
        weights = term.log_weights
        self.are_plain = PositiveSets(crow.cpu(), term.col_indices.cpu(), weights).are_plain()
        for name, tensor in (
            ("features", term.features[begin:end].clone()),
            ("crow_indices", before[crow]),
            ("col_indices", term.col_indices[is_own] - begin),
            ("log_weights", None if weights is None else weights[is_own]),
            ("log_counts", crow.diff().to(term.features.dtype).log()),
        ):
            placed = None if tensor is None else tensor.to(device)
            self.register_buffer(name, placed, persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Mean loss of own rows."""
        unit = compatible_unit(embeddings, self.features.shape[1])
        # The positives are left out of the sum over all rows, as compat_supcon does.
        apart = self.are_plain and unit.device.type == "cpu"
        logsumexp = logsumexp_over_shards(
            unit,
            self.features,
            first=self.first,
            group=self.group,
            scale=self.scale,
            exclude=labels if apart else None,
            exclude_sets=(self.crow_indices, self.col_indices) if apart else None,
        )
        sets = (self.crow_indices, self.col_indices, self.log_weights)
        positive = positives_over_shards(
            unit, self.features, labels, sets, group=self.group, scale=self.scale
        )
        losses = logsumexp - positive
        if apart:
            losses = torch.logaddexp(torch.zeros_like(losses), losses)
        if self.log_weights is None:
            losses = losses + self.log_counts[labels]
        return losses.mean()


class ShardedDistillCompatLoss(ShardedTerm):
    """`fclearn.losses.DistillCompatLoss` with its rows spread over the processes.

    Args:
        term: One process's, the same on every process.
        group: Processes.
        device: Where own rows go.
    """

    by_row = ("teacher_mean", "teacher_negative_entropy")
    prototypes: Tensor
    teacher_mean: Tensor
    teacher_negative_entropy: Tensor

    def __init__(self, term: DistillCompatLoss, group: Group, device: torch.device) -> None:
        super().__init__(group)
        self.dim, self.scale = term.prototypes.shape[1], term.scale
        self.first, _ = own_rows(len(term.prototypes), group)
        self.register_buffer("prototypes", sharded(term.prototypes, group, device))
        self.register_buffer("teacher_mean", term.teacher_mean)
        self.register_buffer("teacher_negative_entropy", term.teacher_negative_entropy)

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        """Mean loss of own rows."""
        unit = compatible_unit(embeddings, self.dim)
        mean = at_rows(self.teacher_mean, rows, embeddings)
        logsumexp = logsumexp_over_shards(
            unit, local(self.prototypes), first=self.first, group=self.group, scale=self.scale
        )
        agreement = self.scale * (unit * mean).sum(1)
        return (logsumexp - agreement + self.teacher_negative_entropy[rows]).mean()


def shard_terms(
    terms: Sequence[LossTerm], group: Group, device: torch.device | str = "cpu"
) -> list[LossTerm]:
    """Spread the classifiers of loss terms over the processes, where that is possible.

    A term that another one refers to (as LCE's alignment does to the new classifier), and any of
    another kind, stays whole on every process.

    Args:
        terms: One process's, the same on every process.
        group: Processes.
        device: Where the sharded ones go; only own rows are moved there.

    Returns:
        As many terms, in the same order.
    """
    shared = [
        module for term in terms for module in term.module.modules() if module is not term.module
    ]
    return [
        replace(term, module=_sharded_module(term.module, group, torch.device(device)))
        if not any(term.module is module for module in shared)
        else term
        for term in terms
    ]


def _sharded_module(module: nn.Module, group: Group, device: torch.device) -> nn.Module:
    # The exact kinds: what inherits from them may compute something else.
    if type(module) is CosineClassifierLoss:
        return ShardedCosineClassifierLoss(module, group, device)
    if type(module) is PseudoClassifierLoss:
        return ShardedPseudoClassifierLoss(module, group, device)
    if type(module) is InstanceCompatLoss:
        return ShardedInstanceCompatLoss(module, group, device)
    if type(module) is DistillCompatLoss:
        return ShardedDistillCompatLoss(module, group, device)
    return module
