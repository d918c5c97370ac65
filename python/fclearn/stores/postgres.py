# SPDX-License-Identifier: Apache-2.0
"""A column of PostgreSQL with the extension pgvector: ``vector`` (float32) or ``halfvec``.

``postgresql://user@host/database?table=items&column=embedding``; ``id=`` names the key (default
``id``), ``type=halfvec`` what `create` makes; all else goes to libpq. The password comes from
where libpq looks for it (PGPASSWORD, ~/.pgpass) or from the address; it is never written down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from fclearn.features import Fingerprint
from fclearn.stores.base import (
    Batch,
    Found,
    RowStore,
    StoreConnectionError,
    StoreInfo,
    Vectors,
    found_rows,
    make_tag,
    read_tag,
    require,
    some,
)
from fclearn.stores.urls import StoreUrl

_PAYLOAD = "payload"
_TYPES = {"vector": "float32", "halfvec": "float16"}
_OURS = ("table", "column", "id", "type")


class _Table(NamedTuple):
    """Types of the table's columns by name, and the comment on the column of vectors."""

    types: dict[str, str]
    comment: str | None


class PostgresStore(RowStore):
    """See the module; the arguments are those of `VectorStore`."""

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        self._psycopg = require("psycopg", "postgres")
        self._sql = require("psycopg.sql", "postgres")
        mine = {key: value for key, value in url.options.items() if key in _OURS}
        StoreUrl(url.kind, url.place, mine).take(("table",), ("column", "id", "type"))
        rest = "&".join(f"{k}={quote(v)}" for k, v in url.options.items() if k not in _OURS)
        self._address = f"postgresql:{url.place}" + (f"?{rest}" if rest else "")
        self._new_type = mine.get("type", "vector")
        if self._new_type not in _TYPES:
            raise ValueError(f"store {url}: type: expected vector or halfvec")
        name = self._sql.Identifier
        self._names = {"column": mine.get("column", "embedding"), "id": mine.get("id", "id")}
        self._sqls = {
            "table": name(*mine["table"].split(".")),
            "column": name(self._names["column"]),
            "id": name(self._names["id"]),
        }
        self._connection: Any = None
        self._table: _Table | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._table = None

    def reconnect(self) -> None:
        """Connect anew."""
        self.close()
        self._connected()

    def has_container(self) -> bool:
        """Whether the table is there."""
        return self._described() is not None

    def info(self) -> StoreInfo | None:
        """Rows, width and type of the column."""
        table = self._described()
        if table is None or self._names["column"] not in table.types:
            return None
        kind, dim = self._column_type(table)
        self._check_ids()
        count = self._rows("SELECT count({column}) FROM {table}")[0][0]
        if not dim and count:
            dims = self._rows(
                "SELECT vector_dims({column}) FROM {table} WHERE {column} IS NOT NULL"
                " GROUP BY 1 LIMIT 2"
            )
            if len(dims) > 1:
                raise ValueError(f"store {self.url}: expected vectors of one width, found several")
            dim = dims[0][0]
        fingerprint, owned = read_tag(table.comment)
        return StoreInfo(count, dim, _TYPES[kind], fingerprint=fingerprint, owned=owned)

    def batches(
        self, size: int, after: str | None = None, payload: Sequence[str] = ()
    ) -> Iterator[Batch]:
        """Rows in the order of their ids; see `VectorStore`."""
        table = self._need()
        extra = [self._payload_column(table, name) for name in payload]
        columns = self._sql.SQL("").join(self._sql.SQL(", ") + column for column in extra)
        while True:
            rows = self._rows(
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
        table = self._need(with_column=False)
        if self._names["column"] not in table.types:
            rows = self._rows(
                "SELECT {id}::text FROM {table} WHERE {id} = ANY(%s::text[]::{id_type}[])",
                (list(ids),),
            )
            return found_rows(ids, 0, {}, {row[0] for row in rows})
        rows = self._rows(
            "SELECT {id}::text, {column}::real[] FROM {table}"
            " WHERE {id} = ANY(%s::text[]::{id_type}[])",
            (list(ids),),
        )
        vectors = {name: vector for name, vector in rows if vector is not None}
        dim = self._column_type(table)[1] or len(next(iter(vectors.values()), ()))
        return found_rows(ids, dim, vectors, {row[0] for row in rows})

    def create(self, fingerprint: Fingerprint) -> None:
        """A new column, in a new table if there is none."""
        kind = self._sql.SQL(f"{self._new_type}({int(fingerprint.dim)})")
        table = self._described()
        with self._errors(), self._connected().transaction():
            if table is None:
                self._rows("CREATE EXTENSION IF NOT EXISTS vector")
                self._rows(
                    "CREATE TABLE {table} ({id} text PRIMARY KEY, {column} {kind},"
                    f" {_PAYLOAD} jsonb)",
                    kind=kind,
                )
            else:
                self._rows("ALTER TABLE {table} ADD COLUMN {column} {kind}", kind=kind)
            self.write_tag(fingerprint, owned=table is None)
        self._table = None

    def write_tag(self, fingerprint: Fingerprint, *, owned: bool) -> None:
        """See `RowStore`; it is the column's comment."""
        tag = self._sql.Literal(make_tag(fingerprint, owned=owned))
        self._rows("COMMENT ON COLUMN {table}.{column} IS {tag}", tag=tag)
        self._table = None

    def update(self, ids: Sequence[str], vectors: Vectors) -> None:
        """See `RowStore`; a batch is one transaction."""
        with self._errors(), self._connected().transaction():
            changed = self._rows(
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
        with self._errors(), self._connected().transaction():
            self._rows(
                f"INSERT INTO {{table}} ({{id}}, {{column}}, {_PAYLOAD}) SELECT u.i, u.v::{{kind}},"
                " u.p::jsonb FROM unnest(%s::text[], %s::text[], %s::text[]) AS u(i, v, p)"
                f" ON CONFLICT ({{id}}) DO UPDATE SET {{column}} = EXCLUDED.{{column}},"
                f" {_PAYLOAD} = EXCLUDED.{_PAYLOAD}",
                (list(ids), _texts(vectors), [json.dumps(item) for item in payload]),
            )

    def unset(self, ids: Sequence[str]) -> None:
        """See `RowStore`."""
        self._rows(
            "UPDATE {table} SET {column} = NULL WHERE {id} = ANY(%s::text[]::{id_type}[])",
            (list(ids),),
        )

    def delete(self, ids: Sequence[str]) -> None:
        """See `RowStore`."""
        self._rows("DELETE FROM {table} WHERE {id} = ANY(%s::text[]::{id_type}[])", (list(ids),))

    def drop(self, *, container: bool) -> None:
        """See `RowStore`; nothing happens if somebody has filled it."""
        with self._errors(), self._connected().transaction():
            self._rows("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            what = "count(*)" if container else "count({column})"
            if self._rows(f"SELECT {what} FROM {{table}}")[0][0] == 0:
                column = "ALTER TABLE {table} DROP COLUMN {column}"
                self._rows("DROP TABLE {table}" if container else column)
        self._table = None

    def _connected(self) -> Any:
        if self._connection is None:
            with self._errors():
                self._connection = self._psycopg.connect(
                    self._address, autocommit=True, connect_timeout=10
                )
        return self._connection

    def _rows(self, text: str, values: Sequence[Any] = (), **parts: Any) -> list[tuple[Any, ...]]:
        """Run a statement, names quoted into it, and return its rows."""
        for key, name in (("id_type", "id"), ("kind", "column")):
            if f"{{{key}}}" in text and key not in parts:
                types = self._need(with_column=name == "column").types
                parts[key] = self._sql.SQL(types[self._names[name]])
        statement = self._sql.SQL(text).format(**self._sqls, **parts)
        with self._errors(), self._connected().cursor(binary=bool(values)) as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def _described(self) -> _Table | None:
        if self._table is None:
            name = self._sqls["table"].as_string(self._connected())
            rows = self._rows(
                "SELECT attname::text, format_type(atttypid, atttypmod),"
                " col_description(attrelid, attnum) FROM pg_attribute"
                " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
                (name,),
            )
            if rows:
                comments = {row[0]: row[2] for row in rows}
                types = {row[0]: row[1] for row in rows}
                self._table = _Table(types, comments.get(self._names["column"]))
        return self._table

    def _need(self, *, with_column: bool = True) -> _Table:
        table = self._described()
        wanted = [self._names["id"], *([self._names["column"]] if with_column else [])]
        missing = [name for name in wanted if table is None or name not in table.types]
        if table is None or missing:
            found = "no such table" if table is None else f"found {', '.join(table.types)}"
            raise ValueError(f"store {self.url}: expected a column {missing[0]!r}, {found}")
        return table

    def _column_type(self, table: _Table) -> tuple[str, int]:
        text = table.types[self._names["column"]]
        match = re.fullmatch(r"(?:\w+\.)?(vector|halfvec)(?:\((\d+)\))?", text)
        if match is None:
            raise ValueError(
                f"store {self.url}: expected a column of type vector or halfvec, found {text}"
            )
        return match[1], int(match[2] or 0)

    def _check_ids(self) -> None:
        """Refuse ids that repeat or lack: a write could not tell rows apart."""
        self._need(with_column=False)
        unique = self._rows(
            "SELECT 1 FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]"
            " WHERE indrelid = to_regclass(%s) AND indisunique AND indnkeyatts = 1"
            " AND indpred IS NULL AND attname = %s AND attnotnull",
            (self._sqls["table"].as_string(self._connected()), self._names["id"]),
        )
        if unique:
            return
        empty = self._rows("SELECT count(*) FROM {table} WHERE {id} IS NULL")[0][0]
        twice = self._rows(
            "SELECT {id}::text FROM {table} GROUP BY {id} HAVING count({id}) > 1 LIMIT 4"
        )
        if empty or twice:
            raise ValueError(
                f"store {self.url}: expected one distinct id per row, found {empty} rows without "
                f"one and repeated ids: {some([row[0] for row in twice]) or 'none'}"
            )

    def _payload_column(self, table: _Table, name: str) -> Any:
        if name in table.types:
            return self._sql.Identifier(name)
        if table.types.get(_PAYLOAD) == "jsonb":
            return self._sql.SQL(f"{_PAYLOAD} -> {{}}").format(self._sql.Literal(name))
        raise ValueError(
            f"store {self.url}: expected a column {name!r}, found {', '.join(table.types)}"
        )

    def _matrix(self, rows: Sequence[Sequence[float]]) -> Vectors:
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"store {self.url}: expected vectors of one width, found several")
        return np.array(rows, dtype=np.float32)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of psycopg as ours: a lost connection, or something the server refuses."""
        try:
            yield
        except (self._psycopg.OperationalError, self._psycopg.InterfaceError) as error:
            raise StoreConnectionError(f"store {self.url}: connection lost: {error}") from error
        except self._psycopg.Error as error:
            raise ValueError(f"store {self.url}: {error}") from error


def _texts(vectors: Vectors) -> list[str]:
    """Vectors as pgvector reads them; float32 comes back to the bit."""
    return ["[" + ",".join(map(repr, row)) + "]" for row in vectors.astype(float).tolist()]
