# SPDX-License-Identifier: Apache-2.0
"""Random walk with restart over a sparse graph, and the transpose of its CSR arrays."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fcl_ext import ops
from fcl_ext._derivatives import refuse_gradient
from fcl_ext._explain import need_integer, need_number, need_tensors

#: Tolerance of a walk for which neither ``num_steps`` nor ``tol`` is given.
DEFAULT_TOL = 1e-6
# Last steps of a bfloat16 walk with float32 results: the error of the steps before them is averaged
# over neighbours twice.
_FLOAT_STEPS = 2


def bf16_steps(num_steps: int) -> int:
    """How many of the steps store bfloat16 where `random_walk` is asked for such iterates."""
    return max(0, num_steps - _FLOAT_STEPS)


def csr_transpose(
    crow_indices: Tensor, col_indices: Tensor, num_columns: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Transpose the pattern of a CSR matrix by a stable counting sort.

    Within a row of the transpose, edges keep their original order, so the result is unique and
    the same for any number of threads. Padding edges (column ``-1``) stay padding: they come last,
    at the end of the last row.

    Args:
        crow_indices: Row offsets, shape ``(N + 1,)``, int64, from 0 to E.
        col_indices: Columns, shape ``(E,)``, int32 or int64, in ``[0, num_columns)`` or ``-1``.
        num_columns: Columns M of the matrix. Default: N, a square graph.

    Returns:
        ``crow_indices`` ``(M + 1,)`` int64 and ``col_indices`` ``(E,)`` (dtype as given) of the
        transpose, and ``edge_order`` ``(E,)`` int64: edge ``e`` of the transpose was edge
        ``edge_order[e]``, so its values are ``values[edge_order]``.

    Raises:
        TypeError: Indices that are no tensors, a number of columns that is no integer.
        RuntimeError: A wrong shape or dtype, offsets that decrease, a column out of range.

    Example:
        >>> import torch
        >>> from fcl_ext import csr_transpose
        >>> crow, col, order = csr_transpose(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 0]))
        >>> crow.tolist(), col.tolist(), order.tolist()
        ([0, 2, 3], [0, 1, 0], [0, 2, 1])
    """
    try:
        size = crow_indices.numel() - 1 if num_columns is None else num_columns
        return ops.csr_transpose(crow_indices, col_indices, size)
    except (AttributeError, RuntimeError):
        need_tensors("csr_transpose", crow_indices=crow_indices, col_indices=col_indices)
        if num_columns is not None:
            need_integer("csr_transpose", "num_columns", num_columns)
        raise


def steps_for(damping: float, tol: float) -> int:
    """Steps after which the stopping rule of ``tol`` holds in exact arithmetic, plus a margin.

    Differences of iterates shrink by ``damping`` per step from at most twice the features, and the
    error is at most ``damping / (1 - damping)`` times a difference.

    Example:
        >>> from fcl_ext.walk import steps_for
        >>> steps_for(0.9, 1e-6)
        210
    """
    return 10 + math.ceil(1.25 * math.log(tol * (1 - damping) / 2) / math.log(damping))


def random_walk(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    features: Tensor,
    *,
    damping: float = 0.9,
    num_steps: int | None = None,
    tol: float | None = None,
    transpose: bool = False,
    max_steps: int | None = None,
    iterate_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Propagate features along the edges of a graph by a random walk with restart.

    .. math:: Z_0 = F, \quad Z_{t+1} = \lambda P Z_t + (1 - \lambda) F, \quad
              Z_\infty = (1 - \lambda)(I - \lambda P)^{-1} F

    with :math:`\lambda` the damping. Rows of P should sum to 1: row i of the result is then the
    expected feature where a walk from node i ends that stops with probability
    :math:`1 - \lambda` at each step. (With *columns* that sum to 1 the class mean of the result
    equals the plain class mean: nothing is refined.)

    Args:
        crow_indices: Row offsets of P, shape ``(N + 1,)``, int64, from 0 to E.
        col_indices: Columns of P, shape ``(E,)``, int32 or int64. ``-1`` is padding and skipped.
        values: Weights of P, shape ``(E,)``, dtype of ``features`` (or float32 with half
            features).
        features: F, shape ``(N, D)``, float32, float64, bfloat16 or float16. Half types are
            walked in float32 and rounded once at the end.
        damping: Probability :math:`\lambda` of walking on, in (0, 1), unitless.
        num_steps: Walk exactly this many steps, >= 0. At damping 0.9 the relative distance to the
            limit is about 0.2 after 10 steps, 0.02 after 20 and 1e-5 after 50.
        tol: Walk until the result is within ``tol * max|F|`` of the limit in every entry (see
            Note). Default if ``num_steps`` is not given either: 1e-6.
        transpose: Walk on the transpose of P. The distance is then measured as the largest sum
            over rows of a column, relative to that of F.
        max_steps: Bound on the steps taken with ``tol``. Default: more than the tolerance needs.
        iterate_dtype: ``torch.bfloat16`` stores iterates in half the memory, which makes steps on
            graphs larger than the caches nearly twice as fast. Sums are float32, and the last two
            steps have float32 results; the relative error stays below 2e-3 at damping up to 0.9,
            and below 2e-3 of the features above. With ``num_steps``, without gradients, and
            not for float64. Default: full precision.

    Returns:
        Z, shape ``(N, D)``, dtype of ``features``. A node without edges gets
        ``(1 - damping) * F`` as soon as one step is taken: the walk that leaves it is lost.
        Gradients flow to ``values`` and ``features``; with ``tol`` they are implicit (one more
        walk on the transpose, no stored iterates) and as accurate as ``tol`` makes them (see Note),
        with ``num_steps`` they are exact.

    Raises:
        TypeError: Another thing than a tensor, a number or, for steps, an integer in the place of
            one.
        ValueError: Both ``num_steps`` and ``tol`` are given, or ``max_steps`` with ``num_steps``,
            or ``iterate_dtype`` where it is not offered.
        RuntimeError: A wrong shape, dtype or device; damping outside (0, 1); offsets that
            decrease; a column out of range (CPU); rows of P whose absolute weights sum to more
            than 1 with ``tol``; no convergence in ``max_steps``.

    Note:
        The ``tol`` form stops once ``damping / (1 - damping) * max|Z_t - Z_(t-1)|`` is small
        enough, which bounds the distance to the limit, or once differences are rounding noise of
        the dtype: float32 reaches about ``1e-7 / (1 - damping)``. Memory: two more copies of F.
        Deterministic, for any number of threads.

        Its gradients are those of the limit, off by what both walks are off by. With G the gradient
        that arrives, and g the largest sum over rows of a column of ``|G|``: that to ``features``
        by at most ``tol * g`` in such a sum, as the walk of G on the transpose ends by the same
        rule; that to each of ``values`` by at most
        ``damping / (1 - damping) * tol * (2 + tol) * D * g * max|F|``, at damping 0.99 99 times as
        much as at 0.5. (With ``transpose``, F and G change places.) So a ``tol`` that is small
        enough for the result may be too large to train the weights by. ``max_steps`` bounds either
        walk.

    References:
        Page, Brin, Motwani, Winograd, *The PageRank citation ranking*, 1999. Gasteiger,
        Bojchevski, Günnemann, *Predict then propagate*, ICLR 2019, Eq. (4).

    Example:
        >>> import torch
        >>> from fcl_ext import random_walk
        >>> crow, col = torch.tensor([0, 1, 2]), torch.tensor([1, 0])
        >>> features = torch.tensor([[0.0], [1.0]])
        >>> random_walk(crow, col, torch.ones(2), features, damping=0.5, num_steps=1).tolist()
        [[0.5], [0.5]]
        >>> random_walk(crow, col, torch.ones(2), features, damping=0.5)
        tensor([[0.3333],
                [0.6667]])
    """
    refuse_gradient("damping", damping)
    if num_steps is not None and tol is not None:
        raise ValueError(
            f"random_walk: expected num_steps or tol, not both; got num_steps={num_steps} and "
            f"tol={tol}"
        )
    if num_steps is not None and max_steps is not None:
        raise ValueError("random_walk: max_steps bounds tol; it has no use with num_steps")
    try:
        return _walked(
            (crow_indices, col_indices, values),
            features,
            damping,
            num_steps,
            tol,
            transpose,
            max_steps,
            iterate_dtype,
        )
    except (AttributeError, RuntimeError, TypeError, ValueError):
        arrays = {"crow_indices": crow_indices, "col_indices": col_indices, "values": values}
        need_tensors("random_walk", **arrays, features=features)
        need_number("random_walk", "damping", damping)
        for name, steps in (("num_steps", num_steps), ("max_steps", max_steps)):
            if steps is not None:
                need_integer("random_walk", name, steps)
        if tol is not None:
            need_number("random_walk", "tol", tol)
        raise


def _walked(
    graph: tuple[Tensor, Tensor, Tensor],
    features: Tensor,
    damping: float,
    num_steps: int | None,
    tol: float | None,
    transpose: bool,
    max_steps: int | None,
    iterate_dtype: torch.dtype | None,
) -> Tensor:
    """`random_walk` of arguments that go together."""
    crow_indices, col_indices, values = graph
    if iterate_dtype is not None:
        _check_iterate_dtype(iterate_dtype, num_steps, values, features)
    if transpose:
        crow_indices, col_indices, edge_order = ops.csr_transpose(
            crow_indices, col_indices, features.shape[0]
        )
        values = values[edge_order]
    if num_steps is not None and iterate_dtype is not None:
        restart = features.float()
        walked = ops.random_walk_resume(
            crow_indices,
            col_indices,
            values.float(),
            restart,
            restart,
            float(damping),
            num_steps,
            bf16_steps(num_steps),
        )
        return walked.to(features.dtype)
    if num_steps is not None:
        return ops.random_walk(
            crow_indices, col_indices, values, features, float(damping), num_steps
        )
    tol = DEFAULT_TOL if tol is None else float(tol)
    if max_steps is None:
        # Values the operator refuses must reach it, so that its message is the one users see.
        valid = 0 < damping < 1 and 0 < tol < 1
        max_steps = steps_for(damping, tol) if valid else 1
    state, _ = ops.random_walk_tol(
        crow_indices,
        col_indices,
        values,
        features,
        float(damping),
        tol,
        max_steps,
        "sum" if transpose else "max",
    )
    return state


def _check_iterate_dtype(
    iterate_dtype: torch.dtype, num_steps: int | None, values: Tensor, features: Tensor
) -> None:
    if iterate_dtype != torch.bfloat16:
        raise ValueError(
            f"random_walk: expected iterate_dtype None or torch.bfloat16, got {iterate_dtype}"
        )
    if num_steps is None:
        raise ValueError("random_walk: iterate_dtype goes with num_steps; tol needs full precision")
    if features.dtype == torch.float64:
        raise ValueError("random_walk: iterate_dtype=bfloat16 would waste float64 features")
    if torch.is_grad_enabled() and (values.requires_grad or features.requires_grad):
        raise ValueError("random_walk: iterate_dtype has no gradient; detach values and features")
