# SPDX-License-Identifier: Apache-2.0
"""Exact k-nearest-neighbour graphs: of a set of features, and within segments of it."""

from __future__ import annotations

from torch import Tensor

from fcl_ext import ops


def knn_graph(features: Tensor, k: int, *, metric: str = "cosine") -> tuple[Tensor, Tensor]:
    r"""Find the k most similar other rows of each row, exactly, without an N×N matrix.

    Args:
        features: Shape ``(N, D)``, float32, float64, bfloat16 or float16, finite.
        k: Neighbours per row, in ``[1, N - 1]``.
        metric: ``"cosine"`` (rows are normalised here; a zero row has similarity 0 to all),
            ``"ip"`` (inner product) or ``"l2"`` (the *negative* squared Euclidean distance).

    Returns:
        ``indices`` ``(N, k)`` int32 and ``similarities`` ``(N, k)``, best first, float32 (float64
        for float64 features). A row is never its own neighbour; equal similarities are ordered by
        lower index. The result does not depend on the number of threads.

    Raises:
        RuntimeError: A wrong shape or dtype, k outside ``[1, N - 1]``, an unknown metric, a NaN or
            infinite feature (CPU; the message names the row).

    Note:
        Not differentiable: to train through similarities, gather rows by ``indices``. Products are
        accumulated in float32 (float64 for float64 features). ``"l2"`` is computed as
        ``2 x.y - (|x|^2 + |y|^2)``, so its absolute error is about 1e-7 of the squared norms (not
        of the distance): centre features that lie far from the origin. On the CPU every pair is
        computed once (N·N·D operations, see docs/knn.md). Memory there: one packed copy of the
        features, and up to 2k candidates of 8 bytes a row (16 for float64).

    Example:
        >>> import torch
        >>> from fcl_ext import knn_graph
        >>> indices, similarities = knn_graph(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), 1)
        >>> indices.tolist(), similarities.tolist()
        ([[1], [0], [0]], [[1.0], [1.0], [0.0]])
    """
    return ops.knn_graph(features.detach(), k, metric)


def knn_graph_segments(
    features: Tensor, offsets: Tensor, k: int, *, metric: str = "cosine"
) -> tuple[Tensor, Tensor]:
    r"""Find the k most similar other rows of each row within its own segment, in one call.

    Segments are consecutive rows: sort rows by class for within-class graphs.

    Args:
        features: Shape ``(N, D)``, as in `knn_graph`.
        offsets: Segment s is rows ``offsets[s]`` to ``offsets[s + 1] - 1``; shape ``(S + 1,)``,
            int64, from 0 to N, never decreasing, on the device of the features.
        k: Neighbours per row, at least 1; segments may have fewer rows than that.
        metric: ``"cosine"``, ``"ip"`` or ``"l2"``, as in `knn_graph`.

    Returns:
        ``indices`` ``(N, k)`` int32, rows of ``features``, and ``similarities`` ``(N, k)``, as in
        `knn_graph`. A row of a segment with n rows has ``min(k, n - 1)`` neighbours, then -1 and 0.

    Raises:
        RuntimeError: As `knn_graph`; offsets that are not as above.

    Note:
        On CUDA this is one search per segment.

    Example:
        >>> import torch
        >>> from fcl_ext import knn_graph_segments
        >>> features = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
        >>> knn_graph_segments(features, torch.tensor([0, 3, 4]), 2)[0].tolist()
        [[1, 2], [0, 2], [1, 0], [-1, -1]]
    """
    return ops.knn_graph_segments(features.detach(), offsets, k, metric)
