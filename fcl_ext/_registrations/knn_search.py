# SPDX-License-Identifier: Apache-2.0
"""Shape inference of knn_search, and its path on CUDA, by torch's own kernels."""

from __future__ import annotations

import torch
from torch import Tensor

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

_OP = "knn_search"
# Similarities that exist at once on CUDA.
_BLOCK_ELEMENTS = 2**26


def _check(query: Tensor, gallery: Tensor, k: int, metric: str) -> None:
    check_floating(_OP, "query", query)
    check_shape(_OP, "query", query, "[Q, D]", (None, None))
    torch._check(
        query.shape[1] > 0,
        lambda: f"fcl::{_OP}: expected query with at least one dim, got shape {list(query.shape)}",
    )
    check_dtype(_OP, "gallery", gallery, query.dtype)
    check_shape(_OP, "gallery", gallery, "[G, D]", (None, query.shape[1]))
    check_same_device(_OP, "gallery", gallery, query)
    rows = gallery.shape[0]
    for size in (rows, query.shape[0]):
        torch._check(
            size <= INT32_MAX,
            lambda: f"fcl::{_OP}: expected at most 2^31 - 1 rows, got {query.shape[0]} and {rows}",
        )
    for is_in_range in (k >= 1, k <= rows):
        torch._check(
            is_in_range,
            lambda: f"fcl::{_OP}: expected 1 <= k <= G, got k = {k} for G = {rows}",
        )
    torch._check(
        metric in ("cosine", "ip", "l2"),
        lambda: f"fcl::{_OP}: expected metric cosine, ip or l2, got {metric}",
    )


@torch.library.register_fake(f"fcl::{_OP}")
def _fake(query: Tensor, gallery: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    _check(query, gallery, k, metric)
    shape = (query.shape[0], k)
    return (
        query.new_empty(shape, dtype=torch.int32),
        query.new_empty(shape, dtype=accumulate_dtype(query.dtype)),
    )


def _rows(name: str, features: Tensor, metric: str) -> Tensor:
    """Rows in the accumulation type, at unit length for the cosine; zero rows stay zero."""
    torch._check(
        bool(features.isfinite().all()),
        lambda: f"fcl::{_OP}: expected finite {name}, got a NaN or an infinity",
    )
    if metric == "cosine":
        # Relative to the largest entry, in double, so neither tiny nor huge rows lose their norm.
        rows = features.double()
        largest = rows.abs().amax(1, keepdim=True)
        rows = rows / largest.where(largest > 0, 1.0)
        features = rows / rows.norm(dim=1, keepdim=True).clamp(min=1.0)
    return features.to(accumulate_dtype(features.dtype))


def _by_torch(query: Tensor, gallery: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """A product and a stable sort per pair of blocks, merged in the order of the gallery."""
    _check(query, gallery, k, metric)
    kind = accumulate_dtype(query.dtype)
    query, gallery = (
        _rows(name, rows, metric).to(kind)
        for name, rows in (("query", query), ("gallery", gallery))
    )
    indices = query.new_empty((len(query), k), dtype=torch.int32)
    similarities = query.new_empty((len(query), k), dtype=kind)
    step = max(1, min(len(query), 1024))
    width = max(k, _BLOCK_ELEMENTS // step)
    for begin in range(0, len(query), step):
        rows = query[begin : begin + step]
        best = rows.new_full((len(rows), k), -torch.inf)
        near = torch.zeros((len(rows), k), dtype=torch.int32, device=rows.device)
        for start in range(0, len(gallery), width):
            block = gallery[start : start + width]
            found = rows @ block.T
            if metric == "l2":
                squares = rows.square().sum(1)[:, None] + block.square().sum(1)
                found = (2 * found - squares).clamp(max=0)
            columns = torch.arange(start, start + len(block), device=rows.device).int()
            # Stable, and earlier rows stand first; adding zero makes -0 tie with 0.
            best, order = torch.cat([best, found + 0.0], 1).sort(
                dim=1, descending=True, stable=True
            )
            near = torch.cat([near, columns.expand(len(rows), -1)], 1).gather(1, order)[:, :k]
            best = best[:, :k]
        indices[begin : begin + step] = near
        similarities[begin : begin + step] = best
    return indices, similarities


torch.library.impl(f"fcl::{_OP}", "CUDA", _by_torch)


def _backward(_ctx: object, *_grads: Tensor | None) -> None:
    raise RuntimeError(
        f"fcl::{_OP}: similarities have no gradient; gather rows by indices and multiply them"
    )


register_autograd(_OP, _backward)
register_float32_autocast(_OP)
