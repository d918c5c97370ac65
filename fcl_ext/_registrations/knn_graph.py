# SPDX-License-Identifier: Apache-2.0
"""Shape inference and autocast of the kNN graphs; they are not differentiable, and say so."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from fcl_ext import ops
from fcl_ext._registrations.common import (
    INT32_MAX,
    accumulate_dtype,
    check_dtype,
    check_floating,
    check_same_device,
    check_shape,
    register_autograd,
    register_float32_autocast,
)


def _check_features(op: str, features: Tensor, metric: str) -> None:
    check_floating(op, "features", features)
    check_shape(op, "features", features, "[N, D]", (None, None))
    torch._check(
        features.shape[1] > 0,
        lambda: (
            f"fcl::{op}: expected features with at least one dim, got shape {list(features.shape)}"
        ),
    )
    torch._check(
        features.shape[0] <= INT32_MAX,
        lambda: f"fcl::{op}: expected at most 2^31 - 1 features, got {features.shape[0]}",
    )
    torch._check(
        metric in ("cosine", "ip", "l2"),
        lambda: f"fcl::{op}: expected metric cosine, ip or l2, got {metric}",
    )


def _check_segments(features: Tensor, offsets: Tensor, k: int, metric: str) -> None:
    op = "knn_graph_segments"
    _check_features(op, features, metric)
    check_dtype(op, "offsets", offsets, torch.int64)
    check_shape(op, "offsets", offsets, "[S + 1]", (None,))
    check_same_device(op, "offsets", offsets, features)
    torch._check(
        offsets.shape[0] > 0, lambda: f"fcl::{op}: expected offsets of shape [S + 1], got [0]"
    )
    torch._check(k >= 1, lambda: f"fcl::{op}: expected k >= 1, got {k}")


def _empty_lists(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (features.shape[0], k)
    return (
        features.new_empty(shape, dtype=torch.int32),
        features.new_empty(shape, dtype=accumulate_dtype(features.dtype)),
    )


@torch.library.register_fake("fcl::knn_graph")
def _fake(features: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    op = "knn_graph"
    _check_features(op, features, metric)
    num_rows = features.shape[0]
    for is_in_range in (k >= 1, k < num_rows):
        torch._check(
            is_in_range,
            lambda: (
                f"fcl::{op}: expected 1 <= k <= N - 1 (a row is not its own neighbour), got k = "
                f"{k} for N = {num_rows}"
            ),
        )
    return _empty_lists(features, k)


@torch.library.register_fake("fcl::knn_graph_segments")
def _fake_segments(features: Tensor, offsets: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    _check_segments(features, offsets, k, metric)
    return _empty_lists(features, k)


def _segments_on_cuda(
    features: Tensor, offsets: Tensor, k: int, metric: str
) -> tuple[Tensor, Tensor]:
    """One search per segment: right, and slow where segments are many and small."""
    _check_segments(features, offsets, k, metric)
    bounds = offsets.tolist()
    torch._check(
        bounds[0] == 0 and bounds[-1] == len(features),
        lambda: (
            f"fcl::knn_graph_segments: expected offsets from 0 to N = {len(features)}, got "
            f"{bounds[0]} to {bounds[-1]}"
        ),
    )
    indices, similarities = _empty_lists(features, k)
    indices.fill_(-1)
    similarities.fill_(0)
    for begin, end in pairwise(bounds):
        torch._check(
            begin <= end,
            lambda begin=begin, end=end: (
                "fcl::knn_graph_segments: expected offsets that never decrease, got "
                f"{end} after {begin}"
            ),
        )
        found = min(k, end - begin - 1)
        if found < 1:
            continue
        near, values = ops.knn_graph(features[begin:end], found, metric)
        indices[begin:end, :found] = near + begin
        similarities[begin:end, :found] = values
    return indices, similarities


torch.library.impl("fcl::knn_graph_segments", "CUDA", _segments_on_cuda)


def _backward(_ctx: object, *_grads: Tensor | None) -> None:
    raise RuntimeError(
        "fcl::knn_graph: similarities have no gradient; gather rows by indices and multiply them"
    )


for _op in ("knn_graph", "knn_graph_segments"):
    register_autograd(_op, _backward)
    register_float32_autocast(_op)
