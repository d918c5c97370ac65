# SPDX-License-Identifier: Apache-2.0
"""Long walks from Python: in chunks that can be watched and stopped, and to their limit by CG."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fcl_ext import ops

#: Called with the steps done, and how many there will be at most.
Progress = Callable[[int, int], None]
#: CSR arrays of a graph: crow_indices, col_indices, values.
Arrays = tuple[Tensor, Tensor, Tensor]

# Columns solved together: four more tensors of (N, this) exist beside features and result.
_BLOCK_COLUMNS = 128
# Seconds between two looks at signals and calls of `progress`.
_CHUNK_SECONDS = 0.5
# Multiplications of a first chunk, before its speed is known: below a second on one core. Every
# chunk allocates its states anew, so short walks are best left whole.
_FIRST_CHUNK = 4e9
# Each round solves for the residual that rounding left of the last one.
_MOST_ROUNDS = 4


@dataclass(frozen=True)
class WalkLimit:
    """Where a walk ends, and what it took to get there.

    Attributes:
        features: Limit of the walk, shape ``(N, D)``.
        num_steps: Multiplications by the graph that each column took, int64 ``(D,)``.
        error: Bound on the distance to the limit of each column, relative to the 2-norm of the
            column of the features, float64 ``(D,)``: the measured residual over ``1 - damping``.
    """

    features: Tensor
    num_steps: Tensor
    error: Tensor


def walk_in_chunks(
    arrays: Arrays, rows: Tensor, damping: float, num_steps: int, progress: Progress | None
) -> Tensor:
    """`fcl_ext.random_walk` on the CPU, back in Python about twice a second.

    Chunks go on from each other's state, so the result is the same to the last bit.
    """
    if num_steps == 0:
        return rows.clone()  # never the caller's own tensor
    features = rows.double() if rows.dtype == torch.float64 else rows.float()
    state = features
    done, chunk = 0, max(1, int(_FIRST_CHUNK / max(1, len(arrays[1]) * rows.shape[1])))
    while done < num_steps:
        start = time.perf_counter()
        now = min(chunk, num_steps - done)
        state = ops.random_walk_resume(*arrays, state, features, damping, now)
        done += now
        if progress is not None:
            progress(done, num_steps)
        chunk = max(1, int(_CHUNK_SECONDS * now / (time.perf_counter() - start + 1e-9)))
    return state.to(rows.dtype)


def solve(
    arrays: Arrays,
    features: Tensor,
    damping: float,
    tol: float,
    max_steps: int,
    progress: Progress | None = None,
) -> WalkLimit:
    r"""Limit of a walk over a symmetric graph S by conjugate gradients, column by column.

    Solves :math:`(I - \lambda S) Z = (1 - \lambda) F`. Eigenvalues of S lie in [-1, 1], so those of
    the matrix are at least :math:`1 - \lambda` and a residual r leaves an error of at most
    :math:`|r| / (1 - \lambda)`. A column stops when that is at most ``tol`` times its feature, or
    when another round no longer brings it nearer: then rounding is all that is left of it.

    Args:
        arrays: CSR of S, on the device of the features, values in their dtype.
        features: F, shape ``(N, D)``, float32 or float64.
        damping: In (0, 1).
        tol: In (0, 1).
        max_steps: Multiplications after which a column is given up; power iteration needs no more.
        progress: Called with the steps done in all blocks of columns, and their bound.

    References:
        Hestenes, Stiefel, *Methods of conjugate gradients for solving linear systems*, 1952.
    """
    num_columns = features.shape[1]
    out = torch.empty_like(features, memory_format=torch.contiguous_format)
    steps = torch.zeros(num_columns, dtype=torch.int64)
    error = torch.zeros(num_columns, dtype=torch.float64)
    num_blocks = -(-num_columns // _BLOCK_COLUMNS)
    for block in range(num_blocks):
        columns = slice(block * _BLOCK_COLUMNS, (block + 1) * _BLOCK_COLUMNS)

        def report(done: int, block: int = block) -> None:
            if progress is not None:
                progress(block * max_steps + done, num_blocks * max_steps)

        part = features[:, columns].contiguous()
        out[:, columns], steps[columns], error[columns] = _solve_block(
            arrays, part, damping, tol, max_steps, report
        )
    if progress is not None:
        progress(num_blocks * max_steps, num_blocks * max_steps)
    return WalkLimit(out, steps, error)


def _solve_block(
    arrays: Arrays,
    features: Tensor,
    damping: float,
    tol: float,
    max_steps: int,
    report: Callable[[int], None],
) -> tuple[Tensor, Tensor, Tensor]:
    def multiply(direction: Tensor) -> Tensor:
        # One step of the walk from v is l S v + (1 - l) v.
        return (2 - damping) * direction - ops.random_walk(*arrays, direction, damping, 1)

    size = _norms(features)
    goal = tol * (1 - damping) * size
    state = features.clone()
    steps = torch.ones_like(size, dtype=torch.int64)
    residual = (1 - damping) * features - multiply(state)
    left = _norms(residual)
    done = 1
    for _ in range(_MOST_ROUNDS):
        active = left > goal
        if not bool(active.any()) or done >= max_steps:
            break
        change, taken = _conjugate_gradient(
            multiply, residual, 0.5 * goal, active, range(done, max_steps), report
        )
        candidate = state + change
        fresh = (1 - damping) * features - multiply(candidate)
        better = _norms(fresh) < left
        state = torch.where(better, candidate, state)
        residual = torch.where(better, fresh, residual)
        halved = _norms(residual) <= 0.5 * left
        left = _norms(residual)
        steps += torch.where(active, taken + 1, 0)
        done += int(taken.max()) + 1
        if not bool((halved & active).any()):
            break
    return state, steps.cpu(), (left / ((1 - damping) * size.clamp(min=1e-300))).cpu()


def _conjugate_gradient(
    multiply: Callable[[Tensor], Tensor],
    target: Tensor,
    goal: Tensor,
    active: Tensor,
    numbers: range,
    report: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """X with A X = target in the active columns, 0 in the others; and the steps of each column."""
    state = torch.zeros_like(target)
    residual = target * active
    direction = residual.clone()
    energy = _dots(residual, residual)
    steps = torch.zeros_like(energy, dtype=torch.int64)
    for number in numbers:
        active = active & (energy.sqrt() > goal)
        if not bool(active.any()):
            break
        report(number)
        product = multiply(direction)
        curvature = _dots(direction, product)
        alpha = torch.where(active & (curvature > 0), energy / curvature, torch.zeros_like(energy))
        # A column that stands still keeps its residual, and so stays as it is from here on.
        state.addcmul_(direction, alpha.to(state.dtype))
        residual.addcmul_(product, -alpha.to(state.dtype))
        new_energy = torch.where(active, _dots(residual, residual), energy)
        beta = torch.where(active & (energy > 0), new_energy / energy, torch.zeros_like(energy))
        direction = residual + direction * beta.to(state.dtype)
        energy = new_energy
        steps += active
    return state, steps


def _dots(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(0, dtype=torch.float64)


def _norms(rows: Tensor) -> Tensor:
    return _dots(rows, rows).sqrt()
