# SPDX-License-Identifier: Apache-2.0
"""Losses between the rows of a batch of which each process has a part: all compute the whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fclearn.distributed.collectives import check_same_count, gather, gather_rows


class WholeBatch(NamedTuple):
    """The rows of all processes in the order of ranks, the same on each.

    Attributes:
        embeddings: Shape ``(N, D)``, differentiable: each process gets the gradient of its part,
            summed over what the processes computed.
        labels: Shape ``(N,)``, int64.
        rows: Numbers of training rows, shape ``(N,)``, int64.
    """

    embeddings: Tensor
    labels: Tensor
    rows: Tensor


def gather_batch(
    embeddings: Tensor, labels: Tensor, rows: Tensor, group: dist.ProcessGroup
) -> WholeBatch:
    """The parts of all processes, which must call this together.

    Raises:
        ValueError: Parts of different lengths (seen on the CPU only); every process raises.

    Example:
        >>> from fclearn.distributed import single_process
        >>> with single_process() as group:
        ...     gather_batch(torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor([5, 7]), group)[2]
        tensor([5, 7])
    """
    check_same_count("gather_batch", embeddings, group)
    return WholeBatch(gather_rows(embeddings, group), gather(labels, group), gather(rows, group))


@contextmanager
def same_draws(seed: int, device: torch.device) -> Iterator[None]:
    """Draw what every process draws with this seed; the state before is back afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class SharedBatch:
    """The batch of all processes, for modules that compare its rows and draw the same on each.

    Args:
        embeddings: Of this process, shape ``(n, D)``, as the following for `gather_batch`.
        labels: Shape ``(n,)``, int64.
        rows: Shape ``(n,)``, int64.

    Raises:
        ValueError: As `gather_batch`.
    """

    def __init__(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> None:
        group = dist.group.WORLD
        assert group is not None
        self._whole = gather_batch(embeddings, labels, rows, group)
        # The first process's: what each has drawn so far depends on its own images.
        self._seed = int(gather(torch.randint(2**62, (1,), device=embeddings.device), group)[0])

    def value(self, module: nn.Module) -> Tensor:
        """What the module makes of the whole batch, the same on every process."""
        with same_draws(self._seed, self._whole.embeddings.device):
            value: Tensor = module(*self._whole)
        return value
