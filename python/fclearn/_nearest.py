# SPDX-License-Identifier: Apache-2.0
"""Which prototype an embedding is nearest to, for counting correct answers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Prototypes compared at a time: no N x C matrix for large C.
_BLOCK = 8192


class Nearest(NamedTuple):
    """Per embedding, shape ``(N,)``.

    Attributes:
        row: Prototype of the highest cosine, the first of equal ones, int64; 0 where there is none.
        score: That cosine times the length of the embedding; minus infinity where there is none.
    """

    row: Tensor
    score: Tensor


@torch.no_grad()
def nearest_prototype(embeddings: Tensor, prototypes: Tensor) -> Nearest:
    """The nearest prototype of each embedding, by cosine.

    Args:
        embeddings: Shape ``(N, D)``, floating.
        prototypes: Shape ``(C, D)``, same dtype and device; C may be 0.

    Example:
        >>> found = nearest_prototype(torch.tensor([[0.0, 2.0]]), torch.eye(2))
        >>> found.row.tolist(), found.score.tolist()
        ([1], [2.0])
    """
    score = embeddings.new_full((len(embeddings),), -math.inf)
    row = torch.zeros_like(score, dtype=torch.int64)
    for start in range(0, len(prototypes), _BLOCK):
        unit = F.normalize(prototypes[start : start + _BLOCK], dim=1)
        value, place = (embeddings @ unit.T).max(1)
        row = torch.where(value > score, place + start, row)
        score = torch.maximum(value, score)
    return Nearest(row, score)
