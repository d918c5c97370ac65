# SPDX-License-Identifier: Apache-2.0
"""A faiss index file of whole vectors: flat, or HNSW, NSG or IVF of flat ones; with ids or not.

``faiss:gallery.index``: ids are the numbers that the index has, or else its row numbers.
``faiss:gallery.index?ids=ids.txt``: row by row the ids are the lines of a text file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fclearn._faiss_index import IndexParts
from fclearn._files import replacing
from fclearn.features import Fingerprint
from fclearn.features.ids import read_id_lines
from fclearn.stores.base import Batch, StoreInfo, Vectors, require
from fclearn.stores.files import FileRows, FileStore
from fclearn.stores.tags import metric_named
from fclearn.stores.urls import StoreUrl

_LARGEST = (1 << 63) - 1
_METRICS = {"ip": "METRIC_INNER_PRODUCT", "l2": "METRIC_L2"}


class FaissStore(FileStore):
    """See the module; the arguments are those of `VectorStore`."""

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        options = url.take((), ("ids",))
        self._ids_path = Path(options["ids"]) if "ids" in options else None
        if self._ids_path is not None:
            self.companions = [self._ids_path]
        self._faiss = require("faiss", "cpu")
        self._index: Any = None

    def check_ids(self, ids: Sequence[str]) -> None:
        """See `VectorStore`: numbers, or lines of the text file."""
        for name in ids:
            if self._ids_path is not None:
                # Else `read_id_lines` would part it, skip it, or take its start for a mark.
                if not name.strip() or "\n" in name or "\r" in name or name.startswith("\ufeff"):
                    raise ValueError(
                        f"store {self.url}: an id must be a line of text, got {name!r}"
                    )
            elif not name.isdecimal() or str(int(name)) != name or int(name) > _LARGEST:
                raise ValueError(
                    f"store {self.url}: ids of a faiss index are integers, got {name!r}; "
                    "?ids=FILE keeps other ids in a text file"
                )

    def close(self) -> None:
        """Let go of the index, which is in memory."""
        self._index = None

    def info(self) -> StoreInfo | None:
        """Rows, width and metric of the index."""
        if not self.path.exists():
            return None
        index = self._loaded()
        kinds = {vars(self._faiss)[n]: n for n in dir(self._faiss) if n.startswith("METRIC_")}
        kind = kinds.get(index.metric_type, f"metric {index.metric_type}")
        return StoreInfo(index.ntotal, index.d, metric=metric_named(kind, _METRICS, self.url))

    def ids(self) -> list[str]:
        """See `FileStore`."""
        numbers = self._numbers()[0]
        if self._ids_path is None:
            return self.check_distinct([str(number) for number in numbers.tolist()])
        try:
            lines = read_id_lines(self._ids_path)
        except (OSError, ValueError) as error:
            raise ValueError(f"store {self.url}: cannot read the ids: {error}") from error
        if len(lines) != len(numbers) or not np.array_equal(
            np.sort(numbers), np.arange(len(lines))
        ):
            raise ValueError(
                f"store {self.url}: expected an id for each of {len(numbers)} rows, found "
                f"{len(lines)} lines in {self._ids_path}"
            )
        return self.check_distinct([lines[number] for number in numbers])

    def batches(
        self, size: int, after: str | None = None, payload: Sequence[str] = ()
    ) -> Iterator[Batch]:
        """Rows in the file's order; see `VectorStore`."""
        if payload:
            raise ValueError(f"store {self.url}: an index holds vectors alone, no {payload[0]!r}")
        ids, (_, vectors) = self.ids(), self._numbers()
        for begin in range(int(after or 0), len(ids), size):
            part = slice(begin, begin + size)
            names = ids[part]
            yield Batch(names, vectors[part].copy(), [{} for _ in names], str(begin + len(names)))

    def write_new(
        self,
        path: Path,
        new: FileRows,
        payload: Mapping[str, Sequence[Any]],
        fingerprint: Fingerprint,
    ) -> None:
        """See `FileStore`: a flat index, with numbers as ids unless the ids are in a file."""
        if payload:
            raise ValueError(
                f"store {self.url}: an index holds vectors alone, no {next(iter(payload))!r}"
            )
        # Cosines are inner products of the unit rows that they are of.
        kind = _METRICS["ip" if fingerprint.metric == "cosine" else fingerprint.metric]
        index = self._faiss.IndexFlat(fingerprint.dim, getattr(self._faiss, kind))
        if self._ids_path is None:
            numbers = np.array([int(name) for name in new.ids], dtype=np.int64)
            index = self._faiss.IndexIDMap2(index)
            index.add_with_ids(new.block(slice(None)).astype(np.float32), numbers)
        else:
            # First the ids: without its index the file of ids is nothing.
            with replacing(self._ids_path) as temporary:
                temporary.write_bytes("".join(f"{name}\n" for name in new.ids).encode())
            index.add(new.block(slice(None)).astype(np.float32))
        self._faiss.write_index(index, str(path))

    def write_replaced(
        self,
        path: Path,
        new: FileRows,
        fingerprint: Fingerprint | None,  # noqa: ARG002
    ) -> None:
        """See `FileStore`; of flat indexes alone, as others are built around their vectors."""
        index, parts = self._loaded(), self._parts()
        if not isinstance(parts.base, self._faiss.IndexFlat):
            raise ValueError(
                f"store {self.url}: expected a flat index to replace vectors in, found "
                f"{type(parts.base).__name__}: write a new one"
            )
        row_of = {name: row for row, name in enumerate(self.ids())}
        stored = self._numbers()[1]
        stored[[row_of[name] for name in new.ids]] = new.block(slice(None))
        self._faiss.write_index(index, str(path))
        self._index = None

    def _loaded(self) -> Any:
        if self._index is None:
            if not self.path.is_file():
                found = "a folder" if self.path.is_dir() else "nothing"
                raise ValueError(f"store {self.url}: expected an index file, found {found}")
            try:
                self._index = self._faiss.read_index(str(self.path))
            except (RuntimeError, MemoryError) as error:
                raise ValueError(f"store {self.url}: not a whole faiss index file") from error
        return self._index

    def _parts(self) -> IndexParts:
        """What the index is made of; refused where it holds rows of another space."""
        try:
            parts = IndexParts.of(self._loaded())
        except ValueError as error:
            raise ValueError(f"store {self.url}: not a whole faiss index file: {error}") from error
        if parts.transforms:
            raise self._other("IndexPreTransform")
        return parts

    def _numbers(self) -> tuple[NDArray[np.int64], Vectors]:
        """The number of each row ``(N,)``, and its vector ``(N, D)``: a view where flat."""
        faiss, parts = self._faiss, self._parts()
        flat = parts.codec
        self._check_whole(parts.id_map is None or len(parts.id_map) == parts.base.ntotal)
        if isinstance(flat, faiss.IndexFlat):
            count, dim = flat.ntotal, flat.d
            # What a damaged file says of itself must not make numpy read beyond its numbers.
            self._check_whole(
                self._loaded().ntotal == count and flat.codes.size() == 4 * count * dim
            )
            numbers = np.arange(count, dtype=np.int64) if parts.id_map is None else parts.id_map
            if count == 0:
                return numbers, np.empty((0, dim), dtype=np.float32)
            return numbers, faiss.rev_swig_ptr(flat.get_xb(), count * dim).reshape(count, dim)
        if isinstance(flat, faiss.IndexIVFFlat):
            return self._inverted(parts)
        raise self._other(type(parts.base).__name__)

    def _inverted(self, parts: IndexParts) -> tuple[NDArray[np.int64], Vectors]:
        """Rows of an IVF index, in the order of the numbers they were added with."""
        index, lists = parts.base, parts.base.invlists
        self._check_whole(lists.code_size == 4 * index.d and lists.nlist == index.nlist)
        held, vectors = [np.empty(0, dtype=np.int64)], [np.empty((0, index.d), dtype=np.float32)]
        for at, numbers in parts.lists():
            held.append(numbers)
            codes = self._faiss.rev_swig_ptr(lists.get_codes(at), len(numbers) * lists.code_size)
            vectors.append(codes.copy().view(np.float32).reshape(-1, index.d))
        inner, rows = np.concatenate(held), np.concatenate(vectors)
        order = np.argsort(inner, kind="stable")
        inner = inner[order]
        self._check_whole(len(inner) == index.ntotal)
        if parts.id_map is not None:
            # With ids of its own around it, an IVF index numbers its rows from 0.
            self._check_whole(np.array_equal(inner, np.arange(len(inner))))
            inner = parts.id_map
        return inner, rows[order]

    def _other(self, found: str) -> ValueError:
        return ValueError(
            f"store {self.url}: expected whole vectors (a flat, HNSW flat, NSG flat or IVF flat "
            f"index), found {found}, which keeps codes or another space"
        )

    def _check_whole(self, agrees: bool) -> None:
        if not agrees:
            raise ValueError(f"store {self.url}: not a whole faiss index file: its sizes differ")
