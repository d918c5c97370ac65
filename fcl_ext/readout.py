# SPDX-License-Identifier: Apache-2.0
"""The softmax readout: log-sum-exp and expected value of a classifier, without its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from fcl_ext import ops
from fcl_ext._derivatives import refuse_gradient
from fcl_ext._explain import need_number, need_tensors
from fcl_ext._frozen import packed_prototypes


def softmax_readout(
    embeddings: Tensor, prototypes: Tensor, values: Tensor | None = None, *, scale: float
) -> tuple[Tensor, Tensor]:
    r"""Log-sum-exp and softmax-weighted mean over all classes, in one pass.

    .. math::
        \ell_i = \log \sum_c e^{s \langle x_i, w_c \rangle}, \qquad
        r_i = \sum_c \mathrm{softmax}_c(s \langle x_i, w_c \rangle)\, v_c

    With frozen prototypes and ``values=None``, :math:`\partial \ell_i / \partial x_i = s\, r_i`:
    every loss :math:`\ell_i - s \langle x_i, t_i \rangle` has its gradient
    :math:`s (r_i - t_i)` at hand when its value is. The ``(N, C)`` logits are never stored.

    Args:
        embeddings: Rows :math:`x`, shape ``(N, D)``; float32, float64, bfloat16 or float16. Not
            normalised here.
        prototypes: Rows :math:`w`, shape ``(C, D)``, same dtype and device, ``C >= 1``.
        values: Rows :math:`v`, shape ``(C, Dv)``; default ``prototypes``.
        scale: :math:`s > 0`, the inverse temperature, unitless.

    Returns:
        ``(logsumexp, mean)`` of shapes ``(N,)`` and ``(N, Dv)``, in float32 (float64 for float64
        inputs), differentiable with respect to all three tensors.

    Raises:
        TypeError: Another thing than a tensor or a number in the place of one.
        RuntimeError: A shape, dtype, device or scale that does not fit.

    Note:
        Extra memory is O(N D). Results do not depend on the number of threads.

    Example:
        >>> import torch, fcl_ext
        >>> x, w = torch.eye(2), torch.eye(2)
        >>> logsumexp, mean = fcl_ext.softmax_readout(x, w, scale=2.0)
        >>> torch.allclose(logsumexp, torch.logsumexp(2.0 * x @ w.T, 1))
        True
    """
    refuse_gradient("scale", scale)
    try:
        packed = packed_prototypes(prototypes, False)
        return ops.softmax_readout(
            embeddings, prototypes, values, None, scale, True, False, *packed
        )
    except (AttributeError, RuntimeError):
        need_tensors("softmax_readout", embeddings=embeddings, prototypes=prototypes)
        if values is not None:
            need_tensors("softmax_readout", values=values)
        need_number("softmax_readout", "scale", scale)
        raise


def combine_readouts(logsumexps: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    r"""Combine the readouts over disjoint shards of the classes into that over all of them.

    .. math::
        \ell = \log \sum_k e^{\ell_k}, \qquad r = \sum_k e^{\ell_k - \ell}\, r_k

    Shards may live on different devices or processes; only these N (D + 1) numbers of each meet.

    Args:
        logsumexps: Of each shard, shape ``(S, N)``; ``-inf`` where a shard has no class for a row.
        means: Of each shard, shape ``(S, N, Dv)``.

    Returns:
        ``(logsumexp, mean)`` of shapes ``(N,)`` and ``(N, Dv)``, differentiable in both arguments.

    Raises:
        TypeError: Another thing than a tensor in the place of one.
        ValueError: Shapes that do not fit.

    Example:
        >>> import torch, fcl_ext
        >>> x, w = torch.eye(2), torch.eye(2)
        >>> shards = [fcl_ext.softmax_readout(x, shard, scale=2.0) for shard in w.split(1)]
        >>> lse, mean = fcl_ext.combine_readouts(*(torch.stack(part) for part in zip(*shards)))
        >>> torch.allclose(lse, fcl_ext.softmax_readout(x, w, scale=2.0)[0])
        True
    """
    try:
        fits = logsumexps.dim() == 2 and means.dim() == 3
    except AttributeError:
        need_tensors("combine_readouts", logsumexps=logsumexps, means=means)
        raise
    if not fits or means.shape[:2] != logsumexps.shape:
        raise ValueError(
            "combine_readouts: expected logsumexps of shape [S, N] and means of shape [S, N, Dv], "
            f"got {list(logsumexps.shape)} and {list(means.shape)}"
        )
    logsumexp = torch.logsumexp(logsumexps, 0)
    # Rows without a class in any shard read out zero.
    base = torch.where(torch.isneginf(logsumexp), torch.zeros_like(logsumexp), logsumexp)
    weights = torch.exp(logsumexps - base)
    return logsumexp, (weights[:, :, None] * means).sum(0)


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
    r"""The softmax readout of each query over the set of rows its label names.

    .. math::
        \ell_i = \log \sum_{e \in S(y_i)} w_e\, e^{s \langle x_i, f_{col_e} \rangle}

    Args:
        embeddings: Queries :math:`x`, shape ``(N, D)``.
        rows: Bank of rows :math:`f`, shape ``(R, D)``, same dtype and device.
        labels: Shape ``(N,)``, int64 in ``[0, L)``; a negative label has the empty set.
        crow_indices: Shape ``(L + 1,)``, int64: the sets as CSR, label to rows.
        col_indices: Shape ``(E,)``, int64 in ``[0, R)``.
        log_weights: :math:`\log w_e`, shape ``(E,)`` in float32 (float64 for float64 inputs);
            default zero.
        scale: :math:`s > 0`.

    Returns:
        ``(logsumexp, mean)`` of shapes ``(N,)`` and ``(N, D)``; the empty set gives ``-inf`` and 0.
        ``logsumexp`` is differentiable with respect to ``embeddings`` and ``rows``; ``mean`` is
        not.

    Raises:
        TypeError: Another thing than a tensor or a number in the place of one.
        RuntimeError: A shape, dtype, device or scale that does not fit; on the CPU also an index
            out of range. On CUDA an index out of range is a device assertion.

    Example:
        >>> import torch, fcl_ext
        >>> bank, labels = torch.eye(3), torch.tensor([1])
        >>> crow, col = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2])
        >>> logsumexp, _ = fcl_ext.sparse_readout(bank[:1], bank, labels, crow, col, scale=1.0)
        >>> round(logsumexp.exp().item(), 4)  # rows 1 and 2: e^0 + e^0
        2.0
    """
    refuse_gradient("scale", scale)
    try:
        return ops.sparse_readout(
            embeddings, rows, labels, crow_indices, col_indices, log_weights, scale, True
        )
    except RuntimeError:
        given = {"embeddings": embeddings, "rows": rows, "labels": labels}
        sets = {"crow_indices": crow_indices, "col_indices": col_indices}
        need_tensors("sparse_readout", **given, **sets)
        if log_weights is not None:
            need_tensors("sparse_readout", log_weights=log_weights)
        need_number("sparse_readout", "scale", scale)
        raise
