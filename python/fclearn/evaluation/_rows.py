# SPDX-License-Identifier: Apache-2.0
"""Rows of a feature matrix, read block by block, and their scores, which are exact."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.evaluation.grid import row_norms, to_grid
from fclearn.evaluation.types import InOrder, PerRow, RowSource
from fclearn.features import METRICS, Features, as_features

# Numbers read at once while checking: as float64 and their squares, they stay in the cache.
_CHECK_ELEMENTS = 2**17
# How many times as many rows come at once where none has to be copied, and the most products of
# numbers in a search of theirs: some seconds, in which Python sees no interrupt.
_NOT_COPIED = 8
_MOST_PRODUCTS = 2**41


class Rows:
    """A ``(N, D)`` matrix of features that is never loaded as a whole.

    Args:
        source: Whatever `fclearn.features.as_features` takes, maybe in another order; tensors stay
            on their device.
        name: Argument to name in messages.
        ids: Of the rows, to name one in messages; None: they have none.

    Raises:
        TypeError: Not features, or not floating.
        ValueError: Not two-dimensional, or an unreadable file.
    """

    def __init__(self, source: RowSource, name: str, ids: PerRow | None = None) -> None:
        """Open the source; nothing is read yet."""
        self.name, self._ids = name, ids
        self._order: NDArray[np.int64] | None = None
        if isinstance(source, InOrder):
            self._order, source = source.rows, source.features
        self._data: Tensor | Features
        if isinstance(source, Tensor) and source.device.type != "cpu":
            if not source.is_floating_point():
                raise TypeError(f"{name}: expected floating numbers, got {source.dtype}")
            self._data = source
        else:
            self._data = as_features(source, name)
        if self._data.ndim != 2:
            raise ValueError(f"{name}: expected shape [N, D], got {list(self._data.shape)}")
        self.num_rows, self.dim = int(self._data.shape[0]), int(self._data.shape[1])
        if self._order is not None:
            self.num_rows = len(self._order)
        self.device = self._data.device if isinstance(self._data, Tensor) else torch.device("cpu")

    @property
    def is_narrow(self) -> bool:
        """Whether float32 holds all values as they are."""
        return self._data.dtype.itemsize <= 4

    def in_place(self) -> Tensor | None:
        """All rows where they lie, float32; None where they would have to be copied.

        Only for reading: it may be the memory of a file that is mapped read-only. It must not
        outlive these rows.
        """
        data = self._data
        if isinstance(data, Tensor) or self._order is not None:
            return None
        if data.dtype != np.float32 or not (data.flags.c_contiguous and data.flags.aligned):
            return None
        # As plain memory: torch warns of what cannot be written, and refuses the negative strides
        # that axes of length 1 may have.
        memory = (ctypes.c_byte * data.nbytes).from_address(data.ctypes.data)
        return torch.frombuffer(memory, dtype=torch.float32).view(self.num_rows, self.dim)

    def read(
        self, index: slice | np.ndarray, dim: int, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Rows ``index``, cut to their first ``dim`` columns, as a new tensor."""
        if self._order is not None:
            index = self._order[index]
        if isinstance(self._data, Tensor):
            at = torch.from_numpy(index).to(self.device) if isinstance(index, np.ndarray) else index
            return self._data[at][:, :dim].detach().to(dtype, copy=True)
        kind = np.float64 if dtype == torch.float64 else np.float32
        return torch.from_numpy(np.array(self._data[index, :dim], dtype=kind))

    def check(self, dim: int, *, needs_norm: bool) -> float:
        """Read all rows once and return the largest norm.

        Raises:
            ValueError: NaN or infinite values; with ``needs_norm``, a row of norm zero.
        """
        return max(
            (self._check_block(block, dim, needs_norm=needs_norm) for block in self._blocks(dim)),
            default=0.0,
        )

    def check_directions(self, dim: int) -> None:
        """Read all rows once, as the cosine needs them: several times faster than `check`.

        Raises:
            ValueError: NaN or infinite values, or a row of norm zero.
        """
        for block in self._blocks(dim):
            if not (self.is_narrow and self._have_directions(block, dim)):
                self._check_block(block, dim, needs_norm=True)

    def _have_directions(self, block: slice, dim: int) -> bool:
        """Whether float32 shows that all rows are finite and none is zero; if not, they may be.

        A NaN or an infinity makes its sum one; overflow and underflow only leave it open.
        """
        if isinstance(self._data, Tensor) or self._order is not None:
            read = self.read(block, dim, torch.float32)
            sums = (read * read).sum(1)
            return bool(((sums > 0) & sums.isfinite()).all())
        rows = np.asarray(self._data[block, :dim], dtype=np.float32)
        squares = np.einsum("nd,nd->n", rows, rows)
        return bool((squares > 0).all() and np.isfinite(squares).all())

    def _check_block(self, block: slice, dim: int, *, needs_norm: bool) -> float:
        norms = row_norms(self.read(block, dim))
        bad = ~torch.isfinite(norms)
        if bool(bad.any()):
            row = block.start + int(bad.nonzero()[0])
            raise ValueError(
                f"{self.name}: row {row}{self._named(row)} holds a NaN or infinite value"
            )
        if needs_norm and bool((norms == 0).any()):
            row = block.start + int((norms == 0).nonzero()[0])
            raise ValueError(
                f"{self.name}: row {row}{self._named(row)} has norm zero over its first {dim} "
                "dims, so it has no cosine; drop the row or use metric='ip'"
            )
        return float(norms.max())

    def _named(self, row: int) -> str:
        if self._ids is None or row >= len(self._ids):
            return ""
        given = self._ids[row]
        one = given.item() if isinstance(given, np.generic | Tensor) else given
        return "" if one == row else f" (id {one!r})"

    def _blocks(self, dim: int) -> Iterator[slice]:
        step = max(1, _CHECK_ELEMENTS // max(dim, 1))
        for start in range(0, self.num_rows, step):
            yield slice(start, min(start + step, self.num_rows))


class Scorer:
    """Exact scores of query rows against gallery rows, rounded once to float32.

    A wider query is cut to the gallery's dims (and, for the cosine, normalised again).

    Args:
        query: Query rows.
        gallery: Gallery rows, in at most as many dims as the query.
        metric: ``"cosine"``, ``"ip"`` or ``"l2"`` (minus the squared distance).

    Raises:
        ValueError: No dims in common, NaN or infinite values, rows of norm zero with the cosine, an
            unknown metric.
    """

    def __init__(self, query: Rows, gallery: Rows, metric: str) -> None:
        """Check both matrices, which reads each of them once."""
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
        if query.dim < gallery.dim:
            raise ValueError(
                f"query: expected at least as many dims as the gallery's {gallery.dim}, got "
                f"{query.dim}; a wider query is cut, a narrower one cannot be compared"
            )
        if gallery.dim == 0:
            raise ValueError("gallery: expected at least one dim, got shape [G, 0]")
        self._query, self._gallery = query, gallery
        self.device = gallery.device
        self.metric = metric
        self.num_gallery, self.dim = gallery.num_rows, gallery.dim
        self._query_scale = self._gallery_scale = 1.0  # the cosine has each row's own
        if metric == "cosine":
            gallery.check_directions(gallery.dim)
            query.check_directions(gallery.dim)
            return
        self._gallery_scale = _power_above(gallery.check(gallery.dim, needs_norm=False))
        self._query_scale = _power_above(query.check(gallery.dim, needs_norm=False))
        if metric == "l2":
            self._query_scale = self._gallery_scale = max(self._query_scale, self._gallery_scale)

    def queries(self, index: slice | np.ndarray) -> Tensor:
        """Query rows on the grid, float64 ``(n, D)``."""
        return self._prepare(self._query, index, self._query_scale)

    def gallery(self, index: slice | np.ndarray) -> Tensor:
        """Gallery rows on the grid, float64 ``(n, D)``."""
        return self._prepare(self._gallery, index, self._gallery_scale)

    def narrow(self, side: str, index: slice | np.ndarray) -> Tensor:
        """Rows in float32, as `fcl_ext.knn_search` takes them: their scores are within `slack`.

        Args:
            side: ``"query"`` or ``"gallery"``.
            index: Rows.
        """
        rows = self._query if side == "query" else self._gallery
        if self.metric == "cosine" and rows.is_narrow:
            return rows.read(index, self._gallery.dim, torch.float32)  # the kernel normalises
        return (self.queries(index) if side == "query" else self.gallery(index)).float()

    def narrow_gallery(self, rows_at_once: int, num_queries: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the gallery as `narrow` has it, block by block, each with its first row's number.

        Args:
            rows_at_once: Most rows that are copied. Of rows that need no copy, more come at once,
                as each block's search begins anew.
            num_queries: That each block is searched for. Python sees an interrupt between blocks.
        """
        everything = self._gallery.in_place() if self.metric == "cosine" else None
        step = rows_at_once
        if everything is not None:
            quick = _MOST_PRODUCTS // (max(num_queries, 1) * self.dim)
            step = max(step, min(_NOT_COPIED * step, quick))
        for start in range(0, self.num_gallery, step):
            rows = slice(start, min(start + step, self.num_gallery))
            yield start, self.narrow("gallery", rows) if everything is None else everything[rows]

    @property
    def slack(self) -> float:
        r"""Most by which a float32 score of rows from `narrow` can differ from `score`.

        Norms are at most 1, so D products and sums, each rounded to :math:`u = 2^{-24}`, err by at
        most :math:`(D + O(1))u`; rounding rows to the grid moves a score by less than
        :math:`\sqrt{D} u / 2`. For l2 three such sums are added, one of them twice.
        """
        dim = self._gallery.dim
        return (4 if self.metric == "l2" else 1) * (dim + math.sqrt(dim) + 8) * 2.0**-24

    @property
    def unit(self) -> float:
        """A score times this is the similarity of the rows as given; a power of two."""
        if self.metric == "cosine":
            return 1.0
        return self._query_scale * self._gallery_scale

    def score_pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Scores of rows side by side, ``(n,)`` float32: the same numbers as of `score`."""
        scores = (queries * gallery).sum(1)
        if self.metric == "l2":
            scores = 2 * scores - (queries**2).sum(1) - (gallery**2).sum(1)
        return scores.float()

    def score(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Scores ``(b, n)``, float32: exact in float64, then rounded once."""
        scores = queries @ gallery.T
        if self.metric == "l2":
            scores = 2 * scores - (queries**2).sum(1)[:, None] - (gallery**2).sum(1)
        return scores.float()

    def _prepare(self, rows: Rows, index: slice | np.ndarray, scale: float) -> Tensor:
        block = rows.read(index, self._gallery.dim).to(self.device)
        if self.metric == "cosine":
            block /= row_norms(block)[:, None]
        else:
            block /= scale  # a power of two: exact
        return to_grid(block, self.metric)


def _power_above(norm: float) -> float:
    """Smallest power of two that no norm exceeds."""
    return 2.0 ** math.ceil(math.log2(norm)) if norm > 0 else 1.0
