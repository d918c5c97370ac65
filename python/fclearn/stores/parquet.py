# SPDX-License-Identifier: Apache-2.0
"""A column of a Parquet file: lists of numbers, one per row, of equal length.

``parquet:gallery.parquet?column=embedding``; ``id=`` names the column of ids (default ``id``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fclearn.features import Fingerprint
from fclearn.stores.base import Batch, Mask, StoreInfo, Vectors, require
from fclearn.stores.files import FileRows, FileStore
from fclearn.stores.tags import TAG, make_tag, read_tag
from fclearn.stores.urls import StoreUrl

_TAG = TAG.encode()
_BLOCK_ROWS = 16384


class ParquetStore(FileStore):
    """See the module; the arguments are those of `VectorStore`."""

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        options = url.take((), ("column", "id"))
        self._column = options.get("column", "embedding")
        self._id = options.get("id", "id")
        self._pa = require("pyarrow", "parquet")
        self._pc = require("pyarrow.compute", "parquet")
        self._pq = require("pyarrow.parquet", "parquet")

    def info(self) -> StoreInfo | None:
        """Rows, width and type of the column."""
        if not self.path.exists():
            return None
        count = dim = 0
        with self._opened() as file:
            kind, schema = self._kind(file), file.schema_arrow
            for part in file.iter_batches(_BLOCK_ROWS, columns=[self._column]):
                rows = self._matrix(part.column(0))
                count, dim = count + len(rows), dim or rows.shape[1]
        if self._pa.types.is_fixed_size_list(kind):
            dim = kind.list_size
        fingerprint, owned = read_tag(
            (schema.metadata or {}).get(_TAG, b"").decode("utf-8", "replace"), self.url
        )
        dtype = "float16" if kind.value_type == self._pa.float16() else "float32"
        return StoreInfo(count, dim, dtype, fingerprint=fingerprint, owned=owned)

    def ids(self) -> list[str]:
        """See `FileStore`; also of rows without a vector."""
        with self._opened() as file:
            self._kind(file)
            parts = file.iter_batches(_BLOCK_ROWS, columns=[self._id])
            return self.check_distinct([name for part in parts for name in self._names(part)])

    def batches(
        self, size: int, after: str | None = None, payload: Sequence[str] = ()
    ) -> Iterator[Batch]:
        """Rows in the file's order; see `VectorStore`."""
        skip, row = int(after or 0), 0
        groups: list[int] = []
        with self._opened() as file:
            self._kind(file)
            self._need(file, payload)
            for group in range(file.num_row_groups):
                length = file.metadata.row_group(group).num_rows
                if not groups and row + length <= skip:
                    row += length  # read before: not decoded again
                else:
                    groups.append(group)
            columns = [*dict.fromkeys([self._id, self._column, *payload])]
            for read in file.iter_batches(size, row_groups=groups, columns=columns):
                begin, row = row, row + len(read)
                if row <= skip:
                    continue
                part = read.slice(max(0, skip - begin))
                part = part.filter(part.column(self._column).is_valid())
                names = self._names(part)
                values = {name: part.column(name).to_pylist() for name in payload}
                yield Batch(
                    names,
                    self._matrix(part.column(self._column)),
                    [{name: values[name][at] for name in payload} for at in range(len(names))],
                    str(row),
                )

    def write_new(
        self,
        path: Path,
        new: FileRows,
        payload: Mapping[str, Sequence[Any]],
        fingerprint: Fingerprint,
    ) -> None:
        """See `FileStore`: ids as text, vectors as lists of a fixed size."""
        pa = self._pa
        values = {name: pa.array(column) for name, column in payload.items()}
        number = pa.float16() if new.features.dtype == np.float16 else pa.float32()
        kind = pa.list_(number, fingerprint.dim)
        schema = pa.schema(
            [(self._id, pa.string()), (self._column, kind)]
            + [(name, column.type) for name, column in values.items()],
            metadata={_TAG: make_tag(fingerprint, owned=True).encode()},
        )
        with self._pq.ParquetWriter(path, schema) as writer:
            for begin in range(0, len(new.ids), _BLOCK_ROWS):
                part = slice(begin, begin + _BLOCK_ROWS)
                block = new.block(part)
                lists = self._lists(block, np.ones(len(block), dtype=bool), kind)
                extra = [column[part] for column in values.values()]
                columns = [pa.array(new.ids[part], pa.string()), lists, *extra]
                writer.write_table(pa.table(columns, schema=schema))

    def write_replaced(self, path: Path, new: FileRows, fingerprint: Fingerprint | None) -> None:
        """See `FileStore`: the types and the other columns stay."""
        row_of = {name: row for row, name in enumerate(new.ids)}
        with self._opened() as file:
            kind, schema = self._kind(file), file.schema_arrow
            at = schema.get_field_index(self._column)
            if fingerprint is not None:
                tag = make_tag(fingerprint, owned=True).encode()
                schema = schema.with_metadata({**(schema.metadata or {}), _TAG: tag})
            with self._pq.ParquetWriter(path, schema) as writer:
                for part in file.iter_batches(_BLOCK_ROWS):
                    column = part.column(at)
                    known = column.is_valid().to_numpy(zero_copy_only=False)
                    rows = np.zeros(
                        (len(part), new.features.shape[1]), dtype=kind.value_type.to_pandas_dtype()
                    )
                    rows[known] = self._values(column).reshape(int(known.sum()), -1)
                    for place, name in enumerate(self._names(part)):
                        if name in row_of:
                            rows[place] = new.features[new.rows[row_of[name]]]
                            known[place] = True
                    lists = self._lists(rows, known, kind)
                    columns = [*part.columns[:at], lists, *part.columns[at + 1 :]]
                    writer.write_table(self._pa.table(columns, schema=schema))

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        if not self.path.is_file():
            found = "a folder" if self.path.is_dir() else "nothing"
            raise ValueError(f"store {self.url}: expected a Parquet file, found {found}")
        try:
            with self._pq.ParquetFile(self.path) as file:
                yield file
        except (OSError, self._pa.ArrowException) as error:
            raise ValueError(f"store {self.url}: not a whole Parquet file: {error}") from error

    def _need(self, file: Any, columns: Sequence[str]) -> None:
        found = file.schema_arrow.names
        for name in columns:
            if found.count(name) != 1:
                raise ValueError(
                    f"store {self.url}: expected a column {name!r}, found {', '.join(found)}"
                )

    def _kind(self, file: Any) -> Any:
        """The type of the column, which must be lists of floating numbers."""
        self._need(file, [self._id, self._column])
        kind, types = file.schema_arrow.field(self._column).type, self._pa.types
        tests = (types.is_list, types.is_large_list, types.is_fixed_size_list)
        if not any(test(kind) for test in tests) or not types.is_floating(kind.value_type):
            raise ValueError(
                f"store {self.url}: expected lists of floating numbers in column "
                f"{self._column!r}, found {kind}"
            )
        return kind

    def _names(self, part: Any) -> list[str]:
        column = part.column(self._id)
        if column.null_count:
            raise ValueError(f"store {self.url}: expected an id in every row, found rows without")
        return [str(name) for name in column.to_pylist()]

    def _values(self, column: Any) -> Any:
        """The numbers of all lists that are there, one after the other."""
        lengths = self._pc.unique(self._pc.list_value_length(column.drop_null())).to_pylist()
        if len(lengths) > 1:
            raise ValueError(
                f"store {self.url}: expected vectors of one width, found {sorted(lengths)[:3]}"
            )
        return column.flatten().to_numpy(zero_copy_only=False)

    def _matrix(self, column: Any) -> Vectors:
        count = len(column) - column.null_count
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
            values = self._values(column).astype(np.float32, copy=False)
        return np.asarray(values.reshape(count, -1) if count else values.reshape(0, 0))

    def _lists(self, rows: Vectors, known: Mask, kind: Any) -> Any:
        """Rows as lists of a type; those not known are null."""
        pa, dim = self._pa, rows.shape[1]
        missing = pa.array(~known)
        values = pa.array(rows.ravel(), kind.value_type)
        if pa.types.is_fixed_size_list(kind):
            return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=missing)
        large = pa.types.is_large_list(kind)
        array, number = (pa.LargeListArray, np.int64) if large else (pa.ListArray, np.int32)
        offsets = np.arange(0, (len(rows) + 1) * dim, dim, dtype=number)
        return array.from_arrays(pa.array(offsets), values, type=kind, mask=missing)
