# SPDX-License-Identifier: Apache-2.0
"""The tolerance form of the walk from Python: a loop that can be watched and stopped.

The stopping rule of the operator `random_walk_tol` (walk_to_limit in csrc/ops/random_walk.h, which
derives it), looked at once per halving of the error rather than at every step, so that hardly any
time is lost in between. Differences of iterates never grow, so a step that satisfies the bound is
followed by none that does not: the walk ends at the first multiple of a halving from there on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fcl_ext import ops
from fcl_ext.walk import steps_for

#: CSR arrays of a graph: crow_indices, col_indices, values.
Arrays = tuple[Tensor, Tensor, Tensor]

# Seconds between two calls of `progress`, and rows compared at a time.
_REPORT_SECONDS = 0.5
_BLOCK_ROWS = 1 << 16
_NOT_FINITE = "features: expected finite numbers, got a NaN or an infinity"


def walk_to_tolerance(
    arrays: Arrays,
    rows: Tensor,
    damping: float,
    tol: float,
    *,
    transposed: bool,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """`fcl_ext.random_walk` with ``tol`` on the CPU, back in Python every few steps.

    Args:
        arrays: CSR of P; of its transpose if ``transposed``.
        rows: Features, shape ``(N, D)``, floating.
        damping: In (0, 1).
        tol: Distance to the limit, relative to the features; the largest entry counts, or, if
            transposed, the largest absolute column sum.
        transposed: Whether the arrays are those of the transpose.
        progress: Called with the steps done, and their bound.

    Returns:
        The limit, dtype of ``rows``. The number of steps depends on the data alone.

    Raises:
        ValueError: What `contraction_of` refuses; features that are not finite, or so large that
            a step is not.
        RuntimeError: No convergence.
    """
    features = rows.double() if rows.dtype == torch.float64 else rows.float()
    norm = _largest_column_sum if transposed else _largest_entry
    contraction = contraction_of(arrays, damping, transposed=transposed)
    scale = norm(features, None)
    if not math.isfinite(scale):
        raise ValueError(_NOT_FINITE)
    halving = math.ceil(math.log(0.5) / math.log(contraction)) if contraction > 0 else 1
    max_steps = steps_for(damping, tol) + halving
    epsilon = torch.finfo(features.dtype).eps
    state, done, halved, halved_at = features, 0, math.inf, 0
    reported = time.monotonic()
    while done < max_steps:
        before = state
        if halving > 1:
            before = ops.random_walk_resume(*arrays, state, features, damping, halving - 1)
        state = ops.random_walk_resume(*arrays, before, features, damping, 1)
        done += halving
        difference = norm(state, before)
        if not math.isfinite(difference):
            raise ValueError(
                f"features: expected numbers small enough to walk, but step {done} gave a NaN or "
                "an infinity"
            )
        if difference <= halved / 2:
            halved, halved_at = difference, done
        is_noise = done - halved_at > 2 * halving and difference <= 16 * epsilon * scale
        if contraction / (1 - contraction) * difference <= tol * scale or is_noise:
            return state.to(rows.dtype)
        if progress is not None and time.monotonic() - reported >= _REPORT_SECONDS:
            reported = time.monotonic()
            progress(min(done, max_steps), max_steps)
    raise RuntimeError(f"walk: expected to come within tol = {tol} in {max_steps} steps")


def check_bounded(arrays: Arrays, rows: Tensor, damping: float) -> None:
    """Refuse, before the operator does in its own words, what `walk_to_tolerance` refuses.

    Args:
        arrays: CSR of P, detached.
        rows: Features.
        damping: In (0, 1).

    Raises:
        ValueError: As `walk_to_tolerance`.
    """
    contraction_of(arrays, damping, transposed=False)
    if not rows.isfinite().all():
        raise ValueError(_NOT_FINITE)


def contraction_of(arrays: Arrays, damping: float, *, transposed: bool) -> float:
    """Factor by which a step brings two states closer, in the norm that the tolerance is given in.

    Args:
        arrays: As `walk_to_tolerance`.
        damping: In (0, 1).
        transposed: As `walk_to_tolerance`.

    Returns:
        Damping times the largest absolute sum of a row of P, below 1.

    Raises:
        ValueError: A row of P whose absolute weights sum to more than 1, or are not finite.
    """
    weight = _largest_row_sum(arrays, by_column=transposed)
    # Rounded weights may sum to a little more than 1, which the bound then counts in.
    if not weight <= 1 + 1e-4:  # NaN, too
        raise ValueError(
            "walk: expected every row of the graph to have absolute weights that sum to at most 1 "
            f"(without that no error bound holds: normalise, or use num_steps), got {weight}"
        )
    contraction = damping * weight
    if not contraction < 1:
        raise ValueError(
            "walk: expected damping times the largest row sum to be below 1, got "
            f"{damping} * {weight}"
        )
    return contraction


def _largest_entry(a: Tensor, b: Tensor | None) -> float:
    most = 0.0
    for part in _differences(a, b):
        # max() of Python would drop a NaN that comes second.
        most = float(torch.maximum(part.abs().max(), part.new_tensor(most)))
    return most


def _largest_column_sum(a: Tensor, b: Tensor | None) -> float:
    total = a.new_zeros(a.shape[1], dtype=torch.float64)
    for part in _differences(a, b):
        total += part.abs().sum(0, dtype=torch.float64)
    return float(total.max()) if len(total) else 0.0


def _differences(a: Tensor, b: Tensor | None) -> Iterator[Tensor]:
    """``a - b``, or ``a``, in blocks of rows: never a third copy of the whole."""
    for begin in range(0, len(a) if a.shape[1] else 0, _BLOCK_ROWS):
        block = a[begin : begin + _BLOCK_ROWS]
        yield block if b is None else block - b[begin : begin + _BLOCK_ROWS]


def _largest_row_sum(arrays: Arrays, *, by_column: bool) -> float:
    crow, col, values = arrays
    weights = torch.where(col >= 0, values.abs(), 0).double()
    if by_column:
        sums = torch.bincount(col.clamp(min=0), weights, minlength=len(crow) - 1)
    else:
        sums = torch.segment_reduce(weights, "sum", offsets=crow, initial=0)
    return float(sums.max()) if len(sums) else 0.0
