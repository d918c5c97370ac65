# SPDX-License-Identifier: Apache-2.0
"""What walks over a `KnnGraph`: features, with steps or to the limit, and labels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import fcl_ext
from fcl_ext import ops
from fcl_ext._derivatives import refuse_gradient
from fcl_ext._explain import need_integer, need_number
from fcl_ext.walk import DEFAULT_TOL, bf16_steps
from fclearn import _neighbours, _power, _prepared, _solver, _windows
from fclearn.features import FeatureSource

if TYPE_CHECKING:
    from fclearn.graph import KnnGraph


class GraphWalks(ABC):
    """The walking half of `KnnGraph`, the only class that has it; the other half is in graph.py."""

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    mode: str | None
    prepared: _prepared.PreparedGraph | None

    @property
    @abstractmethod
    def num_nodes(self) -> int:
        """Number of nodes N."""

    @abstractmethod
    def to(self, device: torch.device | str) -> KnnGraph:
        """Copy of the graph on another device."""

    def walk(
        self,
        features: FeatureSource,
        damping: float = 0.9,
        num_steps: int | None = None,
        tol: float | None = None,
        transpose: bool = False,
        *,
        iterate_dtype: torch.dtype | None = None,
        progress: _solver.Progress | None = None,
    ) -> Tensor:
        """Random walk with restart of the features: `fcl_ext.random_walk` over this graph.

        Args:
            features: Shape ``(N, D)``, floating, in any form that `build` takes, row i of node i.
                Need not be what the graph was built from: labels or prototypes walk too.
            damping: Probability of walking on, in (0, 1).
            num_steps: Exact number of steps, or
            tol: relative distance to the limit. Neither: ``tol=1e-6``. In mode ``"symmetric"`` it
                is measured in the 2-norm of each column and reached by `solve`, or, if gradients
                are wanted, by a fixed number of steps. In the other modes gradients are off by as
                much as ``tol`` allows, those to weights by more: `fcl_ext.random_walk` says how.
            transpose: Walk against the edges: with one-hot labels divided by class size, columns
                become the personalised PageRank of each class.
            iterate_dtype: ``torch.bfloat16``: faster with ``num_steps`` on large graphs, at a
                relative error up to 2e-3; see `fcl_ext.random_walk`.
            progress: Called as ``progress(steps done, steps in all)`` about twice a second, with
                on the CPU in full precision, without gradients; with ``tol`` the second number is a
                bound. What it raises ends the walk.

        Returns:
            Shape ``(N, D)``, dtype and device of the features.

        Raises:
            TypeError: Features that are not floating, another thing than a number or, for
                ``num_steps``, an integer in the place of one.
            ValueError: A graph that is not normalised, a wrong number of rows, damping outside
                (0, 1), ``num_steps`` and ``tol`` together, progress where it is not offered. With
                ``tol``, but in mode ``"symmetric"``: absolute weights of a row that sum to more
                than 1, features or weights that are not finite.
            RuntimeError: No convergence to ``tol``.
        """
        rows = self._walkable(features, damping, tol)
        if num_steps is not None:
            need_integer("", "num_steps", num_steps)
            if num_steps < 0:
                raise ValueError(f"num_steps: expected at least 0, got {num_steps}")
        if num_steps is not None and tol is not None:
            raise ValueError(
                f"walk: expected num_steps or tol, not both; got num_steps={num_steps}, tol={tol}"
            )
        needs_grad = torch.is_grad_enabled() and (rows.requires_grad or self.values.requires_grad)
        is_symmetric = self.mode == "symmetric"
        if is_symmetric and num_steps is None and iterate_dtype is None:
            if not needs_grad:
                return self.solve(rows, damping, tol, progress=progress).features
            tol, num_steps = None, _contraction_steps(damping, DEFAULT_TOL if tol is None else tol)
        # Back in Python now and then, for Ctrl-C and progress.
        watched = iterate_dtype is None and not needs_grad and rows.device.type == "cpu"
        if progress is not None and not watched:
            raise ValueError(
                "progress: expected a walk on the CPU, in full precision and without gradients"
            )
        graph = self.to(rows.device)
        # With gradients the tol form transposes itself: it needs both directions.
        transposes_itself = transpose and num_steps is None and not watched
        crow, col, values = _directed(graph, transpose and not transposes_itself)
        arrays = crow, col, values.to(_state_dtype(rows))

        windows = None if graph.prepared is None or transpose else graph.prepared.windows

        def run(rows: Tensor) -> Tensor:
            if (
                windows is not None
                and num_steps is not None
                and rows.is_cuda
                and rows.dtype != torch.float64
                and not needs_grad
                and _windows.is_asked()
            ):
                num_bf16_steps = 0 if iterate_dtype is None else bf16_steps(num_steps)
                return windows.walk(rows, damping, num_steps, num_bf16_steps)
            if not watched:
                if num_steps is None and iterate_dtype is None:
                    _power.check_bounded((crow, col, values.detach()), rows, damping)
                return fcl_ext.random_walk(
                    *arrays,
                    rows,
                    damping=damping,
                    num_steps=num_steps,
                    tol=tol,
                    transpose=transposes_itself,
                    iterate_dtype=iterate_dtype,
                )
            if num_steps is not None:
                return _solver.walk_in_chunks(arrays, rows, damping, num_steps, progress)
            return _power.walk_to_tolerance(
                arrays,
                rows,
                damping,
                DEFAULT_TOL if tol is None else tol,
                transposed=transpose,
                progress=progress,
            )

        return run(rows) if graph.prepared is None else graph.prepared.apply(run, rows)

    def solve(
        self,
        features: FeatureSource,
        damping: float = 0.9,
        tol: float | None = None,
        *,
        progress: _solver.Progress | None = None,
    ) -> _solver.WalkLimit:
        """Limit of the walk over a symmetric graph by conjugate gradients: far fewer steps.

        Their number grows with ``(1 - damping) ** -0.5``, that of plain steps with
        ``(1 - damping) ** -1``. No gradients.

        Args:
            features: As `walk`.
            damping: As `walk`.
            tol: Distance to the limit in the 2-norm of each column, relative to that of the
                features, in (0, 1). Default 1e-6; float32 reaches about ``1e-7 / (1 - damping)``.
            progress: Called as ``progress(steps done, bound on the steps)``. What it raises ends
                the walk.

        Returns:
            Features at the limit, the steps of each column, and the error bound each has reached.

        Raises:
            TypeError: Features that are not floating.
            ValueError: Another mode than ``"symmetric"``, and as `walk`.

        Example:
            >>> import torch
            >>> from fclearn import KnnGraph
            >>> features = torch.eye(3, dtype=torch.float64)
            >>> graph = KnnGraph.build(features, 2).normalize(mode="symmetric")
            >>> limit = graph.solve(features, damping=0.5)
            >>> limit.features[0]
            tensor([0.6000, 0.2000, 0.2000], dtype=torch.float64)
            >>> bool((limit.error <= 1e-6).all())
            True
        """
        rows = self._walkable(features, damping, tol).detach()
        if self.mode != "symmetric":
            raise ValueError(f"solve: expected mode 'symmetric', got {self.mode!r}; use walk")
        tol = DEFAULT_TOL if tol is None else tol
        graph = self.to(rows.device)
        source = graph if graph.prepared is None else graph.prepared
        dtype = _state_dtype(rows)
        arrays = source.crow_indices, source.col_indices, source.values.detach().to(dtype)
        start = rows.to(dtype)
        if graph.prepared is not None:
            start = start.index_select(0, graph.prepared.order)
        # Four rounds may each lose a little to rounding; one alone needs far fewer than this.
        max_steps = _contraction_steps(damping, tol) + 50
        limit = _solver.solve(arrays, start, damping, tol, max_steps, progress)
        out = limit.features
        if graph.prepared is not None:
            out = out.index_select(0, graph.prepared.inverse)
        return replace(limit, features=out.to(rows.dtype))

    def walk_labels(
        self,
        labels: Tensor | np.ndarray,
        damping: float = 0.9,
        *,
        epsilon: float = 1e-2,
        num_classes: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Class in which a walk from each node ends, without a dense ``(N, C)`` matrix.

        .. math:: H = (1 - \lambda)(I - \lambda P)^{-1} Y, \quad Y_{ic} = [y_i = c]

        Entries are never above those of H, and each row lacks at most ``epsilon`` of it in sum:
        half for the steps not taken, half for the entries cut off on the way.

        Args:
            labels: Class per node, shape ``(N,)``, integers; negative for none: a walk that ends
                there counts for no class.
            damping: As `walk`.
            epsilon: Mass that a row may lack, in (0, 1). Time and memory grow as it shrinks.
            num_classes: C. Default: the largest label plus 1, at no cost for labels that no node
                has; where given, memory grows with it.

        Returns:
            ``crow_indices`` ``(N + 1,)`` int64, ``col_indices`` (classes, ascending in each row)
            int32, and ``values`` float32 of H as CSR ``(N, C)``, on the CPU.

        Raises:
            TypeError: Labels that are not integers.
            ValueError: A graph that is not normalised, epsilon or damping out of range, a label of
                2^31 or more.
            RuntimeError: Rows that sum to more than 1, negative weights, a label >= C.

        References:
            Andersen, Chung, Lang, *Local graph partitioning using PageRank vectors*, FOCS 2006,
            cut residuals with a bound as well, one seed at a time.

        Example:
            >>> import torch
            >>> from fclearn import KnnGraph
            >>> graph = KnnGraph.from_knn(torch.tensor([[1], [0], [1]]), torch.ones(3, 1))
            >>> crow, classes, weights = graph.normalize().walk_labels(
            ...     torch.tensor([0, 0, 1]), damping=0.5
            ... )
            >>> crow.tolist(), classes.tolist()
            ([0, 1, 2, 4], [0, 0, 0, 1])
            >>> bool(weights[3] == 0.5)
            True
        """
        self._walkable(torch.empty(self.num_nodes, 0), damping, None)
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon: expected a number in (0, 1), got {epsilon}")
        classes = _neighbours.labels_of(labels, self.num_nodes)
        names = None
        if num_classes is None:
            # Without those that no node has: the walk's memory grows with their number.
            names, classes = _present(classes)
            num_classes = len(names)
        graph = self.to("cpu")
        crow, found, weights = ops.class_walk(
            graph.crow_indices,
            graph.col_indices,
            graph.values.detach().float(),
            classes,
            max(num_classes, 0),
            damping,
            epsilon / 2 * (1 - damping),
            _contraction_steps(damping, epsilon),
        )
        return crow, found if names is None else names[found.long()].int(), weights

    def _walkable(self, features: FeatureSource, damping: float, tol: float | None) -> Tensor:
        rows = _neighbours.rows_of(features)
        if self.mode is None:
            raise ValueError(
                "walk: the graph holds similarities; call normalize() first (mode='none' takes "
                "them as weights)"
            )
        if rows.shape[0] != self.num_nodes:
            raise ValueError(
                f"features: expected one row per node, {self.num_nodes}, got {rows.shape[0]}"
            )
        refuse_gradient("damping", damping)
        need_number("", "damping", damping)
        if tol is not None:
            need_number("", "tol", tol)
        if not 0 < damping < 1:
            raise ValueError(f"damping: expected a number in (0, 1), got {damping}")
        if tol is not None and not 0 < tol < 1:
            raise ValueError(f"tol: expected a number in (0, 1), got {tol}")
        return rows


def _directed(graph: KnnGraph, transpose: bool) -> tuple[Tensor, Tensor, Tensor]:
    """CSR arrays to walk over, in the order of the prepared graph if there is one."""
    source = graph if graph.prepared is None else graph.prepared
    arrays = source.crow_indices, source.col_indices, source.values
    if not transpose:
        return arrays
    if graph.prepared is not None and not source.values.requires_grad:
        return graph.prepared.transposed
    crow, col, edge_order = fcl_ext.csr_transpose(*arrays[:2])
    return crow, col, source.values[edge_order]


def _state_dtype(rows: Tensor) -> torch.dtype:
    """Half features walk in float32."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def _present(classes: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that occur, ascending, and which of them each node has; -1 stays."""
    names = classes[classes >= 0].unique()
    if len(names) and int(names[-1]) >= 2**31:
        raise ValueError(
            f"labels: expected numbers below 2^31, as the result's are int32, got {int(names[-1])}"
        )
    return names, torch.where(classes >= 0, torch.searchsorted(names, classes.contiguous()), -1)


def _contraction_steps(damping: float, tol: float) -> int:
    """Steps until a symmetric walk is within ``tol``: |P| <= 1 in the 2-norm, from 2|F| at most."""
    return math.ceil(math.log(tol / 2) / math.log(damping))
