# SPDX-License-Identifier: Apache-2.0
r"""The softmax readout over classes that are spread over processes.

Each process holds some rows of the classifier and some rows of the batch. The rows of the batch
meet all classes: they are gathered, every process reads them out over its own classes, and what it
found is combined as `fcl_ext.combine_readouts` does,

.. math:: \ell = \log \sum_k e^{\ell_k}, \qquad r = \sum_k e^{\ell_k - \ell} r_k

with the sum of the second done on the way home: a process gets :math:`r` for its own rows alone.
Nothing of the size of the classes travels, forward or backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcl_ext import ops
from fcl_ext._derivatives import differentiable_once, refuse_gradient
from fclearn.distributed.collectives import Group, gather, sum_scatter, total


def logsumexp_over_shards(
    embeddings: Tensor,
    shard: Tensor,
    *,
    first: int,
    group: Group,
    scale: float,
    exclude: Tensor | None = None,
    exclude_sets: tuple[Tensor, Tensor] | None = None,
    normalize: bool = False,
) -> Tensor:
    r"""Log-sum-exp of own rows over the classes of all processes.

    Args:
        embeddings: Own rows, shape ``(n, D)``, as many on every process.
        shard: Own classes, shape ``(C_k, D)``, same dtype; may have no rows.
        first: Number of the first of them among all classes.
        group: Processes.
        scale: Inverse temperature, > 0.
        exclude: A class per own row that is left out, shape ``(n,)``, int64; negative: none.
        exclude_sets: CSR of sets of own classes, ``(L + 1,)`` and ``(E,)``, int64, each class of a
            set once and in order: then ``exclude`` names the set that is left out, and a process
            leaves out what its own CSR has under that number. CPU only.
        normalize: Rows of the shard count at unit length.

    Returns:
        Shape ``(n,)``, float32 (float64 for float64 rows), differentiable in both tensors;
        ``-inf`` for a row that no class is left for.

    Raises:
        ValueError: A scale that requires a gradient.
        RuntimeError: Shapes, dtypes or a scale that the kernel refuses.

    Example:
        >>> from fclearn.distributed import logsumexp_over_shards, single_process
        >>> with single_process() as group:
        ...     logsumexp_over_shards(torch.eye(2), torch.eye(2), first=0, group=group, scale=1.0)
        tensor([1.3133, 1.3133])
    """
    refuse_gradient("scale", scale)
    out: Tensor = _LogsumexpOverShards.apply(  # type: ignore[no-untyped-call]
        embeddings, shard, exclude, exclude_sets, first, group, scale, normalize
    )
    return out


def positives_over_shards(
    embeddings: Tensor,
    rows: Tensor,
    labels: Tensor,
    sets: tuple[Tensor, Tensor, Tensor | None],
    *,
    group: Group,
    scale: float,
) -> Tensor:
    """Log-sum-exp of own rows over their labels' sets in banks of all processes.

    Args:
        embeddings: Own rows, shape ``(n, D)``, as many on every process.
        rows: Own part of the bank, shape ``(R_k, D)``, same dtype, frozen; may be empty.
        labels: Of own rows, shape ``(n,)``, int64.
        sets: CSR of all labels to own rows of the bank, and log weights, as in
            `fcl_ext.sparse_readout`.
        group: Processes.
        scale: Inverse temperature, > 0.

    Returns:
        Shape ``(n,)``, differentiable in the embeddings.

    Raises:
        ValueError: A bank, log weights or a scale that require a gradient.
    """
    refuse_gradient("scale", scale)
    refuse_gradient("rows", rows, "detach")
    refuse_gradient("log_weights", sets[2], "detach")
    out: Tensor = _PositivesOverShards.apply(  # type: ignore[no-untyped-call]
        embeddings, rows, labels, sets, group, scale
    )
    return out


def rows_of_shards(shard: Tensor, index: Tensor, *, first: int, group: Group) -> Tensor:
    """Look up rows of a matrix whose rows are spread over processes.

    Args:
        shard: Own rows, shape ``(C_k, D)``.
        index: Rows wanted, shape ``(n,)``, int64, as many on every process; negative: zeros.
        first: Number of the first own row.
        group: Processes.

    Returns:
        Shape ``(n, D)``, differentiable in the shard.

    Example:
        >>> from fclearn.distributed import rows_of_shards, single_process
        >>> with single_process() as group:
        ...     rows_of_shards(torch.eye(2), torch.tensor([1]), first=0, group=group)
        tensor([[0., 1.]])
    """
    out: Tensor = _RowsOfShards.apply(shard, index, first, group)  # type: ignore[no-untyped-call]
    return out


def sum_over_shards(shard: Tensor, group: Group) -> Tensor:
    """Sum of all rows of all shards, shape ``(D,)``, accumulated in float64; differentiable."""
    out: Tensor = _SumOverShards.apply(shard, group)  # type: ignore[no-untyped-call]
    return out


class _LogsumexpOverShards(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        shard: Tensor,
        exclude: Tensor | None,
        exclude_sets: tuple[Tensor, Tensor] | None,
        first: int,
        group: Group,
        scale: float,
        normalize: bool,
    ) -> Tensor:
        rows = gather(embeddings, group)
        own = None if exclude is None else gather(exclude, group)
        if own is not None and exclude_sets is None:
            own = _own(own, first, len(shard))
        crow, col = exclude_sets or (None, None)
        if len(shard):
            partial = ops.softmax_readout(
                *(rows, shard, None, own, scale, ctx.needs_input_grad[0], normalize),
                *(None, None, crow, col),
            )
        else:
            partial = _nothing(rows, ctx.needs_input_grad[0])
        logsumexp, mean = _combine(*partial, group)
        # The embeddings are not needed, but to refuse second derivatives (differentiable_once).
        ctx.save_for_backward(embeddings, rows, shard, own, crow, col, logsumexp, mean)
        ctx.group, ctx.scale, ctx.normalize = group, scale, normalize
        return _mine(logsumexp, group)

    @staticmethod
    @differentiable_once("logsumexp_over_shards")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, rows, shard, own, crow, col, logsumexp, mean = ctx.saved_tensors
        need_embeddings, need_shard = ctx.needs_input_grad[:2]
        grad_embeddings: Tensor | None = None
        if need_embeddings:
            grad_embeddings = (ctx.scale * grad[:, None] * mean).to(rows.dtype)
        grad_shard: Tensor | None = None
        if need_shard:
            coefficient = gather(grad, ctx.group)
            grad_shard = torch.zeros_like(shard)
            if len(shard):
                base = torch.where(torch.isneginf(logsumexp), 0.0, logsumexp)
                grad_shard = ops.softmax_readout_backward(
                    *(rows, shard, None, own, base, coefficient, None, ctx.scale),
                    *(False, True, False, ctx.normalize, crow, col),
                )[1].to(shard.dtype)
        return grad_embeddings, grad_shard, *(None,) * 6


class _PositivesOverShards(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        bank: Tensor,
        labels: Tensor,
        sets: tuple[Tensor, Tensor, Tensor | None],
        group: Group,
        scale: float,
    ) -> Tensor:
        rows = gather(embeddings, group)
        if len(bank):
            partial = ops.sparse_readout(
                rows, bank, gather(labels, group), *sets, scale, ctx.needs_input_grad[0]
            )
        else:
            gather(labels, group)
            partial = _nothing(rows, ctx.needs_input_grad[0])
        logsumexp, mean = _combine(*partial, group)
        # The embeddings are not needed, but to refuse second derivatives (differentiable_once).
        ctx.save_for_backward(embeddings, mean)
        ctx.scale = scale
        return _mine(logsumexp, group)

    @staticmethod
    @differentiable_once("positives_over_shards")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, mean = ctx.saved_tensors
        return (ctx.scale * grad[:, None] * mean).to(embeddings.dtype), *(None,) * 5


# The two below are linear: where a gradient that comes in is constant, so is theirs, and
# once_differentiable refuses the rest.
class _RowsOfShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shard: Tensor, index: Tensor, first: int, group: Group) -> Tensor:
        place = _own(gather(index, group), first, len(shard))
        is_own = place >= 0
        rows = shard.new_zeros(len(place), shard.shape[1])
        rows[is_own] = shard[place[is_own]]
        ctx.save_for_backward(place, is_own)
        ctx.group, ctx.count = group, len(shard)
        return sum_scatter(rows, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        place, is_own = ctx.saved_tensors
        rows = gather(grad, ctx.group)
        grad_shard = grad.new_zeros(ctx.count, grad.shape[1])
        grad_shard.index_add_(0, place[is_own], rows[is_own])
        return grad_shard, None, None, None


class _SumOverShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shard: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.shape = group, shard.shape
        return total(shard.sum(0, dtype=torch.float64), group).to(shard.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return total(grad, ctx.group).expand(ctx.shape), None


def _combine(logsumexp: Tensor, mean: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Partials ``(N,), (N, D)`` -> logsumexp of all rows ``(N,)`` and mean of own ``(n, D)``."""
    partials = gather(logsumexp[None], group)
    combined = torch.logsumexp(partials, 0)
    if len(mean) == 0:  # nobody asked for it
        return combined, mean
    # A row without any class reads out zero.
    base = torch.where(torch.isneginf(combined), 0.0, combined)
    return combined, sum_scatter(torch.exp(logsumexp - base)[:, None] * mean, group)


def _own(index: Tensor, first: int, count: int) -> Tensor:
    """Numbers among all classes -> among the ``count`` own ones, -1 for those of others."""
    place = index - first
    return torch.where((index >= 0) & (place >= 0) & (place < count), place, -1)


def _mine(values: Tensor, group: Group) -> Tensor:
    """The process's own part of ``(N,)``."""
    return values.chunk(dist.get_world_size(group))[dist.get_rank(group)].clone()


def _nothing(rows: Tensor, need_mean: bool) -> tuple[Tensor, Tensor]:
    """The readout over no classes, in the shapes of the kernel's."""
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    mean = rows.new_zeros((len(rows) if need_mean else 0, rows.shape[1]), dtype=dtype)
    return rows.new_full((len(rows),), -torch.inf, dtype=dtype), mean
