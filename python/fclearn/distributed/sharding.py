# SPDX-License-Identifier: Apache-2.0
"""Which rows of a matrix a process holds, and parameters that say so."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from fclearn.distributed.collectives import Group


def row_range(num_rows: int, rank: int, size: int) -> tuple[int, int]:
    """Rows ``[begin, end)`` of one process: equal parts, the last ones shorter or empty.

    The parts are those of `torch.chunk`, which torch's sharded tensors use, so that checkpoints
    find them again.

    Example:
        >>> [row_range(5, rank, 4) for rank in range(4)]
        [(0, 2), (2, 4), (4, 5), (5, 5)]
    """
    width = -(-num_rows // size)
    return min(rank * width, num_rows), min((rank + 1) * width, num_rows)


def own_rows(num_rows: int, group: Group) -> tuple[int, int]:
    """The `row_range` of this process."""
    return row_range(num_rows, dist.get_rank(group), dist.get_world_size(group))


def sharded(rows: Tensor, group: Group, device: torch.device | str = "cpu") -> DTensor:
    """A matrix that every process has -> one of which each keeps its own rows.

    Args:
        rows: Shape ``(C, …)``, the same on every process.
        group: Processes.
        device: Where own rows go.

    Returns:
        A sharded tensor of the same shape, which `torch.distributed.checkpoint` saves and loads at
        any number of processes; ``.to_local()`` are the own rows, a copy.
    """
    begin, end = own_rows(len(rows), group)
    mesh = DeviceMesh.from_group(group, torch.device(device).type)
    return DTensor.from_local(
        rows[begin:end].clone().to(device),
        mesh,
        [Shard(0)],
        run_check=False,
        shape=rows.shape,
        stride=rows.contiguous().stride(),
    )


def local(rows: Tensor) -> Tensor:
    """Own rows of a sharded tensor, through which gradients flow; other tensors as they are."""
    if isinstance(rows, DTensor):
        mine: Tensor = rows.to_local()
        return mine
    return rows


def whole(rows: Tensor) -> Tensor:
    """All rows of a sharded tensor on every process; other tensors as they are."""
    if isinstance(rows, DTensor):
        with torch.no_grad():
            everything: Tensor = rows.full_tensor()
        return everything
    return rows
