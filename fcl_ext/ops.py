# SPDX-License-Identifier: Apache-2.0
"""Typed calls of the raw operators, one per schema in ``csrc/schema.cpp``.

The only place of the package that names ``torch.ops.fcl``. Half types accumulate in, and return,
float32. Formulas and shapes are documented at the schemas; the functions most users want are one
level up (:mod:`fcl_ext`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_readout(
    embeddings: Tensor,
    prototypes: Tensor,
    values: Tensor | None,
    exclude: Tensor | None,
    scale: float,
    need_mean: bool,
    normalize: bool = False,
    packed: Tensor | None = None,
    squared_norms: Tensor | None = None,
    exclude_crow: Tensor | None = None,
    exclude_col: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``(N, D), (C, D) -> lse (N,), mean (N, Dv)``; ``mean`` is (0, Dv) unless needed."""
    out: tuple[Tensor, Tensor] = torch.ops.fcl.softmax_readout.default(
        embeddings,
        prototypes,
        values,
        exclude,
        scale,
        need_mean,
        normalize,
        packed,
        squared_norms,
        exclude_crow,
        exclude_col,
    )
    return out


def pack_prototypes(prototypes: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """``(C, D) -> packed (C * D rounded up to 32,), squared_norms (C,)``, for this process only."""
    out: tuple[Tensor, Tensor] = torch.ops.fcl.pack_prototypes.default(prototypes, normalize)
    return out


def softmax_readout_backward(
    embeddings: Tensor,
    prototypes: Tensor,
    values: Tensor | None,
    exclude: Tensor | None,
    logsumexp: Tensor,
    coefficient: Tensor,
    grad_mean: Tensor | None,
    scale: float,
    need_embeddings: bool,
    need_prototypes: bool,
    need_values: bool,
    normalize: bool = False,
    exclude_crow: Tensor | None = None,
    exclude_col: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to embeddings, prototypes and values; those not needed have zero rows."""
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.fcl.softmax_readout_backward.default(
        embeddings,
        prototypes,
        values,
        exclude,
        logsumexp,
        coefficient,
        grad_mean,
        scale,
        need_embeddings,
        need_prototypes,
        need_values,
        normalize,
        exclude_crow,
        exclude_col,
    )
    return out


def compat_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    mean_prototype: Tensor | None,
    scale: float,
    margin: float,
    arcface: bool,
    label_smoothing: float,
    normalize: bool,
    ignore_index: int,
    reduction: str,
    need_embeddings: bool,
    need_prototypes: bool,
    logits: Tensor | None = None,
    packed: Tensor | None = None,
    squared_norms: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, its gradient to embeddings (N, D), unit rows (N, D) and state (4, N)."""
    out: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.fcl.compat_loss.default(
        embeddings,
        prototypes,
        labels,
        mean_prototype,
        scale,
        margin,
        arcface,
        label_smoothing,
        normalize,
        ignore_index,
        reduction,
        need_embeddings,
        need_prototypes,
        logits,
        packed,
        squared_norms,
    )
    return out


def compat_loss_backward(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    state: Tensor,
    grad_loss: Tensor,
    scale: float,
    label_smoothing: float,
    normalize: bool,
    ignore_index: int,
    logits: Tensor | None = None,
) -> Tensor:
    """Gradient to prototypes (C, D)."""
    out: Tensor = torch.ops.fcl.compat_loss_backward.default(
        embeddings,
        prototypes,
        labels,
        state,
        grad_loss,
        scale,
        label_smoothing,
        normalize,
        ignore_index,
        logits,
    )
    return out


def compat_loss_gradients(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    mean_prototype: Tensor | None,
    scale: float,
    margin: float,
    arcface: bool,
    label_smoothing: float,
    normalize: bool,
    ignore_index: int,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, its gradient to embeddings (N, D) and to prototypes (C, D)."""
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.fcl.compat_loss_gradients.default(
        embeddings,
        prototypes,
        labels,
        mean_prototype,
        scale,
        margin,
        arcface,
        label_smoothing,
        normalize,
        ignore_index,
        reduction,
    )
    return out


def sparse_readout(
    embeddings: Tensor,
    rows: Tensor,
    labels: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    log_weights: Tensor | None,
    scale: float,
    need_mean: bool,
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """The readout over each query's own set of rows (CSR: label -> rows)."""
    out: tuple[Tensor, Tensor] = torch.ops.fcl.sparse_readout.default(
        embeddings,
        rows,
        labels,
        crow_indices,
        col_indices,
        log_weights,
        scale,
        need_mean,
        normalize,
    )
    return out


def sparse_readout_backward_rows(
    embeddings: Tensor,
    rows: Tensor,
    logsumexp: Tensor,
    coefficient: Tensor,
    row_crow: Tensor,
    row_labels: Tensor,
    row_log_weights: Tensor | None,
    query_crow: Tensor,
    query_index: Tensor,
    scale: float,
    normalize: bool = False,
) -> Tensor:
    """Gradient of ``sum_i coefficient_i lse_i`` to the bank of rows, (R, D)."""
    out: Tensor = torch.ops.fcl.sparse_readout_backward_rows.default(
        embeddings,
        rows,
        logsumexp,
        coefficient,
        row_crow,
        row_labels,
        row_log_weights,
        query_crow,
        query_index,
        scale,
        normalize,
    )
    return out


def random_walk(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    features: Tensor,
    damping: float,
    num_steps: int,
) -> Tensor:
    """Exactly ``num_steps`` of ``Z <- damping P Z + (1 - damping) F`` from ``Z = F``."""
    out: Tensor = torch.ops.fcl.random_walk.default(
        crow_indices, col_indices, values, features, damping, num_steps
    )
    return out


def random_walk_backward(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    features: Tensor,
    grad_output: Tensor,
    damping: float,
    num_steps: int,
    need_features: bool,
    need_values: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the exact-step walk to features (N, D) and edge values (E,)."""
    out: tuple[Tensor, Tensor] = torch.ops.fcl.random_walk_backward.default(
        crow_indices,
        col_indices,
        values,
        features,
        grad_output,
        damping,
        num_steps,
        need_features,
        need_values,
    )
    return out


def random_walk_resume(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    state: Tensor,
    features: Tensor,
    damping: float,
    num_steps: int,
    num_bf16_steps: int = 0,
) -> Tensor:
    """``num_steps`` more steps from ``state``, the first ``num_bf16_steps`` stored as bfloat16."""
    out: Tensor = torch.ops.fcl.random_walk_resume.default(
        crow_indices, col_indices, values, state, features, damping, num_steps, num_bf16_steps
    )
    return out


def walk_windows(
    crow_indices: Tensor, col_indices: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A graph in windows of 16 rows, with every column a window gathers once.

    Returns ``window_crow``, ``window_col``, ``chunk_crow``, ``positions`` and ``edge_order``, as
    csrc/ops/walk_windows.h has them.
    """
    out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = torch.ops.fcl.walk_windows.default(
        crow_indices, col_indices
    )
    return out


def random_walk_union(
    window_crow: Tensor,
    window_col: Tensor,
    chunk_crow: Tensor,
    positions: Tensor,
    values: Tensor,
    features: Tensor,
    damping: float,
    num_steps: int,
    num_bf16_steps: int = 0,
) -> Tensor:
    """The walk over `walk_windows`, with ``values[edge_order]``; CUDA only, finite features."""
    out: Tensor = torch.ops.fcl.random_walk_union.default(
        window_crow,
        window_col,
        chunk_crow,
        positions,
        values,
        features,
        damping,
        num_steps,
        num_bf16_steps,
    )
    return out


def random_walk_tol(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    features: Tensor,
    damping: float,
    tol: float,
    max_steps: int,
    norm: str,
) -> tuple[Tensor, Tensor]:
    """The walk until it is provably within ``tol`` of its limit; also the steps it took."""
    out: tuple[Tensor, Tensor] = torch.ops.fcl.random_walk_tol.default(
        crow_indices, col_indices, values, features, damping, tol, max_steps, norm
    )
    return out


def edge_dot(crow_indices: Tensor, col_indices: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``left[row of e] . right[col of e]`` for every edge, (E,)."""
    out: Tensor = torch.ops.fcl.edge_dot.default(crow_indices, col_indices, left, right)
    return out


def csr_transpose(
    crow_indices: Tensor, col_indices: Tensor, num_columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """CSR of the transpose, and for each of its edges the position it had before."""
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.fcl.csr_transpose.default(
        crow_indices, col_indices, num_columns
    )
    return out


def class_walk(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    labels: Tensor,
    num_classes: int,
    damping: float,
    drop: float,
    num_steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """CSR (N, C) of the probabilities that walks end in each class, rows cut for sparsity."""
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.fcl.class_walk.default(
        crow_indices, col_indices, values, labels, num_classes, damping, drop, num_steps
    )
    return out


def graph_prepare(
    crow_indices: Tensor, col_indices: Tensor, order: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Order of nodes, and CSR in that order with sorted columns and where each edge came from."""
    out: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.fcl.graph_prepare.default(
        crow_indices, col_indices, order
    )
    return out


def knn_graph(features: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """Exact nearest other rows: indices (N, k) int32 and similarities (N, k), best first."""
    out: tuple[Tensor, Tensor] = torch.ops.fcl.knn_graph.default(features, k, metric)
    return out


def knn_graph_segments(
    features: Tensor, offsets: Tensor, k: int, metric: str
) -> tuple[Tensor, Tensor]:
    """Exact nearest other rows of the same segment, (N, k); -1 and 0 where there are too few."""
    out: tuple[Tensor, Tensor] = torch.ops.fcl.knn_graph_segments.default(
        features, offsets, k, metric
    )
    return out


def knn_search(query: Tensor, gallery: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """Exact nearest gallery rows of each query: indices (Q, k) int32, similarities (Q, k)."""
    out: tuple[Tensor, Tensor] = torch.ops.fcl.knn_search.default(query, gallery, k, metric)
    return out
