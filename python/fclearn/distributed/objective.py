# SPDX-License-Identifier: Apache-2.0
"""Encoder and whole loss terms as the one module that DistributedDataParallel wraps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fclearn.distributed.collectives import Group
from fclearn.distributed.whole_batch import WholeBatch, gather_batch, same_draws
from fclearn.losses import LossTerm


class Objective(nn.Module):
    """Images of this process -> their embeddings, and the values of the terms it holds whole.

    Args:
        encoder: Trained.
        terms: By their number among all terms.
        embed: Runs the encoder, in the precision that is wanted.
        group: Processes.
        seed: Of what terms draw that must be the same on every process.
    """

    def __init__(
        self,
        encoder: nn.Module,
        terms: Mapping[int, LossTerm],
        embed: Callable[[Tensor], Tensor],
        group: Group,
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.terms = dict(terms)
        # Registered: their parameters are averaged with those of the encoder.
        self.modules_of_terms = nn.ModuleList([term.module for term in terms.values()])
        self.group = group
        self._embed = embed
        self._seed = seed
        self._draws = torch.Generator()

    def on_epoch(self, epoch: int) -> None:
        """Called before each epoch: what terms draw in it depends on its number alone."""
        self._draws.manual_seed(1_000_003 * self._seed + epoch)

    def forward(
        self, images: Tensor, labels: Tensor, rows: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Embeddings ``(n, D)`` and weighted values by number of the term."""
        embeddings = self._embed(images)
        whole: WholeBatch | None = None
        values: dict[int, Tensor] = {}
        for number, term in self.terms.items():
            if not term.whole_batch:
                values[number] = term.value(embeddings, labels, rows, images)
                continue
            if whole is None:
                whole = gather_batch(embeddings, labels, rows, self.group)
            seed = int(torch.randint(2**62, (1,), generator=self._draws))
            with same_draws(seed, images.device):
                values[number] = term.weight * term.module(*whole)
        return embeddings, values
