# SPDX-License-Identifier: Apache-2.0
"""The best hits of a few queries, in the order `evaluate_retrieval` ranks them."""

from __future__ import annotations

import numpy as np
import torch

from fclearn.evaluation._rows import Rows, Scorer
from fclearn.evaluation.keys import exclusions
from fclearn.evaluation.types import Ints, PerRow, RowSource


def top_hits(
    query: RowSource,
    gallery: RowSource,
    k: int,
    *,
    exclude_self: bool = False,
    query_ids: PerRow | None = None,
    gallery_ids: PerRow | None = None,
    query_groups: PerRow | None = None,
    gallery_groups: PerRow | None = None,
    metric: str = "cosine",
    gallery_batch_size: int = 16384,
) -> Ints:
    """Return the gallery rows of the k best hits of each query, best first.

    For looking at results: all queries are scored at once, so pass a few hundred at most.

    Args:
        query: Shape ``(Q, D')``, as in `evaluate_retrieval`.
        gallery: Shape ``(G, D)``.
        k: Hits per query, >= 1.
        exclude_self: As in `evaluate_retrieval`, like the ids and groups.
        query_ids: Shape ``(Q,)``.
        gallery_ids: Shape ``(G,)``.
        query_groups: Shape ``(Q,)``.
        gallery_groups: Shape ``(G,)``.
        metric: ``"cosine"``, ``"ip"`` or ``"l2"``.
        gallery_batch_size: Gallery rows scored at once.

    Returns:
        Shape ``(Q, k)``, int64; -1 where fewer than k rows are left.

    Raises:
        TypeError: As `evaluate_retrieval`.
        ValueError: As `evaluate_retrieval`; k below 1.

    Example:
        >>> import torch
        >>> gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
        >>> top_hits(torch.tensor([[1.0, 0.1]]), gallery, k=2)
        array([[1, 2]])
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1 hit, got {k}")
    query_rows, gallery_rows = Rows(query, "query"), Rows(gallery, "gallery")
    sizes = query_rows.num_rows, gallery_rows.num_rows
    excluded = exclusions(
        exclude_self,
        (query_ids, gallery_ids),
        (query_groups, gallery_groups),
        sizes,
        same=query is gallery,
    )
    scorer = Scorer(query_rows, gallery_rows, metric)
    queries = scorer.queries(slice(None))
    best = torch.full((sizes[0], k), -torch.inf, device=scorer.device)
    hits = torch.full((sizes[0], k), -1, device=scorer.device)
    everything = np.arange(sizes[0])
    for start in range(0, sizes[1], gallery_batch_size):
        rows = slice(start, min(start + gallery_batch_size, sizes[1]))
        scores = scorer.score(queries, scorer.gallery(rows))
        for keys in excluded:
            scores.masked_fill_(keys.hidden(everything, rows).to(scores.device), -torch.inf)
        # Stable, and earlier rows stand first: equal scores stay in the order of the gallery.
        best, order = torch.cat([best, scores], 1).sort(dim=1, descending=True, stable=True)
        columns = torch.arange(rows.start, rows.stop, device=scorer.device).expand(sizes[0], -1)
        hits = torch.cat([hits, columns], 1).gather(1, order)[:, :k]
        best = best[:, :k]
    hits[best == -torch.inf] = -1
    found: Ints = hits.cpu().numpy()
    return found
