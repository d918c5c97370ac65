# SPDX-License-Identifier: Apache-2.0
"""Run by torchrun with 2 processes: `CompatTerms` on parts of a batch are those of the whole.

What is averaged over the processes, values and gradients, must be what one process computes.
"""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist

from fclearn.distributed import gather_rows, joined_world
from fclearn.integrations.terms import CompatTerms

TRAINING_ROWS, CLASSES, OLD_DIM, DIM, BATCH = 40, 4, 5, 7, 16


def main() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(TRAINING_ROWS) % CLASSES
    old = torch.randn(TRAINING_ROWS, OLD_DIM, generator=draw)
    inputs = torch.randn(BATCH, DIM, generator=draw)
    rows = torch.randperm(TRAINING_ROWS, generator=draw)[:BATCH]
    weight = torch.randn(DIM, DIM, generator=draw)
    with joined_world("cpu") as world:
        mine = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
        for method in ("hot-refresh", "uni-bct", "ni-fcl", "l2"):
            torch.manual_seed(0)
            terms = CompatTerms.from_method(method, old, labels, dim=DIM)
            own = weight.clone().requires_grad_()
            value = terms(inputs[mine] @ own, rows[mine])
            value.backward()
            results = torch.cat([value.detach().reshape(1), own.grad.flatten()])
            dist.all_reduce(results, group=world.group)
            torch.manual_seed(0)
            # As one process has it: the modules themselves, which know of no others.
            whole = weight.clone().requires_grad_()
            embeddings = inputs @ whole
            alone = CompatTerms.from_method(method, old, labels, dim=DIM)
            expected = sum(
                factor * module(embeddings, labels[rows], rows)
                for factor, module in zip(alone.weights, alone.modules_of_terms, strict=True)
            )
            expected.backward()
            torch.testing.assert_close(
                results / world.size,
                torch.cat([expected.detach().reshape(1), whole.grad.flatten()]),
                rtol=1e-5,
                atol=1e-6,
            )
        # Its mixture is drawn: every process must draw the same.
        torch.manual_seed(world.rank)
        terms = CompatTerms.from_method("mix-bct", old, labels, dim=DIM)
        value = terms(inputs[mine] @ weight, rows[mine])
        values = gather_rows(value.reshape(1), world.group)
        assert values[0] == values[1], values
        with pytest.raises(ValueError, match=r"as many rows on every process, got \[3, 4\]"):
            terms(inputs[: 3 + world.rank] @ weight, rows[: 3 + world.rank])
        if world.is_first:
            print("as one process")


if __name__ == "__main__":
    sys.exit(main())
