# SPDX-License-Identifier: Apache-2.0
"""A k-nearest-neighbour graph of stored features, and the random walk over it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import fcl_ext
from fcl_ext import ops
from fcl_ext.walk import DEFAULT_TOL
from fclearn import _copies, _csr, _neighbours, _prepared, _solver
from fclearn._files import replacing
from fclearn.features import FeatureSource

_FORMAT = "fclearn.KnnGraph"
_VERSION = 1
_ARRAYS = ("crow_indices", "col_indices", "values")


@dataclass(frozen=True, repr=False)
class KnnGraph:
    r"""A directed graph of N nodes as a CSR matrix: row i lists the neighbours of node i.

    Make one with `build` or `from_csr`, turn similarities into walking probabilities with
    `normalize`, then `walk` features over it. Graphs never change; every method returns a new one.

    Attributes:
        crow_indices: Row offsets, shape ``(N + 1,)``, int64.
        col_indices: Neighbours, shape ``(E,)``, int32 or int64; ``-1`` is padding.
        values: Similarities, or weights once normalised, shape ``(E,)``, float32 or float64.
        mode: How values were normalised: ``"row"``, ``"symmetric"`` or ``"none"``; None for
            similarities, which cannot be walked on.
        metadata: How the graph was made (``k``, ``metric``, ``backend``, ``recall``,
            ``temperature``); JSON values.
        prepared: The same graph renumbered for speed by `prepare`, or None. Nothing a caller gives
            or gets is ever in that order.

    Example:
        >>> import torch
        >>> from fclearn import KnnGraph
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.3], [0.0, 1.0]])
        >>> graph = KnnGraph.build(features, k=2).normalize(temperature=0.1)
        >>> graph.num_edges, graph.mode
        (8, 'row')
        >>> graph.walk(features, damping=0.5).shape
        torch.Size([4, 2])
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    mode: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    prepared: _prepared.PreparedGraph | None = None

    @classmethod
    def build(
        cls,
        features: FeatureSource,
        k: int,
        *,
        labels: Tensor | np.ndarray | None = None,
        backend: str = "auto",
        metric: str = "cosine",
        min_recall: float = 0.95,
        duplicates: str = "keep",
    ) -> KnnGraph:
        """Connect every row to its k most similar other rows.

        Args:
            features: Shape ``(N, D)``, floating: a tensor, an array, a feature store or a path of
                one or of a ``.npy`` file. Files are read into memory.
            k: Neighbours per row, >= 1, and below N without labels.
            labels: Class per row, shape ``(N,)``, integers. Given: a *within-class* graph, every
                row joined to rows of its own class only. Classes with at most k rows give
                ``size - 1`` neighbours; single rows and rows with a negative label give none.
            backend: ``"exact"``, ``"faiss"`` (flat when small, else an inverted file), ``"hnsw"``
                (faiss; its result may differ from run to run), or ``"auto"``: exact up to 200,000
                rows, then faiss if it is installed. Within-class graphs are always exact.
            metric: ``"cosine"``, ``"ip"`` or ``"l2"`` (negative squared distance).
            min_recall: In (0, 1]. An approximate search probes more until this share of the true
                neighbours of a sample of 200 rows is found; ``metadata`` has the recall and effort.
            duplicates: ``"keep"``: rows that are exactly equal are neighbours like others, and may
                fill each other's lists. ``"link"``: the graph joins distinct rows only (within
                classes: of a class), and every further copy has a single edge, to the first row
                equal to it; ``metadata["copies"]`` is their number. `symmetrized` adds the edges
                back.

        Raises:
            TypeError: Features that are not floating, labels that are not integers.
            ValueError: A wrong shape, k out of range, NaN or infinite features, an unknown
                backend or metric, faiss missing, a recall out of the backend's reach.
        """
        rows = _neighbours.rows_of(features)
        if metric not in {"cosine", "ip", "l2"}:
            raise ValueError(f"metric: expected 'cosine', 'ip' or 'l2', got {metric!r}")
        if k < 1:
            raise ValueError(f"k: expected at least 1 neighbour, got {k}")
        if not 0 < min_recall <= 1:
            raise ValueError(f"min_recall: expected a number in (0, 1], got {min_recall}")
        if duplicates not in {"keep", "link"}:
            raise ValueError(f"duplicates: expected 'keep' or 'link', got {duplicates!r}")
        classes = None if labels is None else _as_labels(labels, rows.shape[0])
        _check_finite(rows, classes)
        if duplicates == "keep":
            return cls._search(rows, k, classes, backend, metric, min_recall)
        first = _copies.first_equals(rows, classes)
        is_first = first == torch.arange(len(first))
        kept = None if classes is None else classes[is_first]
        distinct = rows[is_first.to(rows.device)]
        graph = cls._search(distinct, k, kept, backend, metric, min_recall)
        arrays = (graph.crow_indices, graph.col_indices, graph.values)
        metadata = {**graph.metadata, "copies": len(first) - len(distinct)}
        return cls(*_copies.link(arrays, first, rows, metric), None, metadata)

    @classmethod
    def _search(
        cls,
        rows: Tensor,
        k: int,
        classes: Tensor | None,
        backend: str,
        metric: str,
        min_recall: float,
    ) -> KnnGraph:
        num_rows = rows.shape[0]
        metadata: dict[str, Any] = {"metric": metric, "k": k, "backend": "exact"}
        if classes is not None:
            metadata["within_class"] = True
            return cls(*_neighbours.search_within(rows, k, classes, metric), None, metadata)
        metadata["backend"] = _neighbours.choose_backend(backend, num_rows)
        if k >= num_rows:
            raise ValueError(
                f"k: expected fewer neighbours than rows (no row is its own neighbour, nor a copy "
                f"with duplicates='link'), got k={k} for {num_rows} rows"
            )
        indices, similarities, facts = _neighbours.search(
            rows, k, metric, metadata["backend"], min_recall
        )
        return replace(cls.from_knn(indices, similarities), metadata=metadata | facts)

    @classmethod
    def from_knn(cls, indices: Tensor, similarities: Tensor) -> KnnGraph:
        """Take a table of neighbours of fixed width.

        Args:
            indices: Neighbours of each node, shape ``(N, K)``, int32 or int64, ``-1`` for none.
            similarities: Shape ``(N, K)``, float32 or float64.

        Raises:
            ValueError: As `from_csr`; shapes that differ.
        """
        if indices.ndim != 2 or indices.shape != similarities.shape:
            raise ValueError(
                "expected indices and similarities of one shape [N, K], got "
                f"{list(indices.shape)} and {list(similarities.shape)}"
            )
        num_rows, degree = indices.shape
        crow = torch.arange(num_rows + 1, device=indices.device) * degree
        return cls.from_csr(crow, indices.reshape(-1), similarities.reshape(-1))

    @classmethod
    def from_csr(cls, crow_indices: Tensor, col_indices: Tensor, values: Tensor) -> KnnGraph:
        """Take any graph in CSR form; its values count as similarities until `normalize`.

        Args:
            crow_indices: Shape ``(N + 1,)``, int64, from 0 to E, never decreasing.
            col_indices: Shape ``(E,)``, int32 or int64, in ``[0, N)``, or ``-1`` for padding.
            values: Shape ``(E,)``, float32 or float64, finite. May require gradients.

        Raises:
            TypeError: A wrong dtype.
            ValueError: Arrays that disagree, an index out of range, a value that is not finite.
        """
        _csr.check_csr(crow_indices, col_indices, values)
        return cls(crow_indices, col_indices, values)

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return self.crow_indices.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """Number of edges, without padding."""
        return int((self.col_indices >= 0).sum())

    @property
    def isolated(self) -> Tensor:
        """Which nodes have no neighbour, bool ``(N,)``."""
        return _csr.row_sums((self.col_indices >= 0).double(), self.crow_indices) == 0

    def to(self, device: torch.device | str) -> KnnGraph:
        """Copy of the graph on another device; the graph itself if it is there."""
        if self.values.device == torch.device(device):
            return self
        arrays = {name: getattr(self, name).to(device) for name in _ARRAYS}
        prepared = None if self.prepared is None else self.prepared.to(device)
        return replace(self, **arrays, prepared=prepared)

    def mutual(self) -> KnnGraph:
        """Keep the edges whose reverse is an edge too: rows that are among *each other's* nearest.

        Nodes may become isolated. Hubs lose the rows that are near to everything.

        Raises:
            ValueError: A graph that is normalised already.

        Example:
            >>> import torch
            >>> from fclearn import KnnGraph
            >>> features = torch.tensor([[0.0], [1.0], [3.0]])
            >>> graph = KnnGraph.build(features, k=1, metric="l2")  # 0 -> 1, 1 -> 0, 2 -> 1
            >>> graph.mutual().num_edges, graph.symmetrized().num_edges
            (2, 4)
        """
        return self._variant("mutual", _csr.mutual_edges)

    def symmetrized(self) -> KnnGraph:
        """Add the reverse of every edge; a pair joined twice keeps the mean of its similarities.

        Neighbours of a node come in the order of their ids, no longer best first.

        Raises:
            ValueError: A graph that is normalised already.
        """
        return self._variant("symmetrized", _csr.union_with_reverse)

    def _variant(
        self,
        name: str,
        change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    ) -> KnnGraph:
        if self.mode is not None:
            raise ValueError(
                f"{name}: expected a graph of similarities, got a normalised one "
                f"(mode={self.mode!r}); call it before normalize()"
            )
        arrays = change(self.crow_indices, self.col_indices, self.values)
        return KnnGraph(*arrays, None, {**self.metadata, "variant": name})

    def normalize(self, temperature: float = 0.05, mode: str = "row") -> KnnGraph:
        r"""Turn similarities into the weights of a walk.

        Args:
            temperature: :math:`\tau > 0`, in units of the similarity.
            mode: ``"row"``: :math:`P_{ij} = \mathrm{softmax}_j(s_{ij} / \tau)` over the neighbours
                of i, so every row sums to 1. ``"symmetric"``: :math:`D^{-1/2} W D^{-1/2}` with
                :math:`W = (P + P^T) / 2` of that P and D its row sums; rows need not sum to 1.
                ``"none"``: values are weights already, e.g. those of a `from_csr` graph.

        Returns:
            The graph with the new values and without padding edges. A node without neighbours
            gets a self-loop of weight 1 (not with ``"none"``): a walk leaves its feature as it is.

        Raises:
            ValueError: An unknown mode, a temperature that is not positive, a graph that is
                normalised already, negative weights with ``"none"``.
        """
        if mode not in {"row", "symmetric", "none"}:
            raise ValueError(f"mode: expected 'row', 'symmetric' or 'none', got {mode!r}")
        if self.mode is not None:
            raise ValueError(f"normalize: the graph is normalised already (mode={self.mode!r})")
        if mode == "none":
            if bool((self.values.detach() < 0).any()):
                raise ValueError("mode='none': expected weights >= 0, got a negative one")
            return replace(self, mode="none")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        crow, col, values = _csr.add_self_loops(self.crow_indices, self.col_indices, self.values)
        values = _csr.row_softmax(values.double() / temperature, crow)
        if mode == "symmetric":
            crow, col, values = _csr.symmetrize(crow, col, values)
        metadata = {**self.metadata, "temperature": temperature}
        return KnnGraph(crow, col, values.to(self.values.dtype), mode, metadata)

    def prepare(self, labels: Tensor | np.ndarray | None = None) -> KnnGraph:
        """Renumber nodes so that walks find in the caches what they gather.

        Worth it before walks of some steps on graphs larger than the caches whose nodes come in no
        useful order. The order is kept only if edges share columns more often with it, measured in
        windows of 512 rows; results are the same up to rounding either way.

        Args:
            labels: Class or cluster per node, shape ``(N,)``, integers: the order brings equal ones
                together. Default: groups of nodes are grown along the edges.

        Returns:
            The graph with `prepared` set; this graph if no order helps. `save` keeps it.

        Raises:
            TypeError: Labels that are not integers.
            ValueError: A graph that is not normalised, labels of another length.

        Example:
            >>> import torch
            >>> from fclearn import KnnGraph
            >>> group = torch.arange(4096) % 64
            >>> graph = KnnGraph.from_knn(
            ...     torch.stack([(torch.arange(4096) + 64 * i) % 4096 for i in (1, 2, 3)], 1),
            ...     torch.ones(4096, 3),
            ... ).normalize()
            >>> graph.prepare(group).prepared is not None
            True
        """
        if self.mode is None:
            raise ValueError("prepare: the graph holds similarities; call normalize() first")
        order = None if labels is None else _prepared.by_labels(_as_labels(labels, self.num_nodes))
        arrays = (self.crow_indices, self.col_indices, self.values)
        prepared = _prepared.prepare(*arrays, order)
        if not _prepared.is_worthwhile(prepared, self.crow_indices, self.col_indices):
            return replace(self, prepared=None)
        return replace(self, prepared=prepared)

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
                are wanted, by a fixed number of steps.
            transpose: Walk against the edges: with one-hot labels divided by class size, columns
                become the personalised PageRank of each class.
            iterate_dtype: ``torch.bfloat16``: faster with ``num_steps`` on large graphs, at a
                relative error up to 2e-3; see `fcl_ext.random_walk`.
            progress: Called as ``progress(steps done, steps in all)`` about twice a second, with
                ``num_steps`` in full precision on the CPU, or in mode ``"symmetric"``; not with
                gradients. What it raises ends the walk.

        Returns:
            Shape ``(N, D)``, dtype and device of the features.

        Raises:
            TypeError: Features that are not floating.
            ValueError: A graph that is not normalised, a wrong number of rows, damping outside
                (0, 1), ``num_steps`` and ``tol`` together, progress where it is not offered.
        """
        rows = self._walkable(features, damping, tol)
        if num_steps is not None and num_steps < 0:
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
        in_chunks = (
            num_steps is not None
            and iterate_dtype is None
            and not needs_grad
            and rows.device.type == "cpu"
        )
        if progress is not None and not in_chunks:
            raise ValueError(
                "progress: expected num_steps on the CPU in full precision, or mode 'symmetric', "
                "and no gradients"
            )
        graph = self.to(rows.device)
        arrays = graph.crow_indices, graph.col_indices, graph.values
        if graph.prepared is not None:
            prepared = graph.prepared
            arrays = prepared.crow_indices, prepared.col_indices, prepared.values
            # The bound of the tol form holds for the rows of P, so that form transposes itself.
            if transpose and num_steps is not None and not prepared.values.requires_grad:
                arrays, transpose = prepared.transposed, False
        crow, col, values = arrays
        values = values.to(_state_dtype(rows))
        if in_chunks and transpose:
            crow, col, edge_order = fcl_ext.csr_transpose(crow, col)
            values, transpose = values[edge_order], False

        def run(rows: Tensor) -> Tensor:
            if in_chunks and num_steps is not None and not transpose:
                return _solver.walk_in_chunks(
                    (crow, col, values), rows, damping, num_steps, progress
                )
            return fcl_ext.random_walk(
                crow,
                col,
                values,
                rows,
                damping=damping,
                num_steps=num_steps,
                tol=tol,
                transpose=transpose,
                iterate_dtype=iterate_dtype,
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
            num_classes: C. Default: the largest label plus 1.

        Returns:
            ``crow_indices`` ``(N + 1,)`` int64, ``col_indices`` (classes, ascending in each row)
            int32, and ``values`` float32 of H as CSR ``(N, C)``, on the CPU.

        Raises:
            TypeError: Labels that are not integers.
            ValueError: A graph that is not normalised, epsilon or damping out of range.
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
        classes = _as_labels(labels, self.num_nodes)
        if num_classes is None:
            num_classes = int(classes.max()) + 1 if len(classes) else 0
        graph = self.to("cpu")
        return ops.class_walk(
            graph.crow_indices,
            graph.col_indices,
            graph.values.detach().float(),
            classes,
            max(num_classes, 0),
            damping,
            epsilon / 2 * (1 - damping),
            _contraction_steps(damping, epsilon),
        )

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
        if not 0 < damping < 1:
            raise ValueError(f"damping: expected a number in (0, 1), got {damping}")
        if tol is not None and not 0 < tol < 1:
            raise ValueError(f"tol: expected a number in (0, 1), got {tol}")
        return rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            OSError: The folder cannot be made or written.
        """
        header = {"version": _VERSION, "mode": self.mode, "metadata": self.metadata}
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _ARRAYS}
        if self.prepared is not None:
            tensors["order"] = self.prepared.order.cpu()
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={_FORMAT: json.dumps(header)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KnnGraph:
        """Read a graph written by `save`; every index is checked, and nothing is unpickled.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a whole and valid graph file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such graph file")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_FORMAT])
                tensors = [file.get_tensor(name) for name in _ARRAYS]
                order = file.get_tensor("order") if "order" in file.keys() else None  # noqa: SIM118
            if header["version"] != _VERSION:
                raise ValueError(f"format version {header['version']}, expected {_VERSION}")
            mode, metadata = header["mode"], header["metadata"]
            if mode not in {None, "row", "symmetric", "none"} or not isinstance(metadata, dict):
                raise ValueError(f"unknown mode {mode!r}")
            graph = replace(cls.from_csr(*tensors), mode=mode, metadata=metadata)
            if order is None:
                return graph
            _prepared.check_order(order, graph.num_nodes)
            # The rest of it follows from the order, and so cannot disagree with the graph.
            crow, col, values = tensors
            return replace(graph, prepared=_prepared.prepare(crow, col, values, order))
        except (SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
            raise ValueError(f"{path}: not a valid KnnGraph file: {error}") from error

    def __repr__(self) -> str:
        """Sizes, mode and how the graph was made."""
        facts = {"num_nodes": self.num_nodes, "num_edges": self.num_edges, "mode": self.mode}
        text = ", ".join(f"{key}={value!r}" for key, value in (facts | self.metadata).items())
        return f"KnnGraph({text})"


def _check_finite(rows: Tensor, classes: Tensor | None) -> None:
    """What the kernels refuse, as a ValueError that names the caller's row."""
    finite = rows.isfinite()
    if bool(finite.all()):
        return
    bad = ~finite.all(1)
    if classes is not None:
        bad &= (classes >= 0).to(bad.device)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"features: expected finite numbers, got a NaN or infinity in row {row}")


def _state_dtype(rows: Tensor) -> torch.dtype:
    """Half features walk in float32."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def _contraction_steps(damping: float, tol: float) -> int:
    """Steps until a symmetric walk is within ``tol``: |P| <= 1 in the 2-norm, from 2|F| at most."""
    return math.ceil(math.log(tol / 2) / math.log(damping))


def _as_labels(labels: Tensor | np.ndarray, num_rows: int) -> Tensor:
    tensor = torch.as_tensor(np.asarray(labels)) if not isinstance(labels, Tensor) else labels
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"labels: expected integers, got {tensor.dtype}")
    if tuple(tensor.shape) != (num_rows,):
        raise ValueError(f"labels: expected shape [{num_rows}], got {list(tensor.shape)}")
    return tensor.cpu().long()
