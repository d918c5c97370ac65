# SPDX-License-Identifier: Apache-2.0
"""One table of PostgreSQL: its connection, its quoted names, and what the catalogue says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

from fclearn.stores.base import StoreConnectionError, require
from fclearn.stores.urls import StoreUrl
from fclearn.wording import some

PAYLOAD = "payload"
TYPES = {"vector": "float32", "halfvec": "float16"}
_OURS = ("table", "column", "id", "type")


class Described(NamedTuple):
    """Types of the table's columns by name, and the comment on the column of vectors."""

    types: dict[str, str]
    comment: str | None


class PostgresTable:
    """A table with a column of ids and one of vectors; either may not be there yet.

    Args:
        url: Of the store.

    Attributes:
        column: Name of the column of vectors.
        new_type: Type of that column if it is made.
        sql: The module that composes statements.

    Raises:
        ModuleNotFoundError: psycopg is missing.
        ValueError: Options that are missing or unknown.
    """

    def __init__(self, url: StoreUrl) -> None:
        self._url = url
        self._psycopg = require("psycopg", "postgres")
        self.sql = require("psycopg.sql", "postgres")
        mine = {key: value for key, value in url.options.items() if key in _OURS}
        StoreUrl(url.kind, url.place, mine).take(("table",), ("column", "id", "type"))
        rest = "&".join(f"{k}={quote(v)}" for k, v in url.options.items() if k not in _OURS)
        self._address = f"postgresql:{url.place}" + (f"?{rest}" if rest else "")
        self.new_type = mine.get("type", "vector")
        if self.new_type not in TYPES:
            raise ValueError(f"store {url}: type: expected vector or halfvec")
        self.column, self._id = mine.get("column", "embedding"), mine.get("id", "id")
        name = self.sql.Identifier
        self._quoted = {
            "table": name(*mine["table"].split(".")),
            "column": name(self.column),
            "id": name(self._id),
        }
        self._connection: Any = None
        self._described: Described | None = None

    def connected(self) -> Any:
        """The connection, made when it is first needed."""
        if self._connection is None:
            with self.errors():
                self._connection = self._psycopg.connect(
                    self._address, autocommit=True, connect_timeout=10
                )
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._described = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block or nothing."""
        with self.errors(), self.connected().transaction():
            yield

    def forget(self) -> None:
        """Ask the catalogue again: the table was changed."""
        self._described = None

    def rows(self, text: str, values: Sequence[Any] = (), **parts: Any) -> list[tuple[Any, ...]]:
        """Run a statement, names quoted into it, and return its rows."""
        for key, name in (("id_type", self._id), ("kind", self.column)):
            if f"{{{key}}}" in text and key not in parts:
                types = self.need(with_column=key == "kind").types
                parts[key] = self.sql.SQL(types[name])
        statement = self.sql.SQL(text).format(**self._quoted, **parts)
        with self.errors(), self.connected().cursor(binary=bool(values)) as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def described(self) -> Described | None:
        """The table's columns; None if there is no such table."""
        if self._described is None:
            name = self._quoted["table"].as_string(self.connected())
            rows = self.rows(
                "SELECT attname::text, format_type(atttypid, atttypmod),"
                " col_description(attrelid, attnum) FROM pg_attribute"
                " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
                (name,),
            )
            if rows:
                comments = {row[0]: row[2] for row in rows}
                types = {row[0]: row[1] for row in rows}
                self._described = Described(types, comments.get(self.column))
        return self._described

    def need(self, *, with_column: bool = True) -> Described:
        """The table's columns, the ids and (if asked) the vectors among them."""
        table = self.described()
        wanted = [self._id, *([self.column] if with_column else [])]
        missing = [name for name in wanted if table is None or name not in table.types]
        if table is None or missing:
            found = "no such table" if table is None else f"found {', '.join(table.types)}"
            raise ValueError(f"store {self._url}: expected a column {missing[0]!r}, {found}")
        return table

    def column_type(self, table: Described) -> tuple[str, int]:
        """The type of the column of vectors, and its width; 0 if it has none."""
        text = table.types[self.column]
        match = re.fullmatch(r"(?:\w+\.)?(vector|halfvec)(?:\((\d+)\))?", text)
        if match is None:
            raise ValueError(
                f"store {self._url}: expected a column of type vector or halfvec, found {text}"
            )
        return match[1], int(match[2] or 0)

    def check_ids(self) -> None:
        """Refuse ids that repeat or lack: a write could not tell rows apart."""
        self.need(with_column=False)
        unique = self.rows(
            "SELECT 1 FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]"
            " WHERE indrelid = to_regclass(%s) AND indisunique AND indnkeyatts = 1"
            " AND indpred IS NULL AND attname = %s AND attnotnull",
            (self._quoted["table"].as_string(self.connected()), self._id),
        )
        if unique:
            return
        empty = self.rows("SELECT count(*) FROM {table} WHERE {id} IS NULL")[0][0]
        twice = self.rows(
            "SELECT {id}::text FROM {table} GROUP BY {id} HAVING count({id}) > 1 LIMIT 4"
        )
        if empty or twice:
            raise ValueError(
                f"store {self._url}: expected one distinct id per row, found {empty} rows without "
                f"one and repeated ids: {some([row[0] for row in twice]) or 'none'}"
            )

    def payload_column(self, table: Described, name: str) -> Any:
        """A further column as SQL: of the table, or a key of what a push has added."""
        if name in table.types:
            return self.sql.Identifier(name)
        if table.types.get(PAYLOAD) == "jsonb":
            return self.sql.SQL(f"{PAYLOAD} -> {{}}").format(self.sql.Literal(name))
        raise ValueError(
            f"store {self._url}: expected a column {name!r}, found {', '.join(table.types)}"
        )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of psycopg as ours: a lost connection, or something the server refuses."""
        try:
            yield
        except (self._psycopg.OperationalError, self._psycopg.InterfaceError) as error:
            raise StoreConnectionError(f"store {self._url}: no connection: {error}") from error
        except self._psycopg.Error as error:
            raise ValueError(f"store {self._url}: {error}") from error
