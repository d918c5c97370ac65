# SPDX-License-Identifier: Apache-2.0
"""Rows that travel between the processes of a group, with their gradients.

Every function must be called by all processes of the group, with the same number of rows on each.
A gradient is that of the *sum* over the processes of what each of them differentiates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Group = dist.ProcessGroup

# torch 2.13 renamed the two collectives, and warns of the names that 2.10 has.
_all_gather: Callable[..., Any] = (
    getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
)
_reduce_scatter: Callable[..., Any] = (
    getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
)


@torch.no_grad()
def gather(rows: Tensor, group: Group) -> Tensor:
    """``(n, …)`` of every process -> all of them ``(N, …)`` in the order of ranks, no gradient."""
    out = rows.new_empty((rows.shape[0] * dist.get_world_size(group), *rows.shape[1:]))
    _all_gather(out, rows.contiguous(), group=group)
    return out


@torch.no_grad()
def sum_scatter(rows: Tensor, group: Group) -> Tensor:
    """``(N, …)`` of every process -> the process's own ``(n, …)`` of their sum, no gradient."""
    out = rows.new_empty((rows.shape[0] // dist.get_world_size(group), *rows.shape[1:]))
    _reduce_scatter(out, rows.contiguous(), group=group)
    return out


@torch.no_grad()
def total(value: Tensor, group: Group) -> Tensor:
    """The sum of a tensor over the processes, the same bits on each; no gradient."""
    out = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, group=group)
    return out


def check_same_count(function: str, rows: Tensor, group: Group) -> None:
    """Refuse numbers of rows that differ between processes.

    Only on the CPU: on a GPU the answer would have to be waited for in every step.

    Raises:
        ValueError: They differ; every process raises.
    """
    if rows.device.type != "cpu":
        return
    counts = gather(torch.tensor([rows.shape[0]]), group).tolist()
    if len(set(counts)) > 1:
        raise ValueError(f"{function}: expected as many rows on every process, got {counts}")


def gather_rows(rows: Tensor, group: Group) -> Tensor:
    """All processes' rows on each process, differentiable: for losses between rows of a batch.

    Args:
        rows: Shape ``(n, …)``, the same on every process.
        group: Processes.

    Returns:
        Shape ``(N, …)``, N = n times the number of processes, in the order of ranks.

    Example:
        >>> from fclearn.distributed import gather_rows, single_process
        >>> with single_process() as group:
        ...     gather_rows(torch.ones(2, 3), group).shape
        torch.Size([2, 3])
    """
    out: Tensor = _GatherRows.apply(rows, group)  # type: ignore[no-untyped-call]
    return out


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return gather(rows, group)

    @staticmethod
    @once_differentiable  # linear: of a constant gradient that comes in it makes a constant
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_scatter(grad, ctx.group), None
