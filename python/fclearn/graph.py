# SPDX-License-Identifier: Apache-2.0
"""A k-nearest-neighbour graph of stored features, and the random walk over it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fclearn import _copies, _csr, _neighbours, _prepared
from fclearn._graph_walks import GraphWalks
from fclearn._tensor_files import load_tensors, reading, save_tensors
from fclearn.features import METRICS, FeatureSource

_FORMAT = "fclearn.KnnGraph"
_VERSION = 1
_ARRAYS = ("crow_indices", "col_indices", "values")


@dataclass(frozen=True, repr=False)
class KnnGraph(GraphWalks):
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
            ``temperature``; ``ids``, by `fcl graph`: a digest of the store's ids); JSON values.
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
            metric: ``"cosine"``, ``"ip"`` or ``"l2"`` (negative squared distance; of features of 32
                and 64 bits less their mean, as those far from the origin would lose their digits).
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
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
        if k < 1:
            raise ValueError(f"k: expected at least 1 neighbour, got {k}")
        if not 0 < min_recall <= 1:
            raise ValueError(f"min_recall: expected a number in (0, 1], got {min_recall}")
        if duplicates not in {"keep", "link"}:
            raise ValueError(f"duplicates: expected 'keep' or 'link', got {duplicates!r}")
        classes = None if labels is None else _neighbours.labels_of(labels, rows.shape[0])
        _check_finite(rows, classes)
        if metric == "l2" and len(rows) and rows.dtype in {torch.float32, torch.float64}:
            rows = rows - _neighbours.centre_of(len(rows), rows.__getitem__)
        if duplicates == "keep":
            return cls._search(rows, k, classes, backend, metric, min_recall)
        first = _copies.first_equals(rows, classes)
        is_first = first == torch.arange(len(first))
        kept = None if classes is None else classes[is_first]
        distinct = rows[is_first.to(rows.device)]
        if classes is None and k >= len(distinct):
            raise ValueError(
                "k: expected fewer neighbours than distinct rows, as no copy is a neighbour with "
                f"duplicates='link', got k={k} for {len(distinct)} of {len(rows)} rows"
            )
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
                "k: expected fewer neighbours than rows, as no row is its own neighbour, got "
                f"k={k} for {num_rows} rows"
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
        order = (
            None
            if labels is None
            else _prepared.by_labels(_neighbours.labels_of(labels, self.num_nodes))
        )
        arrays = (self.crow_indices, self.col_indices, self.values)
        prepared = _prepared.prepare(*arrays, order)
        if not _prepared.is_worthwhile(prepared, self.crow_indices, self.col_indices):
            return replace(self, prepared=None)
        return replace(self, prepared=prepared)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            OSError: The folder cannot be made or written.
        """
        tensors = {name: getattr(self, name) for name in _ARRAYS}
        if self.prepared is not None:
            tensors["order"] = self.prepared.order
        header = {"mode": self.mode, "metadata": self.metadata}
        save_tensors(path, _FORMAT, _VERSION, header, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KnnGraph:
        """Read a graph written by `save`; every index is checked, and nothing is unpickled.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a whole and valid graph file.
        """
        with reading(path, "KnnGraph"):
            header, found = load_tensors(path, _FORMAT, _VERSION)
            tensors, order = [found[name] for name in _ARRAYS], found.get("order")
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
