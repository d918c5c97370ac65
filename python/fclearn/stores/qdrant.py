# SPDX-License-Identifier: Apache-2.0
"""A collection of Qdrant: a folder of the client's embedded mode, or a server.

``qdrant:folder?collection=items`` or ``qdrant:http://host:6333?collection=items``; ``vector=``
names one of several vectors, ``id=KEY`` takes the ids from the payload, for ids that are neither
numbers nor UUIDs. A server's key comes from the environment (QDRANT_API_KEY).
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
    require,
)
from fclearn.stores.qdrant_ids import id_of, point_id
from fclearn.stores.qdrant_session import QdrantSession
from fclearn.stores.tags import TAG, make_tag, metric_named, read_tag
from fclearn.stores.urls import StoreUrl
from fclearn.wording import some

_METRICS = {"cosine": "Cosine", "ip": "Dot", "l2": "Euclid"}
_LOOKUP_LIMIT = 10_000
_END = "null"  # the cursor after the last point


class QdrantStore(RowStore):
    """See the module; the arguments are those of `VectorStore`."""

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        options = url.take(("collection",), ("vector", "id"))
        require("qdrant_client", "qdrant")
        self._models = require("qdrant_client.models", "qdrant")
        self._collection = options["collection"]
        self._vector = options.get("vector", "")
        self._key = options.get("id")
        self._tag_name = f"{TAG} {self._vector}".strip()
        self._session = QdrantSession(url, self._collection, self._vector)

    def close(self) -> None:
        """Close the client, which unlocks its folder."""
        self._session.close()

    def reconnect(self) -> None:
        """A client of HTTP connects for every request."""

    def check_ids(self, ids: Sequence[str]) -> None:
        """See `VectorStore`: numbers and UUIDs, or any text in the payload."""
        for name in ids:
            point_id(self.url, name, self._key)

    def has_container(self) -> bool:
        """Whether the collection is there."""
        return self._session.exists()

    def info(self) -> StoreInfo | None:
        """Points, width and distance of the vector."""
        params = self._session.params()
        if params is None:
            return None
        with self._session.errors():
            config = self._session.open().get_collection(self._collection).config
            has = self._models.Filter(
                must=[self._models.HasVectorCondition(has_vector=self._vector)]
            )
            count = (
                self._session.open().count(self._collection, has if self._vector else None).count
            )
            is_empty = self._session.open().count(self._collection).count == 0
        tag = (config.metadata or {}).get(self._tag_name)
        fingerprint, owned = read_tag(None if tag is None else json.dumps(tag), self.url)
        metric = metric_named(params.distance.value, _METRICS, self.url)
        return StoreInfo(
            count,
            params.size,
            "float16" if params.datatype == self._models.Datatype.FLOAT16 else "float32",
            metric,
            normalises=metric == "cosine",
            fingerprint=fingerprint,
            owned=owned,
            takes_rows=is_empty,
        )

    def batches(
        self, size: int, after: str | None = None, payload: Sequence[str] = ()
    ) -> Iterator[Batch]:
        """Points in the order of their own ids; see `VectorStore`."""
        self._need()
        if after == _END:
            return
        offset = None if after is None else json.loads(after)
        keys = [*payload, *([self._key] if self._key else [])]
        while True:
            with self._session.errors():
                records, offset = self._session.open().scroll(
                    self._collection,
                    limit=size,
                    offset=offset,
                    with_payload=keys or False,
                    with_vectors=[self._vector] if self._vector else True,
                )
            held = [(r, self._vector_of(r)) for r in records]
            held = [(record, vector) for record, vector in held if vector is not None]
            if held:
                yield Batch(
                    [id_of(self.url, record, self._key) for record, _ in held],
                    np.array([vector for _, vector in held], dtype=np.float32),
                    [{name: (r.payload or {}).get(name) for name in payload} for r, _ in held],
                    json.dumps(offset),
                )
            if offset is None:
                return

    def lookup(self, ids: Sequence[str]) -> Found:
        """See `RowStore`."""
        params = self._session.params()
        records = self._records(ids, with_vectors=params is not None)
        if params is None:
            return found_rows(ids, 0, {}, set(records))
        held = {name: self._vector_of(record) for name, record in records.items()}
        vectors = {name: vector for name, vector in held.items() if vector is not None}
        return found_rows(ids, params.size, vectors, set(records))

    def create(self, fingerprint: Fingerprint) -> None:
        """A new collection, or a new named vector of one that is there."""
        models = self._models
        settings: dict[str, Any] = {
            "size": fingerprint.dim,
            "distance": models.Distance(_METRICS[fingerprint.metric]),
        }
        fresh = not self.has_container()
        with self._session.errors():
            client = self._session.open()
            if fresh:
                params = models.VectorParams(**settings)
                client.create_collection(
                    self._collection,
                    vectors_config={self._vector: params} if self._vector else params,
                )
            else:
                dense = models.DenseVectorConfig(**settings)
                client.create_vector_name(
                    self._collection, self._vector, models.DenseVectorNameConfig(dense=dense)
                )
        self.write_tag(fingerprint, owned=fresh)

    def write_tag(self, fingerprint: Fingerprint, *, owned: bool) -> None:
        """See `RowStore`; it is in the collection's metadata, one for each vector."""
        with self._session.errors():
            client = self._session.open()
            metadata = client.get_collection(self._collection).config.metadata or {}
            tag = {self._tag_name: json.loads(make_tag(fingerprint, owned=owned))}
            client.update_collection(self._collection, metadata={**metadata, **tag})

    def update(self, ids: Sequence[str], vectors: Vectors) -> None:
        """See `RowStore`."""
        points = self._records(ids, with_vectors=False)
        gone = [name for name in ids if name not in points]
        if gone:
            raise ValueError(f"store {self.url}: no longer has {len(gone)} ids: {some(gone)}")
        rows = vectors.astype(float).tolist()
        with self._session.errors():
            self._session.open().update_vectors(
                self._collection,
                [
                    self._models.PointVectors(id=points[name].id, vector=self._named(row))
                    for name, row in zip(ids, rows, strict=True)
                ],
                wait=True,
            )

    def insert(
        self, ids: Sequence[str], vectors: Vectors, payload: Sequence[Mapping[str, Any]]
    ) -> None:
        """See `RowStore`."""
        points = [
            self._models.PointStruct(
                id=point_id(self.url, name, self._key),
                vector=self._named(row),
                payload={**item, **({self._key: name} if self._key else {})},
            )
            for name, row, item in zip(ids, vectors.astype(float).tolist(), payload, strict=True)
        ]
        with self._session.errors():
            self._session.open().upsert(self._collection, points, wait=True)

    def unset(self, ids: Sequence[str]) -> None:
        """See `RowStore`."""
        points = [record.id for record in self._records(ids, with_vectors=False).values()]
        if points:
            with self._session.errors():
                self._session.open().delete_vectors(
                    self._collection, [self._vector], points, wait=True
                )

    def delete(self, ids: Sequence[str]) -> None:
        """See `RowStore`."""
        points = [record.id for record in self._records(ids, with_vectors=False).values()]
        if points:
            with self._session.errors():
                selector = self._models.PointIdsList(points=points)
                self._session.open().delete(self._collection, selector, wait=True)

    def drop(self, *, container: bool) -> None:
        """See `RowStore`."""
        info = self.info()
        if info is None:
            return
        with self._session.errors():
            if container and self._session.open().count(self._collection).count == 0:
                self._session.open().delete_collection(self._collection)
            elif not container and info.count == 0:
                self._session.open().delete_vector_name(self._collection, self._vector)

    def _need(self) -> None:
        if self._session.params() is None:
            raise ValueError(f"store {self.url}: no such collection or vector")

    def _records(self, ids: Sequence[str], *, with_vectors: bool) -> dict[str, Any]:
        """The point of each id that has one."""
        vectors = ([self._vector] if self._vector else True) if with_vectors else False
        with self._session.errors():
            if self._key is None:
                records = self._session.open().retrieve(
                    self._collection,
                    [point_id(self.url, name, self._key) for name in ids],
                    with_payload=False,
                    with_vectors=vectors,
                )
            else:
                match = self._models.MatchAny(any=list(ids))
                condition = self._models.FieldCondition(key=self._key, match=match)
                records, _ = self._session.open().scroll(
                    self._collection,
                    scroll_filter=self._models.Filter(must=[condition]),
                    limit=max(_LOOKUP_LIMIT, 2 * len(ids)),
                    with_payload=[self._key],
                    with_vectors=vectors,
                )
        found: dict[str, Any] = {}
        for record in records:
            name = id_of(self.url, record, self._key)
            if name in found:
                raise ValueError(f"store {self.url}: expected distinct ids, found {name!r} twice")
            found[name] = record
        return found

    def _vector_of(self, record: Any) -> Any:
        vector = record.vector
        if isinstance(vector, dict):
            vector = vector.get(self._vector)
        return vector or None

    def _named(self, row: list[float]) -> Any:
        return {self._vector: row} if self._vector else row
