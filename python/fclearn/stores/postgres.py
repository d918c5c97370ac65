# SPDX-License-Identifier: Apache-2.0
"""A column of PostgreSQL with the extension pgvector: ``vector`` (float32) or ``halfvec``.

``postgresql://user@host/database?table=items&column=embedding``; ``id=`` names the key (default
``id``), ``type=halfvec`` what `create` makes; all else goes to libpq. The password comes from
where libpq looks for it (PGPASSWORD, ~/.pgpass) or from the address; it is never written down.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fclearn.features import Fingerprint
from fclearn.stores.base import (
    Batch,
    Found,
    RowStore,
    StoreInfo,
    Vectors,
    found_rows,
)
from fclearn.stores.postgres_table import PAYLOAD, TYPES, PostgresTable
from fclearn.stores.tags import make_tag, read_tag
from fclearn.stores.urls import StoreUrl
from fclearn.wording import some


class PostgresStore(RowStore):
    """See the module; the arguments are those of `VectorStore`."""

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        self._table = PostgresTable(url)

    def close(self) -> None:
        """Close the connection."""
        self._table.close()

    def reconnect(self) -> None:
        """Connect anew."""
        self._table.close()
        self._table.connected()

    def has_container(self) -> bool:
        """Whether the table is there."""
        return self._table.described() is not None

    def info(self) -> StoreInfo | None:
        """Rows, width and type of the column."""
        table = self._table.described()
        if table is None or self._table.column not in table.types:
            return None
        kind, dim = self._table.column_type(table)
        self._table.check_ids()
        count = self._table.rows("SELECT count({column}) FROM {table}")[0][0]
        if not dim and count:
            dims = self._table.rows(
                "SELECT vector_dims({column}) FROM {table} WHERE {column} IS NOT NULL"
                " GROUP BY 1 LIMIT 2"
            )
            if len(dims) > 1:
                raise ValueError(f"store {self.url}: expected vectors of one width, found several")
            dim = dims[0][0]
        fingerprint, owned = read_tag(table.comment, self.url)
        return StoreInfo(count, dim, TYPES[kind], fingerprint=fingerprint, owned=owned)

    def batches(
        self, size: int, after: str | None = None, payload: Sequence[str] = ()
    ) -> Iterator[Batch]:
        """Rows in the order of their ids; see `VectorStore`."""
        table = self._table.need()
        extra = [self._table.payload_column(table, name) for name in payload]
        columns = self._table.sql.SQL("").join(
            self._table.sql.SQL(", ") + column for column in extra
        )
        while True:
            rows = self._table.rows(
                "SELECT {id}::text, {column}::real[]{extra} FROM {table} AS t"
                " WHERE {column} IS NOT NULL AND (%s::text IS NULL OR {id} > %s::text::{id_type})"
                # t.id: a bare name would be the first column of the result, which is text.
                " ORDER BY t.{id} LIMIT %s",
                (after, after, size),
                extra=columns,
            )
            if not rows:
                return
            after = str(rows[-1][0])
            yield Batch(
                [row[0] for row in rows],
                self._matrix([row[1] for row in rows]),
                [dict(zip(payload, row[2:], strict=True)) for row in rows],
                after,
            )

    def lookup(self, ids: Sequence[str]) -> Found:
        """See `RowStore`."""
        table = self._table.need(with_column=False)
        if self._table.column not in table.types:
            rows = self._table.rows(
                "SELECT {id}::text FROM {table} WHERE {id} = ANY(%s::text[]::{id_type}[])",
                (list(ids),),
            )
            return found_rows(ids, 0, {}, {row[0] for row in rows})
        rows = self._table.rows(
            "SELECT {id}::text, {column}::real[] FROM {table}"
            " WHERE {id} = ANY(%s::text[]::{id_type}[])",
            (list(ids),),
        )
        vectors = {name: vector for name, vector in rows if vector is not None}
        dim = self._table.column_type(table)[1] or len(next(iter(vectors.values()), ()))
        return found_rows(ids, dim, vectors, {row[0] for row in rows})

    def create(self, fingerprint: Fingerprint) -> None:
        """A new column, in a new table if there is none."""
        kind = self._table.sql.SQL(f"{self._table.new_type}({int(fingerprint.dim)})")
        table = self._table.described()
        with self._table.transaction():
            if table is None:
                self._table.rows("CREATE EXTENSION IF NOT EXISTS vector")
                self._table.rows(
                    "CREATE TABLE {table} ({id} text PRIMARY KEY, {column} {kind},"
                    f" {PAYLOAD} jsonb)",
                    kind=kind,
                )
            else:
                self._table.rows("ALTER TABLE {table} ADD COLUMN {column} {kind}", kind=kind)
            self.write_tag(fingerprint, owned=table is None)
        self._table.forget()

    def write_tag(self, fingerprint: Fingerprint, *, owned: bool) -> None:
        """See `RowStore`; it is the column's comment."""
        tag = self._table.sql.Literal(make_tag(fingerprint, owned=owned))
        self._table.rows("COMMENT ON COLUMN {table}.{column} IS {tag}", tag=tag)
        self._table.forget()

    def update(self, ids: Sequence[str], vectors: Vectors) -> None:
        """See `RowStore`; a batch is one transaction."""
        with self._table.transaction():
            changed = self._table.rows(
                "UPDATE {table} AS t SET {column} = u.v::{kind} FROM"
                " unnest(%s::text[], %s::text[]) AS u(i, v) WHERE t.{id} = u.i::{id_type}"
                " RETURNING t.{id}::text",
                (list(ids), _texts(vectors)),
            )
            gone = sorted(set(ids) - {row[0] for row in changed})
            if gone or len(changed) != len(ids):
                raise ValueError(
                    f"store {self.url}: expected one row for each of {len(ids)} ids, updated "
                    f"{len(changed)}; missing: {some(gone) or 'none'}"
                )

    def insert(
        self, ids: Sequence[str], vectors: Vectors, payload: Sequence[Mapping[str, Any]]
    ) -> None:
        """See `RowStore`; a batch is one transaction."""
        with self._table.transaction():
            self._table.rows(
                f"INSERT INTO {{table}} ({{id}}, {{column}}, {PAYLOAD}) SELECT u.i, u.v::{{kind}},"
                " u.p::jsonb FROM unnest(%s::text[], %s::text[], %s::text[]) AS u(i, v, p)"
                f" ON CONFLICT ({{id}}) DO UPDATE SET {{column}} = EXCLUDED.{{column}},"
                f" {PAYLOAD} = EXCLUDED.{PAYLOAD}",
                (list(ids), _texts(vectors), [json.dumps(item) for item in payload]),
            )

    def unset(self, ids: Sequence[str]) -> None:
        """See `RowStore`."""
        self._table.rows(
            "UPDATE {table} SET {column} = NULL WHERE {id} = ANY(%s::text[]::{id_type}[])",
            (list(ids),),
        )

    def delete(self, ids: Sequence[str]) -> None:
        """See `RowStore`."""
        self._table.rows(
            "DELETE FROM {table} WHERE {id} = ANY(%s::text[]::{id_type}[])", (list(ids),)
        )

    def drop(self, *, container: bool) -> None:
        """See `RowStore`; nothing happens if somebody has filled it."""
        with self._table.transaction():
            self._table.rows("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            what = "count(*)" if container else "count({column})"
            if self._table.rows(f"SELECT {what} FROM {{table}}")[0][0] == 0:
                column = "ALTER TABLE {table} DROP COLUMN {column}"
                self._table.rows("DROP TABLE {table}" if container else column)
        self._table.forget()

    def _matrix(self, rows: Sequence[Sequence[float]]) -> Vectors:
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"store {self.url}: expected vectors of one width, found several")
        return np.array(rows, dtype=np.float32)


def _texts(vectors: Vectors) -> list[str]:
    """Vectors as pgvector reads them; float32 comes back to the bit."""
    return ["[" + ",".join(map(repr, row)) + "]" for row in vectors.astype(float).tolist()]
