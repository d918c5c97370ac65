# SPDX-License-Identifier: Apache-2.0
"""A gallery behind the index that serves it: what users get, approximations included."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fclearn._faiss_index import IndexParts
from fclearn.evaluation._index_rows import match_gallery
from fclearn.evaluation._rows import Rows
from fclearn.evaluation._topk import first_visible
from fclearn.evaluation.keys import Exclusion
from fclearn.evaluation.types import Ints
from fclearn.features import FeatureStore

# Queries searched at once.
_BATCH = 4096


class IndexedGallery:
    """A faiss index as the gallery of `evaluate_retrieval`, for metrics that look at the first k.

    Args:
        index: Any faiss index of float vectors: flat, IVF-PQ, HNSW, with or without a transform.
            Its ids must be the rows of the gallery, 0 … G - 1, unless ``rows_of_ids`` or
            ``gallery`` says which row each id is.
        parameters: How to search, as ``faiss.ParameterSpace`` names it: ``{"nprobe": 16}``,
            ``{"efSearch": 64}``.
        rows_of_ids: Gallery row of each id of an ``IndexIDMap``.
        gallery: Store of the rows that the index holds. The index's numbers are then matched with
            its ids, as text, or are its rows where no ids match; and 128 vectors, if the index
            gives vectors back, are compared with their rows: more than a tenth that are of others
            are another order.
        ids: With ``gallery``: its id for each vector, by the number that the index has for it; in
            the order they were added where these are not 0 … G - 1.
        name: Of the index, for messages.

    Attributes:
        num_rows: G.
        dim: Of the queries it takes.
        maps_queries: Whether these are of another space than ``gallery``, as behind an adapter.
        note: What could not be checked of ``gallery``, or ``""``.

    Raises:
        TypeError: Not an index of float vectors.
        ValueError: An empty index, one that faiss cannot search, or a parameter it does not have; a
            gallery of another size, of other ids or in another order; vectors that are not finite;
            ids without a gallery, or both ways to name rows.

    Note:
        Ranks are those the index returns, ties included. Scores are never compared with exact ones.

    Example:
        >>> import faiss, numpy as np
        >>> from fclearn import evaluate_retrieval
        >>> gallery = np.eye(4, dtype=np.float32)
        >>> index = faiss.IndexFlatIP(4)
        >>> index.add(gallery)
        >>> result = evaluate_retrieval(
        ...     gallery[:2], IndexedGallery(index), query_labels=[0, 1],
        ...     gallery_labels=[0, 1, 2, 3], metrics=["cmc@1", "map@2"])
        >>> result["cmc@1"]
        1.0
    """

    def __init__(
        self,
        index: Any,
        *,
        parameters: Mapping[str, float] | None = None,
        rows_of_ids: Mapping[int, int] | None = None,
        gallery: FeatureStore | None = None,
        ids: Sequence[str] | None = None,
        name: str = "index",
    ) -> None:
        """Check the index and set its parameters."""
        faiss = _faiss()
        if gallery is None and ids is not None:
            raise ValueError("ids: expected a gallery, whose ids they are")
        if gallery is not None and rows_of_ids is not None:
            raise ValueError("rows_of_ids and gallery: expected one of them")
        if not isinstance(index, faiss.Index):
            raise TypeError(f"index: expected a faiss.Index of floats, got {type(index).__name__}")
        self.num_rows, self.dim = int(index.ntotal), int(index.d)
        if self.num_rows == 0:
            raise ValueError("index: expected at least one vector, got an empty index")
        for parameter, value in (parameters or {}).items():
            try:
                faiss.ParameterSpace().set_index_parameter(index, parameter, value)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"parameters: {type(index).__name__} has no search parameter {parameter!r} = "
                    f"{value}"
                ) from error
        parts = IndexParts.of(index, name)
        _check_refinement(parts)
        self._index = index
        self._is_inner_product = index.metric_type == faiss.METRIC_INNER_PRODUCT
        self._rows: tuple[Ints, Ints] | None = None
        if rows_of_ids is not None:
            numbers = np.fromiter(rows_of_ids.keys(), np.int64)
            order = np.argsort(numbers)
            self._rows = numbers[order], np.fromiter(rows_of_ids.values(), np.int64)[order]
        self.maps_queries, self.note = False, ""
        if gallery is not None:
            match = match_gallery(parts, gallery, ids)
            self._rows, self.maps_queries, self.note = match.rows, match.maps_queries, match.note

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        parameters: Mapping[str, float] | None = None,
        rows_of_ids: Mapping[int, int] | None = None,
        gallery: FeatureStore | None = None,
        ids: Sequence[str] | None = None,
    ) -> IndexedGallery:
        """Open an index file; inverted lists stay on disk where faiss can map them.

        Args:
            path: Written by ``faiss.write_index``.
            parameters: As above.
            rows_of_ids: As above.
            gallery: As above.
            ids: As above.

        Raises:
            ValueError: No such file, or not an index; as above.
        """
        faiss = _faiss()
        if not Path(path).is_file():
            raise ValueError(f"{path}: expected a faiss index file, found nothing")
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            raise ValueError(f"{path}: expected a faiss index file: {_reason(error)}") from error
        return cls(
            index,
            parameters=parameters,
            rows_of_ids=rows_of_ids,
            gallery=gallery,
            ids=ids,
            name=str(path),
        )

    def check_metric(self, metric: str) -> None:
        """Refuse a metric the index was not built for; a cosine is either one, of unit rows.

        Raises:
            ValueError: As said.
        """
        own = "ip" if self._is_inner_product else "l2"
        if metric not in {"cosine", own}:
            raise ValueError(f"metric: expected {own!r} or 'cosine' for this index, got {metric!r}")

    def search(
        self,
        query: Rows,
        queries: Ints,
        depth: int,
        excluded: tuple[Exclusion, ...],
        *,
        unit_norm: bool,
    ) -> Ints:
        """First gallery rows of some queries.

        Args:
            query: Rows of all queries, at least as wide as the index.
            queries: Which of them, shape ``(n,)``.
            depth: Rows asked for.
            excluded: Gallery rows that do not exist for a query.
            unit_norm: Whether to normalise the queries.

        Returns:
            Shape ``(n, depth)``, -1 where the index found no more.

        Raises:
            ValueError: The index returned an id that is no row of the gallery, or is of a kind that
                faiss does not search.
        """
        hidden = sum(exclusion.most_hidden() for exclusion in excluded)
        width = min(self.num_rows, depth + hidden)
        found = np.empty((len(queries), depth), dtype=np.int64)
        for start in range(0, len(queries), _BATCH):
            chunk = queries[start : start + _BATCH]
            block = query.read(chunk, self.dim).numpy()
            if unit_norm:
                block /= np.linalg.norm(block, axis=1, keepdims=True)
            try:
                ids = self._index.search(np.ascontiguousarray(block, np.float32), width)[1]
            except RuntimeError as error:
                raise ValueError(
                    f"index: expected one that can be searched, got {type(self._index).__name__}: "
                    f"{_reason(error)}"
                ) from error
            rows = self._rows_of(ids)
            found[start : start + len(chunk)] = first_visible(rows, excluded, chunk, depth)[0]
        return found

    def _rows_of(self, ids: NDArray[np.int64]) -> Ints:
        if self._rows is None:
            rows, known = ids, (ids < self.num_rows) & (ids >= -1)
        else:
            keys, values = self._rows
            at = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
            known = (keys[at] == ids) | (ids == -1)
            rows = np.where(ids == -1, -1, values[at])
        if not known.all():
            raise ValueError(
                f"index: returned the id {int(ids[~known][0])}, which is no row of the gallery; "
                "give rows_of_ids, or the gallery whose ids it has"
            )
        return np.asarray(rows, dtype=np.int64)


def _check_refinement(parts: IndexParts) -> None:
    """Refuse codes that faiss does not find a row's in: its threads throw, which ends the process.

    Raises:
        ValueError: Inverted lists refine, without a table of rows or under another metric than L2.
    """
    faiss, codec = _faiss(), parts.codec
    if not (isinstance(parts.base, faiss.IndexRefine) and isinstance(codec, faiss.IndexIVF)):
        return
    if codec.direct_map.no() or codec.metric_type != faiss.METRIC_L2:
        raise ValueError(
            f"{parts.name}: expected one that can be searched, got {type(parts.base).__name__} by "
            f"{type(codec).__name__}, in which faiss finds no row"
        )


def _reason(error: RuntimeError) -> str:
    """What faiss says behind the place in its sources."""
    return str(error).strip().splitlines()[-1]


def _faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415  (optional, and slow to import)
    except ImportError as error:
        raise ImportError("an index file needs faiss: pip install 'fcl-ext[cpu]'") from error
    return faiss
