# SPDX-License-Identifier: Apache-2.0
"""What a faiss index is made of: transforms, ids, codes, and vectors that it can give back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Codes of this many bytes a number hold it to a thousandth: float32, float16, bfloat16.
_BYTES_OF_WHOLE = 2
# Gives back other vectors than it holds (faiss 1.15: 1.36 from unit rows, of which it finds each).
_GARBLED = "IndexIVFRaBitQFastScan"
# So does every fast-scan index of other blocks than these (of 64 rows: 0.85 from rows that their
# codes are 0.41 from).
_BLOCK = 32


@dataclass(frozen=True)
class IndexParts:
    """An index without what is wrapped around it.

    Attributes:
        base: The innermost index, which knows the vectors by number.
        transforms: What a query goes through on its way to it, first one first.
        id_map: What each number of the base is called outside, shape ``(N,)``; None: as it is.
        codec: Whose codes become vectors again: the base, the storage of a graph, or the codes
            that refine others.
        is_whole: Whether vectors come back as they were, up to rounding.
        name: Of the index, for messages.
    """

    base: Any
    transforms: list[Any]
    id_map: NDArray[np.int64] | None
    codec: Any
    is_whole: bool
    name: str

    @classmethod
    def of(cls, index: Any, name: str = "index") -> IndexParts:
        """Take an index apart; it must outlive its parts, and answers queries as before.

        Args:
            index: Any faiss index of float vectors.
            name: Of it, for messages.

        Raises:
            ValueError: Ids around ids that are not there, as in a damaged file.

        Example:
            >>> import faiss
            >>> parts = IndexParts.of(faiss.index_factory(8, "L2norm,Flat"))
            >>> type(parts.base).__name__, len(parts.transforms), parts.is_whole
            ('IndexFlat', 1, True)
            >>> type(IndexParts.of(faiss.IndexHNSWFlat(8, 4)).codec).__name__
            'IndexFlatL2'
        """
        import faiss  # noqa: PLC0415  (optional, and slow to import)

        transforms: list[Any] = []
        id_map = None
        base = faiss.downcast_index(index)
        while isinstance(base, faiss.IndexPreTransform | faiss.IndexIDMap):
            if isinstance(base, faiss.IndexPreTransform):
                chain: Any = base.chain
                transforms += [
                    faiss.downcast_VectorTransform(chain.at(at)) for at in range(chain.size())
                ]
            else:
                names = faiss.vector_to_array(base.id_map).astype(np.int64)
                id_map = names if id_map is None else _called(names, id_map, name)
            base = faiss.downcast_index(base.index)
        codec = _codec(base)
        _mend(codec)
        try:
            is_whole = codec.sa_code_size() >= _BYTES_OF_WHOLE * codec.d
        except RuntimeError:  # an index that has no codes
            is_whole = False
        return cls(base, transforms, id_map, codec, is_whole, name)

    def numbers(self) -> NDArray[np.int64] | None:
        """What the index calls its vectors, shape ``(N,)``; None: 0 … N - 1, in whatever order."""
        import faiss  # noqa: PLC0415

        count = int(self.base.ntotal)
        if self.id_map is not None:
            return None if _are_all(count, [self.id_map]) else self.id_map
        if not isinstance(self.base, faiss.IndexIVF):
            return None
        if _are_all(count, (numbers for _, numbers in self.lists())):
            return None
        return np.concatenate([numbers for _, numbers in self.lists()])

    def lists(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Each inverted list of the base that holds any: which, and the numbers in it ``(n,)``."""
        import faiss  # noqa: PLC0415

        for at in range(self.base.nlist):
            size = self.base.invlists.list_size(at)
            if size:
                held = faiss.rev_swig_ptr(self.base.invlists.get_ids(at), size)
                yield at, held.astype(np.int64)

    def coded(self, rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """What the index would hold of rows: written as its codes, and read from them.

        Args:
            rows: Behind the transforms, shape ``(n, D)``.

        Returns:
            Shape ``(n, D)``; None where the index does not say.
        """
        given, codec = np.ascontiguousarray(rows), self.codec
        try:
            read: NDArray[np.float32] = codec.sa_decode(codec.sa_encode(given))
        except RuntimeError:  # an index that is no codec
            return None
        return read

    def sample(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Some vectors as the base holds them, spread evenly over it.

        Args:
            count: At most so many.

        Returns:
            What the index calls them ``(n,)`` int64, and the vectors ``(n, D)`` float32; None of a
            base that is empty or gives no vectors back.

        Raises:
            ValueError: A number that has no id, as faiss leaves them behind ids around inverted
                lists of which some were removed; a vector that is not finite.
        """
        import faiss  # noqa: PLC0415

        total = int(self.base.ntotal)
        if not total or _is_garbled(self.codec):
            return None
        places = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
        try:
            if isinstance(self.base, faiss.IndexIVF):
                names, vectors = self._from_lists(places)
            else:
                names = places
                vectors = np.stack([self.base.reconstruct(int(at)) for at in places])
        except RuntimeError:
            return None
        if self.id_map is not None:
            names = _called(names, self.id_map, self.name)
        is_finite = np.isfinite(vectors).all(axis=1)
        if not is_finite.all():
            raise ValueError(
                f"{self.name}: expected finite vectors, got NaN or infinity in vector "
                f"{names[~is_finite][0]}"
            )
        return names, vectors

    def _from_lists(
        self, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Vectors of inverted lists, which need no table of where each number is."""
        import faiss  # noqa: PLC0415

        lists = self.base.invlists
        ends = np.cumsum([lists.list_size(at) for at in range(self.base.nlist)])
        names = np.empty(len(places), dtype=np.int64)
        vectors = np.empty((len(places), self.base.d), dtype=np.float32)
        for row, place in enumerate(places):
            at = int(np.searchsorted(ends, place, side="right"))
            offset = int(place - (ends[at - 1] if at else 0))
            names[row] = lists.get_single_id(at, offset)
            self.base.reconstruct_from_offset(at, offset, faiss.swig_ptr(vectors[row]))
        return names, vectors


def _codec(base: Any) -> Any:
    """What a base asks for the vectors that it gives back."""
    import faiss  # noqa: PLC0415

    graphs: Any = (faiss.IndexHNSW, faiss.IndexNSG, faiss.IndexNNDescent)
    while True:
        if isinstance(base, graphs):
            inner = base.storage
        elif isinstance(base, faiss.IndexRefine):
            inner = base.refine_index
        else:
            return base
        base = faiss.downcast_index(inner)


def _mend(codec: Any) -> None:
    """Give a fast-scan index that was read from a file what it decodes by.

    faiss (1.15) leaves this pointer null there, and follows it when asked for vectors or codes. The
    index holds what it points to.
    """
    own = getattr(codec, "pq", None) or getattr(codec, "aq", None)
    if own is not None and getattr(codec, "fine_quantizer", own) is None:
        codec.fine_quantizer = own


def _is_garbled(codec: Any) -> bool:
    """Whether faiss gives back other vectors than the index holds."""
    return type(codec).__name__ == _GARBLED or getattr(codec, "bbs", _BLOCK) != _BLOCK


def _called(numbers: NDArray[np.int64], id_map: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """What numbers are called outside."""
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(id_map):
        raise ValueError(
            f"{name}: expected numbers below {len(id_map)} within its ids, got "
            f"{numbers.min()} to {numbers.max()}"
        )
    return id_map[numbers]


def _are_all(count: int, parts: Iterable[NDArray[np.int64]]) -> bool:
    """Whether the numbers are 0 … count - 1, each once."""
    seen = np.zeros(count, dtype=np.bool_)
    total = 0
    for numbers in parts:
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= count):
            return False
        seen[numbers] = True
        total += len(numbers)
    return bool(total == count and seen.all())
