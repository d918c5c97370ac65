# SPDX-License-Identifier: Apache-2.0
"""Items, real queries and judgements of them by two models a rotation apart."""

from __future__ import annotations

import torch

QUERIES, RIGHT, ITEMS, DIM = 40, 3, 500, 16
ITEM_IDS = [f"d{row}" for row in range(ITEMS)]
QUERY_IDS = [f"q{row}" for row in range(QUERIES)]


def models(old_noise, new_noise, *, seed=0):
    """Queries, and items of which the first are right for them; two models, a rotation apart."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(QUERIES, DIM, generator=generator)
    meant = torch.randn(ITEMS, DIM, generator=generator)
    meant[: QUERIES * RIGHT] = centres.repeat_interleave(RIGHT, 0)
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
    noise = torch.randn(4, ITEMS, DIM, generator=generator)
    return (
        meant + old_noise * noise[0],
        (meant + new_noise * noise[1]) @ turn,
        centres + old_noise * noise[2, :QUERIES],
        (centres + new_noise * noise[3, :QUERIES]) @ turn,
    )


def grades():
    """Three right items for each query, of two grades, and two wrong ones."""
    return {
        name: {f"d{RIGHT * at + nth}": 1 + nth % 2 for nth in range(RIGHT)}
        | {f"d{(RIGHT * at + 90 + nth) % (QUERIES * RIGHT)}": -nth for nth in range(2)}
        for at, name in enumerate(QUERY_IDS)
    }
