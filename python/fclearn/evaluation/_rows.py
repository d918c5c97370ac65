# SPDX-License-Identifier: Apache-2.0
r"""Rows of a feature matrix, read block by block and rounded so that scores are exact.

Rankings must not depend on how the work is cut into blocks, but a matrix product rounds differently
for every shape, thread count and BLAS. So vectors are first scaled to norm at most 1 and rounded to
multiples of :math:`2^{-26}` (finer than what float32 resolves near 1). Products of such numbers are
multiples of :math:`2^{-52}`, and by Cauchy-Schwarz no partial sum exceeds 1, so float64 represents
every one of them: the product is *exact*, in whatever order it is summed, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fclearn.features import METRICS, Features, FeatureSource, as_features

# l2 adds three products, which leaves two bits less than one product has.
_GRID_BITS = {"cosine": 26, "ip": 26, "l2": 25}
# Numbers read at once while checking: as float64 and their squares, they stay in the cache.
_CHECK_ELEMENTS = 2**17


@dataclass(frozen=True, eq=False)
class InOrder:
    """Features in another order of rows, without a copy: read as they are needed.

    Attributes:
        features: Whatever `fclearn.features.as_features` takes.
        rows: Row of ``features`` at each place, shape ``(N,)``, int64.
    """

    features: FeatureSource
    rows: NDArray[np.int64]


#: What evaluation reads features from.
RowSource: TypeAlias = FeatureSource | InOrder


class Rows:
    """A ``(N, D)`` matrix of features that is never loaded as a whole.

    Args:
        source: Whatever `fclearn.features.as_features` takes, maybe in another order; tensors stay
            on their device.
        name: Argument to name in messages.

    Raises:
        TypeError: Not features, or not floating.
        ValueError: Not two-dimensional, or an unreadable file.
    """

    def __init__(self, source: RowSource, name: str) -> None:
        """Open the source; nothing is read yet."""
        self.name = name
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
        return self._data.dtype not in (torch.float64, np.dtype("<f8"), np.dtype(">f8"))

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
        largest = 0.0
        for block in self._blocks(dim):
            norms = _norms(self.read(block, dim))
            bad = ~torch.isfinite(norms)
            if bool(bad.any()):
                row = block.start + int(bad.nonzero()[0])
                raise ValueError(f"{self.name}: row {row} holds a NaN or infinite value")
            if needs_norm and bool((norms == 0).any()):
                row = block.start + int((norms == 0).nonzero()[0])
                raise ValueError(
                    f"{self.name}: row {row} has norm zero over its first {dim} dims, so it has no "
                    "cosine; drop the row or use metric='ip'"
                )
            largest = max(largest, float(norms.max()))
        return largest

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
        cosine = metric == "cosine"
        gallery_norm = gallery.check(gallery.dim, needs_norm=cosine)
        query_norm = query.check(gallery.dim, needs_norm=cosine)
        self._query_scale, self._gallery_scale = (
            _power_above(query_norm),
            _power_above(gallery_norm),
        )
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
            block /= _norms(block)[:, None]
        else:
            block /= scale  # a power of two: exact
        grid = 2.0 ** _GRID_BITS[self.metric]
        return block.mul_(grid).round_().div_(grid)


def _norms(block: Tensor) -> Tensor:
    """Norm of each row, summed pairwise in one fixed order so that no block shape can change it."""
    step = max(1, _CHECK_ELEMENTS // max(block.shape[1], 1))
    return torch.cat([_norms_at_once(rows) for rows in block.split(step)])


def _norms_at_once(block: Tensor) -> Tensor:
    squares = block * block
    while squares.shape[1] > 1:
        half = (squares.shape[1] + 1) // 2
        tail = squares[:, half:]
        squares[:, : tail.shape[1]] += tail
        squares = squares[:, :half]
    return squares[:, 0].sqrt()


def _power_above(norm: float) -> float:
    """Smallest power of two that no norm exceeds."""
    return 2.0 ** math.ceil(math.log2(norm)) if norm > 0 else 1.0
