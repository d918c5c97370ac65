# SPDX-License-Identifier: Apache-2.0
"""Run by torchrun with 2 processes: a loss in `DistributedLossWrapper` is that of one process."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from fclearn.distributed import leave_world
from fclearn.integrations.metric_learning import OldFeaturesLoss

ROWS, CLASSES, OLD_DIM, DIM = 16, 4, 5, 7


def main() -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, DIM, generator=draw)
    old = torch.randn(ROWS, OLD_DIM, generator=draw)
    labels = torch.arange(ROWS) % CLASSES
    mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    refs = {"ref_emb": old[mine], "ref_labels": labels[mine]}
    for loss, given in ((OldFeaturesLoss(), refs), (OldFeaturesLoss(old, labels), {})):
        whole = x.clone().requires_grad_()
        OldFeaturesLoss(old, labels)(whole, labels).backward()
        own = x[mine].clone().requires_grad_()
        DistributedLossWrapper(loss)(own, labels[mine], **given).backward()
        # The library multiplies by the number of processes, as DistributedDataParallel divides.
        torch.testing.assert_close(own.grad / size, whole.grad[mine])
    if rank == 0:
        print("as one process")
    dist.barrier()
    leave_world()


if __name__ == "__main__":
    sys.exit(main())
