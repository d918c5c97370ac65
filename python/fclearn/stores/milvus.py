# SPDX-License-Identifier: Apache-2.0
"""A collection of Milvus: a file of Milvus Lite, or a server.

``milvus:file.db?collection=items`` or ``milvus:http://host:19530?collection=items``; ``vector=``
names the field (default ``vector``). A server's token comes from the environment (MILVUS_TOKEN).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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
    require,
)
from fclearn.stores.milvus_requests import milvus_errors, quoted
from fclearn.stores.tags import TAG, make_tag, metric_named, read_tag
from fclearn.stores.urls import StoreUrl
from fclearn.wording import some

_METRICS = {"cosine": "COSINE", "ip": "IP", "l2": "L2"}
_LONGEST_ID = 512


class MilvusStore(RowStore):
    """See the module; the arguments are those of `VectorStore`."""

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        options = url.take(("collection",), ("vector",))
        self._module = require("pymilvus", "milvus")
        self._collection = options["collection"]
        self._vector = options.get("vector", "vector")
        self._is_server = url.place.startswith(("http://", "https://"))
        if not self._is_server:
            self._lite = require("milvus_lite.server_manager", "milvus").server_manager_instance
            if not url.place.endswith(".db"):
                raise ValueError(f"store {url}: expected a name ending in .db, or an address")
        self._client: Any = None
        self._has_locked = False
        self._fields: dict[str, Any] | None = None

    def close(self) -> None:
        """Close the client, and unlock its file if nobody here had opened it before."""
        if self._client is not None:
            self._client.close()
        if self._has_locked:  # Milvus Lite itself would hold it until the process ends
            self._lite.release_server(self.url.place)
        self._client = self._fields = None
        self._has_locked = False

    def reconnect(self) -> None:
        """Connect anew."""
        self.close()
        self._open()

    def check_ids(self, ids: Sequence[str]) -> None:
        """See `VectorStore`: texts that a filter can ask for."""
        for name in ids:
            quoted(self.url, name)
            if len(name.encode("utf-8")) > _LONGEST_ID:
                raise ValueError(f"store {self.url}: expected ids up to {_LONGEST_ID} bytes")

    def has_container(self) -> bool:
        """Whether the collection is there."""
        if not self._is_server and not Path(self.url.place).exists():
            return False  # opening it would make it
        with milvus_errors(self._module, self.url):
            return bool(self._open().has_collection(self._collection))

    def info(self) -> StoreInfo | None:
        """Rows, width and metric of the field."""
        if not self.has_container():
            return None
        field, described = self._field(), self._describe()
        with milvus_errors(self._module, self.url):
            count = self._open().query(self._collection, filter="", output_fields=["count(*)"])
            names = self._open().list_indexes(self._collection)
            indexes = [self._open().describe_index(self._collection, name) for name in names]
        metric = [index["metric_type"] for index in indexes if index["field_name"] == self._vector]
        fingerprint, owned = read_tag(described.get("properties", {}).get(TAG), self.url)
        return StoreInfo(
            count[0]["count(*)"],
            int(field["params"]["dim"]),
            metric=metric_named(metric[0], _METRICS, self.url) if metric else "",
            fingerprint=fingerprint,
            owned=owned,
            takes_rows=count[0]["count(*)"] == 0,
        )

    def batches(
        self, size: int, after: str | None = None, payload: Sequence[str] = ()
    ) -> Iterator[Batch]:
        """Rows in the order of their ids; see `VectorStore`."""
        if not self.has_container():
            raise ValueError(f"store {self.url}: no such collection")
        self._field()
        key = self._key()
        while True:
            condition = "" if after is None else f"{key} > {quoted(self.url, json.loads(after))}"
            with milvus_errors(self._module, self.url):
                # An iterator for each batch: its own cursor does not quote what is in ids.
                iterator = self._open().query_iterator(
                    self._collection,
                    batch_size=size,
                    filter=condition,
                    output_fields=[key, self._vector, *payload],
                )
                rows = iterator.next()
                iterator.close()
            if not rows:
                return
            after = json.dumps(rows[-1][key])
            yield Batch(
                [str(row[key]) for row in rows],
                np.array([row[self._vector] for row in rows], dtype=np.float32),
                [{name: row.get(name) for name in payload} for row in rows],
                after,
            )

    def lookup(self, ids: Sequence[str]) -> Found:
        """See `RowStore`; a row of Milvus always has its vectors."""
        if not ids:
            return found_rows(ids, 0, {}, set())
        dim = int(self._field()["params"]["dim"])
        key = self._key()
        with milvus_errors(self._module, self.url):
            rows = self._open().query(
                self._collection, filter=self._among(ids), output_fields=[key, self._vector]
            )
        vectors = {str(row[key]): row[self._vector] for row in rows}
        if len(vectors) != len(rows):
            raise ValueError(f"store {self.url}: expected distinct ids, found some twice")
        return found_rows(ids, dim, vectors, set(vectors))

    def create(self, fingerprint: Fingerprint) -> None:
        """A new collection."""
        kinds = self._module.DataType
        with milvus_errors(self._module, self.url):
            client = self._open()
            schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
            schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=_LONGEST_ID)
            schema.add_field(self._vector, kinds.FLOAT_VECTOR, dim=fingerprint.dim)
            indexes = client.prepare_index_params()
            indexes.add_index(
                self._vector, index_type="AUTOINDEX", metric_type=_METRICS[fingerprint.metric]
            )
            client.create_collection(
                self._collection,
                schema=schema,
                index_params=indexes,
                properties={TAG: make_tag(fingerprint, owned=True)},
                consistency_level="Strong",
            )
        self._fields = None

    def write_tag(self, fingerprint: Fingerprint, *, owned: bool) -> None:
        """See `RowStore`; it is a property of the collection."""
        with milvus_errors(self._module, self.url):
            properties = {TAG: make_tag(fingerprint, owned=owned)}
            self._open().alter_collection_properties(self._collection, properties)
        self._fields = None

    def update(self, ids: Sequence[str], vectors: Vectors) -> None:
        """See `RowStore`."""
        found = self.lookup(ids).row
        if not found.all():
            gone = [name for name, row in zip(ids, found, strict=True) if not row]
            raise ValueError(f"store {self.url}: no longer has {len(gone)} ids: {some(gone)}")
        self._upsert(ids, vectors, [{} for _ in ids], partial=True)

    def insert(
        self, ids: Sequence[str], vectors: Vectors, payload: Sequence[Mapping[str, Any]]
    ) -> None:
        """See `RowStore`."""
        self._upsert(ids, vectors, payload, partial=False)

    def unset(self, ids: Sequence[str]) -> None:  # noqa: ARG002
        """Never needed: rows without a vector do not exist."""
        raise ValueError(f"store {self.url}: a row of Milvus cannot be without its vector")

    def delete(self, ids: Sequence[str]) -> None:
        """See `RowStore`."""
        if ids:
            with milvus_errors(self._module, self.url):
                self._open().delete(self._collection, filter=self._among(ids))

    def drop(self, *, container: bool) -> None:
        """See `RowStore`."""
        info = self.info()
        if container and info is not None and info.count == 0:
            with milvus_errors(self._module, self.url):
                self._open().drop_collection(self._collection)
            self._fields = None

    def _upsert(
        self,
        ids: Sequence[str],
        vectors: Vectors,
        payload: Sequence[Mapping[str, Any]],
        *,
        partial: bool,
    ) -> None:
        key = self._key()
        rows = [
            {**item, key: self._native(name), self._vector: row}
            for name, row, item in zip(ids, vectors.astype(float).tolist(), payload, strict=True)
        ]
        if rows:
            with milvus_errors(self._module, self.url):
                self._open().upsert(self._collection, rows, partial_update=partial)

    def _open(self) -> Any:
        if self._client is None:
            if not self._is_server:
                path = os.path.abspath(self.url.place)  # noqa: PTH100  (as Milvus Lite has it)
                self._has_locked = path not in getattr(self._lite, "_servers", {})
            with milvus_errors(self._module, self.url):
                self._client = self._module.MilvusClient(
                    self.url.place, token=os.environ.get("MILVUS_TOKEN", "")
                )
        return self._client

    def _describe(self) -> dict[str, Any]:
        if self._fields is None:
            with milvus_errors(self._module, self.url):
                client = self._open()
                described = dict(client.describe_collection(self._collection))
                if client.list_indexes(self._collection):
                    client.load_collection(self._collection)
            self._fields = described
        return self._fields

    def _field(self) -> dict[str, Any]:
        """The field of vectors."""
        fields = {field["name"]: field for field in self._describe()["fields"]}
        field = fields.get(self._vector)
        if field is None:
            raise ValueError(
                f"store {self.url}: expected a field {self._vector!r}, found {', '.join(fields)}; "
                "a collection of Milvus gets no new field: name a new collection"
            )
        if field["type"] != self._module.DataType.FLOAT_VECTOR:
            raise ValueError(
                f"store {self.url}: expected a field of type FLOAT_VECTOR, found "
                f"{field['type'].name}"
            )
        return dict(field)

    def _key(self) -> str:
        described = self._describe()
        if described.get("auto_id"):
            raise ValueError(f"store {self.url}: expected ids of its own, Milvus makes these")
        (key,) = [field["name"] for field in described["fields"] if field.get("is_primary")]
        return str(key)

    def _native(self, name: str) -> int | str:
        (kind,) = [field["type"] for field in self._describe()["fields"] if field.get("is_primary")]
        if kind == self._module.DataType.INT64:
            try:
                return int(name)
            except ValueError:
                raise ValueError(f"store {self.url}: expected integer ids, got {name!r}") from None
        return name

    def _among(self, ids: Sequence[str]) -> str:
        return (
            f"{self._key()} in [{', '.join(quoted(self.url, self._native(name)) for name in ids)}]"
        )
