# SPDX-License-Identifier: Apache-2.0
"""What tests of the compatibility losses draw."""

from __future__ import annotations

import torch


def batch(rows, dim, classes, dtype, device, seed=0):
    """Embeddings, prototypes and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
    w = torch.randn(classes, dim, dtype=torch.float64, generator=generator)
    y = torch.randint(0, classes, (rows,), generator=generator)
    return x.to(dtype).to(device), w.to(dtype).to(device), y.to(device)
