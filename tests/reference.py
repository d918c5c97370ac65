# SPDX-License-Identifier: Apache-2.0
"""Slow references by definition: dense, unblocked, written from the formulas alone.

Every function works in the dtype it is given, so float64 inputs give the truth the kernels are
measured against and float32 inputs give the error plain torch makes. They are free to build the
N x C logits and dense N x N matrices that the library must never build.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_readout(
    embeddings: Tensor,
    prototypes: Tensor,
    values: Tensor | None = None,
    *,
    scale: float,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``logsumexp_c(s x.W_c)`` (N,) and ``sum_c softmax_c(s x.W_c) V_c`` (N, Dv)."""
    logits = scale * embeddings @ prototypes.T
    if exclude is not None:
        columns = torch.arange(len(prototypes), device=logits.device)
        logits = logits.masked_fill(columns[None, :] == exclude[:, None], -math.inf)
    values = prototypes if values is None else values
    logsumexp = torch.logsumexp(logits, dim=1)
    # An empty set of classes reads out zero rather than the 0/0 that softmax gives.
    empty = torch.isneginf(logsumexp)[:, None]
    probabilities = torch.softmax(logits.masked_fill(empty, 0.0), dim=1).masked_fill(empty, 0.0)
    return logsumexp, probabilities @ values


def sparse_readout(
    embeddings: Tensor,
    rows: Tensor,
    labels: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    log_weights: Tensor | None = None,
    *,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The softmax readout over the rows of each query's own label set (CSR: label -> rows)."""
    dense = torch.full(
        (len(crow_indices) - 1, len(rows)), -math.inf, dtype=rows.dtype, device=rows.device
    )
    for label in range(len(crow_indices) - 1):
        edges = slice(int(crow_indices[label]), int(crow_indices[label + 1]))
        dense[label, col_indices[edges].long()] = (
            0.0 if log_weights is None else log_weights[edges].to(rows.dtype)
        )
    bias = dense[labels.clamp(min=0)].masked_fill((labels < 0)[:, None], -math.inf)
    logits = scale * embeddings @ rows.T + bias
    logsumexp = torch.logsumexp(logits, dim=1)
    empty = torch.isneginf(logsumexp)[:, None]
    probabilities = torch.softmax(logits.masked_fill(empty, 0.0), dim=1).masked_fill(empty, 0.0)
    return logsumexp, probabilities @ rows


def _reduce(losses: Tensor, valid: Tensor, reduction: str) -> Tensor:
    losses = torch.where(valid, losses, torch.zeros_like(losses))
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / valid.sum()


def compat_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    scale: float = 30.0,
    margin: float = 0.0,
    margin_type: str = "cosface",
    label_smoothing: float = 0.0,
    normalize: bool = True,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy over the N x C logits, written out."""
    if normalize:
        embeddings = F.normalize(embeddings, dim=1)
        prototypes = F.normalize(prototypes, dim=1)
    cosines = embeddings @ prototypes.T
    if targets is not None:
        losses = torch.logsumexp(scale * cosines, dim=1) - scale * (embeddings * targets).sum(1)
        return _reduce(losses, torch.ones_like(losses, dtype=torch.bool), reduction)
    assert labels is not None
    valid = labels != ignore_index
    safe = torch.where(valid, labels, torch.zeros_like(labels))
    target = cosines.gather(1, safe[:, None])
    if margin_type == "cosface":
        shifted = target - margin
    else:
        bounded = target.clamp(-1 + 1e-7, 1 - 1e-7)
        rotated = torch.cos(torch.acos(bounded) + margin)
        # Past theta + m = pi the cosine would rise again: continue linearly (insightface).
        shifted = torch.where(
            bounded > math.cos(math.pi - margin), rotated, target - margin * math.sin(margin)
        )
    logits = scale * cosines.scatter(1, safe[:, None], shifted)
    losses = F.cross_entropy(logits, safe, label_smoothing=label_smoothing, reduction="none")
    return _reduce(losses, valid, reduction)


def compat_kl(
    embeddings: Tensor,
    prototypes: Tensor,
    *,
    teacher_embeddings: Tensor,
    scale: float,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """KL(teacher || student) between the two softmaxes over the same prototypes."""
    if normalize:
        embeddings = F.normalize(embeddings, dim=1)
        prototypes = F.normalize(prototypes, dim=1)
        teacher_embeddings = F.normalize(teacher_embeddings, dim=1)
    student = torch.log_softmax(scale * embeddings @ prototypes.T, dim=1)
    teacher = torch.log_softmax(scale * teacher_embeddings @ prototypes.T, dim=1)
    losses = (teacher.exp() * (teacher - student)).sum(1)
    return _reduce(losses, torch.ones_like(losses, dtype=torch.bool), reduction)


def compat_supcon(
    embeddings: Tensor,
    labels: Tensor,
    features: Tensor,
    feature_labels: Tensor,
    *,
    scale: float = 10.0,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """``logsumexp_j(s z.f_j) - log mean_{j: y_j = y_i} exp(s z.f_j)``.

    Written as ``log(1 + others / positives) + log n``, which keeps the digits of small losses.
    """
    if normalize:
        embeddings = F.normalize(embeddings, dim=1)
        features = F.normalize(features, dim=1)
    logits = scale * embeddings @ features.T
    positive = labels[:, None] == feature_labels[None, :]
    own = torch.logsumexp(logits.masked_fill(~positive, -math.inf), dim=1)
    # A row without others: torch's gradient of the empty sum would be NaN.
    alone = positive.all(1)
    others = torch.logsumexp(logits.masked_fill(positive & ~alone[:, None], -math.inf), dim=1)
    excess = torch.logaddexp(torch.zeros_like(own), others - own)
    losses = torch.where(alone, 0.0 * own, excess) + torch.log(positive.sum(1).to(logits.dtype))
    return _reduce(losses, torch.ones_like(losses, dtype=torch.bool), reduction)


def csr_to_dense(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, num_columns: int
) -> Tensor:
    """Dense matrix of a CSR triple; ``-1`` columns are padding, duplicate edges add up."""
    num_rows = len(crow_indices) - 1
    row_of_edge = torch.repeat_interleave(
        torch.arange(num_rows, device=values.device), crow_indices.diff().to(values.device)
    )
    keep = col_indices >= 0
    dense = torch.zeros(num_rows, num_columns, dtype=values.dtype, device=values.device)
    return dense.index_put(
        (row_of_edge[keep], col_indices[keep].long()), values[keep], accumulate=True
    )


def random_walk(matrix: Tensor, features: Tensor, *, damping: float, num_steps: int) -> Tensor:
    """``Z <- damping P Z + (1 - damping) F`` from ``Z = F``, with a dense P."""
    state = features
    for _ in range(num_steps):
        state = damping * matrix @ state + (1 - damping) * features
    return state


def random_walk_limit(matrix: Tensor, features: Tensor, *, damping: float) -> Tensor:
    """``(1 - damping) (I - damping P)^-1 F``, solved densely."""
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return (1 - damping) * torch.linalg.solve(identity - damping * matrix, features)


def knn_graph(features: Tensor, k: int, *, metric: str = "cosine") -> tuple[Tensor, Tensor]:
    """The k most similar other rows by a full stable sort: ties go to the lower id."""
    if metric == "cosine":
        features = F.normalize(features, dim=1)
    similarities = features @ features.T
    if metric == "l2":
        similarities = -torch.cdist(features, features).square()
    similarities = similarities.clone().fill_diagonal_(-math.inf)
    values, indices = torch.sort(similarities, dim=1, descending=True, stable=True)
    return indices[:, :k].to(torch.int32), values[:, :k]
