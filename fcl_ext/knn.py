# SPDX-License-Identifier: Apache-2.0
"""Exact nearest neighbours: graphs of one set of features, and searches of one in another."""

from __future__ import annotations

from torch import Tensor

from fcl_ext import ops
from fcl_ext._explain import need_integer, need_tensors, need_text


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
        TypeError: Features that are no tensor, or k that is no integer.
        RuntimeError: A wrong shape or dtype, k outside ``[1, N - 1]``, an unknown metric, a NaN or
            infinite feature (CPU; the message names the row).

    Note:
        Not differentiable: to train through similarities, gather rows by ``indices``. Products are
        accumulated in float32 (float64 for float64 features). ``"l2"`` is computed as
        ``2 x.y - (|x|^2 + |y|^2)``, so its absolute error is about 1e-7 of the squared norms (not
        of the distance): centre features that lie far from the origin. On the CPU every pair is
        computed once (N·N·D operations, see docs/knn.md). Memory there: one packed copy of the
        features, and up to 2k candidates of 8 bytes a row (16 for float64). On CUDA there are two
        sets of kernels that give the same bits: ``simt``, and ``mma``, where tensor cores filter
        what is then summed in float32, off until verified on a GPU (``FCL_CUDA_PATH=mma``).

    Example:
        >>> import torch
        >>> from fcl_ext import knn_graph
        >>> indices, similarities = knn_graph(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), 1)
        >>> indices.tolist(), similarities.tolist()
        ([[1], [0], [0]], [[1.0], [1.0], [0.0]])
    """
    try:
        return ops.knn_graph(features.detach(), k, metric)
    except (AttributeError, RuntimeError):
        _explain("knn_graph", k, metric, features=features)
        raise


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
        TypeError: As `knn_graph`; offsets that are no tensor.
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
    try:
        return ops.knn_graph_segments(features.detach(), offsets, k, metric)
    except (AttributeError, RuntimeError):
        _explain("knn_graph_segments", k, metric, features=features, offsets=offsets)
        raise


def knn_search(
    query: Tensor, gallery: Tensor, k: int, *, metric: str = "cosine"
) -> tuple[Tensor, Tensor]:
    r"""Find the k most similar gallery rows of each query, exactly, without a Q×G matrix.

    Args:
        query: Shape ``(Q, D)``, float32, float64, bfloat16 or float16, finite.
        gallery: Shape ``(G, D)``, same dtype and device, finite.
        k: Hits per query, in ``[1, G]``.
        metric: ``"cosine"``, ``"ip"`` or ``"l2"``, as in `knn_graph`.

    Returns:
        ``indices`` ``(Q, k)`` int32, rows of the gallery, and ``similarities`` ``(Q, k)``, best
        first, float32 (float64 for float64 features); equal similarities are ordered by lower
        index. The result does not depend on the number of threads, nor on what other rows are
        searched in the same call.

    Raises:
        TypeError: Query or gallery that are no tensors, or k that is no integer.
        RuntimeError: A wrong shape or dtype, k outside ``[1, G]``, an unknown metric, a NaN or
            infinite value (the message names the argument, on the CPU also the row).

    Note:
        Not differentiable. Accuracy as `knn_graph`. Memory on the CPU: a packed copy of the
        queries, some 8 MB of packed gallery (more beyond 9,000 dims, 4,700 of float64), and up to
        2k candidates of 8 bytes a query (16 for float64); a contiguous gallery is only read, once,
        so it may be a mapped file. A value that cannot be searched is found when it is read: check
        first where a late refusal would cost much. It is one call, which Python cannot interrupt:
        search a very large gallery in blocks, and keep the best. On CUDA this is a product of torch
        and a sort per block, in float32 as torch is set to compute it.

    Example:
        >>> import torch
        >>> from fcl_ext import knn_search
        >>> gallery = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
        >>> indices, similarities = knn_search(torch.tensor([[1.0, 0.0]]), gallery, 2)
        >>> indices.tolist(), similarities.tolist()
        ([[0, 2]], [[1.0, 1.0]])
    """
    try:
        return ops.knn_search(query.detach(), gallery.detach(), k, metric)
    except (AttributeError, RuntimeError):
        _explain("knn_search", k, metric, query=query, gallery=gallery)
        raise


def _explain(function: str, k: object, metric: object, **tensors: object) -> None:
    """Refuse arguments of other types in a line of their own (see `fcl_ext._explain`)."""
    need_tensors(function, **tensors)
    need_integer(function, "k", k)
    need_text(function, "metric", metric)
