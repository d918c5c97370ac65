# SPDX-License-Identifier: Apache-2.0
"""compat_supcon beside compat_loss at the same shape: what the sets of positives cost.

Run: ``pytest bench/bench_compat_supcon.py --shapes full``. ``ratio`` is the time over that of
compat_supcon in the same round.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fcl_ext
from interleave import run_interleaved

# (queries, dim, rows of the bank); classes of 20 rows
SMOKE = [(64, 32, 1000)]
FULL = [(1024, 128, 13_000), (1024, 128, 100_000), (256, 128, 1_000_000)]
ROWS_PER_CLASS = 20
SCALE = 10.0


@pytest.mark.parametrize("peer", ["compat_supcon", "weighted", "compat_loss"])
def test_instance_rows(benchmark, shape, peer):
    rows, dim, bank_rows = shape
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(rows, dim, generator=generator), dim=1).requires_grad_()
    bank = F.normalize(torch.randn(bank_rows, dim, generator=generator), dim=1)
    bank_labels = torch.arange(bank_rows) // ROWS_PER_CLASS
    y = torch.randint(0, int(bank_labels[-1]) + 1, (rows,), generator=generator)
    positives = fcl_ext.PositiveSets.from_labels(bank_labels)
    log_weights = torch.randn(bank_rows, generator=generator)

    def supcon(weights):
        sets = positives._replace(log_weights=weights)
        loss = fcl_ext.compat_supcon(x, y, bank, positives=sets, scale=SCALE, normalize=False)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    def one_row_each():
        loss = fcl_ext.compat_loss(x, bank, y * ROWS_PER_CLASS, scale=SCALE, normalize=False)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    steps = {
        "compat_supcon": lambda: supcon(None),
        "weighted": lambda: supcon(log_weights),
        "compat_loss": one_row_each,
    }
    few = slice(0, 8)
    logits = SCALE * x.detach()[few].double() @ bank.double().T
    own = logits.masked_fill(y[few, None] != bank_labels[None], -torch.inf)
    expected = torch.logsumexp(logits, 1) - torch.logsumexp(own, 1)
    ours = fcl_ext.compat_supcon(
        x[few], y[few], bank, positives=positives, scale=SCALE, normalize=False, reduction="none"
    )
    counts = torch.log(torch.tensor(float(ROWS_PER_CLASS), dtype=torch.float64))
    torch.testing.assert_close(ours.detach().double(), expected + counts, rtol=1e-5, atol=1e-5)
    benchmark.group = f"compat_supcon float32 {rows}x{dim}x{bank_rows}"
    run_interleaved(
        benchmark,
        peer,
        steps[peer],
        steps["compat_supcon"],
        flops=4.0 * rows * dim * bank_rows,
    )
