# SPDX-License-Identifier: Apache-2.0
"""Whether stored features are those of a model, checked on a sample."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fclearn.datasets import LabelledSet
from fclearn.embedding import embed_batches

__all__ = ["check_cache"]

_BATCH = 32


def check_cache(
    encoder: nn.Module,
    dataset: LabelledSet,
    features: Tensor,
    *,
    num_sampled: int = 64,
    least_cosine: float = 0.99,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> None:
    """Refuse stored features that a model would not make again.

    Args:
        encoder: The model.
        dataset: What it would be given, N items, prepared as for the stored features.
        features: What is stored, shape ``(N, D)``, floating, row-aligned.
        num_sampled: Items to embed anew, drawn at random; all, if there are fewer.
        least_cosine: Between stored and new row. Other libraries, half precision and JPEG decoders
            make differences far below one per cent.
        device: Where the encoder runs.
        seed: Of the sample.

    Raises:
        ValueError: Other shapes, or items whose rows differ; the worst is named.

    Example:
        >>> from fclearn.datasets import VectorDataset
        >>> rows = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
        >>> data = VectorDataset(rows, np.zeros(8, np.int64), list("abcdefgh"), class_names=["x"])
        >>> check_cache(nn.Flatten(), data, torch.from_numpy(rows))
        >>> check_cache(nn.Flatten(), data, -torch.from_numpy(rows))
        Traceback (most recent call last):
        ...
        ValueError: features: 8 of 8 sampled rows are not what the model makes: ...
    """
    if features.ndim != 2 or len(features) != len(dataset):
        raise ValueError(
            f"features: expected shape [{len(dataset)}, D], one row per item, "
            f"got {list(features.shape)}"
        )
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.permutation(len(dataset))[:num_sampled])
    some = dataset.subset(sampled)
    batches = [(a, min(a + _BATCH, len(some))) for a in range(0, len(some), _BATCH)]
    made = [
        rows.cpu()
        for _, _, rows in embed_batches(
            encoder, some, batches, features.shape[1], normalize=True, device=device
        )
    ]
    stored = F.normalize(features[torch.from_numpy(sampled)].float(), dim=1)
    cosine = (torch.cat(made) * stored).sum(1)
    wrong = int((cosine < least_cosine).sum())
    if wrong:
        worst = int(cosine.argmin())
        raise ValueError(
            f"features: {wrong} of {len(some)} sampled rows are not what the model makes: "
            f"{some.ids[worst]!r} has cosine {float(cosine[worst]):.3f} with it, expected at least "
            f"{least_cosine}"
        )
