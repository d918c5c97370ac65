# SPDX-License-Identifier: Apache-2.0
"""Real stores that tests start themselves, and what is in them by each one's own client."""

from __future__ import annotations

import importlib.util
import itertools
import logging
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from store_samples import norm_of

from fclearn.features import FeatureStore, Fingerprint

KINDS = ("faiss", "parquet", "qdrant", "postgresql", "milvus")
ROWS = ("qdrant", "postgresql", "milvus")
_PACKAGES = {
    "faiss": ["faiss"],
    "parquet": ["pyarrow"],
    "qdrant": ["qdrant_client"],
    "postgresql": ["psycopg", "pgserver"],
    "milvus": ["pymilvus", "milvus_lite"],
}
_numbers = itertools.count()


def need(kind):
    """Skip where the package is missing, and say which."""
    for package in _PACKAGES[kind]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: pip install -e '.[stores]'")


def vectors(count, dim=8, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def features(path, rows, model="new", ids=None, **columns):
    """A feature store of rows whose ids are numbers, unless given."""
    ids = [str(number) for number in range(len(rows))] if ids is None else ids
    metric = columns.pop("metric", "cosine")
    fingerprint = Fingerprint(model, rows.shape[1], norm=norm_of(rows), metric=metric)
    return FeatureStore.write(path, rows, {"id": ids, **columns}, fingerprint)


class Served:
    """One store with old vectors in it: made, and read, by its own client.

    `dump` returns vector and payload of each id; vectors that are absent are None.
    """

    def __init__(self, kind, folder):
        self.kind, self.folder = kind, folder

    def url(self, name="old"):
        return {
            "faiss": f"faiss:{self.folder}/{name}.index",
            "parquet": f"parquet:{self.folder}/{name}.parquet",
            "qdrant": f"qdrant:{self.folder}/qdrant?collection={name}",
            "milvus": f"milvus:{self.folder}/milvus.db?collection={name}",
        }[self.kind]

    def fill(self, rows, name="old"):
        getattr(self, f"_fill_{self.kind}")(rows, name)
        return self.url(name)

    def dump(self, name="old"):
        return getattr(self, f"_dump_{self.kind}")(name)

    def _fill_faiss(self, rows, name):
        import faiss

        index = faiss.IndexIDMap2(faiss.IndexFlatIP(rows.shape[1]))
        index.add_with_ids(rows, np.arange(len(rows)))
        faiss.write_index(index, f"{self.folder}/{name}.index")

    def _dump_faiss(self, name):
        import faiss

        path = self.folder / f"{name}.index"
        if not path.exists():
            return None
        index = faiss.read_index(str(path))
        numbers = faiss.vector_to_array(index.id_map).tolist()
        return {str(n): (index.reconstruct(n), {}) for n in numbers}

    def _fill_parquet(self, rows, name):
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            "id": [str(n) for n in range(len(rows))],
            "label": list(range(len(rows))),
            "embedding": rows.tolist(),
        }
        kind = pa.schema(
            [("id", pa.string()), ("label", pa.int64()), ("embedding", pa.list_(pa.float32()))]
        )
        path = f"{self.folder}/{name}.parquet"
        pq.write_table(pa.table(columns, schema=kind), path, row_group_size=7)

    def _dump_parquet(self, name):
        import pyarrow.parquet as pq

        path = self.folder / f"{name}.parquet"
        if not path.exists():
            return None
        rows = pq.read_table(path, partitioning=None).to_pylist()
        return {
            row.pop("id"): (
                None if row["embedding"] is None else np.float32(row["embedding"]),
                {key: value for key, value in row.items() if key != "embedding"},
            )
            for row in rows
        }

    @contextmanager
    def _qdrant(self):
        from qdrant_client import QdrantClient

        client = QdrantClient(path=str(self.folder / "qdrant"))
        yield client
        client.close()

    def _fill_qdrant(self, rows, name):
        from qdrant_client import models

        with self._qdrant() as client:
            params = models.VectorParams(size=rows.shape[1], distance=models.Distance.COSINE)
            client.create_collection(name, params)
            points = [
                models.PointStruct(id=n, vector=row.tolist(), payload={"label": n})
                for n, row in enumerate(rows)
            ]
            if points:
                client.upsert(name, points)

    def _dump_qdrant(self, name):
        with self._qdrant() as client:
            if not client.collection_exists(name):
                return None
            points, _ = client.scroll(name, limit=100_000, with_vectors=True)
        return {str(p.id): (np.float32(p.vector), p.payload) for p in points}

    @contextmanager
    def _milvus(self):
        from milvus_lite.server_manager import server_manager_instance
        from pymilvus import MilvusClient

        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        client = MilvusClient(str(self.folder / "milvus.db"))
        yield client
        client.close()
        # Else this process would hold the file until it ends.
        server_manager_instance.release_server(str(self.folder / "milvus.db"))

    def _fill_milvus(self, rows, name):
        from pymilvus import DataType

        with self._milvus() as client:
            schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=rows.shape[1])
            indexes = client.prepare_index_params()
            indexes.add_index("vector", index_type="FLAT", metric_type="COSINE")
            client.create_collection(name, schema=schema, index_params=indexes)
            client.insert(
                name,
                [{"id": n, "vector": row.tolist(), "label": n} for n, row in enumerate(rows)],
            )

    def _dump_milvus(self, name):
        with self._milvus() as client:
            if not client.has_collection(name):
                return None
            client.load_collection(name)
            keys = [field["name"] for field in client.describe_collection(name)["fields"]]
            names = [*keys, "label"]
            rows = client.query(name, filter="", limit=16_000, output_fields=names)
        return {
            str(row["id"]): (
                np.float32(row["vector"]),
                {"label": row["label"]} if "label" in row else {},
            )
            for row in rows
        }


class ServedPostgres(Served):
    """A database of its own on the server of the session."""

    def __init__(self, server, folder):
        import psycopg

        super().__init__("postgresql", folder)
        database = f"test_{next(_numbers)}"
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        self.uri = server.get_uri(database=database)
        self.run("CREATE EXTENSION vector")

    def url(self, name="old"):
        column = "embedding" if name == "old" else name
        return f"{self.uri}&table=items&column={column}"

    def run(self, text, values=None):
        import psycopg

        with psycopg.connect(self.uri, autocommit=True) as connection:
            cursor = connection.execute(text, values)
            return cursor.fetchall() if cursor.description else None

    def _fill_postgresql(self, rows, name):
        assert name == "old"
        self.run(
            f"CREATE TABLE items (id integer PRIMARY KEY, label integer NOT NULL,"
            f" embedding vector({rows.shape[1]}))"
        )
        for number, row in enumerate(rows.tolist()):
            self.run("INSERT INTO items VALUES (%s, %s, %s)", (number, number, str(row)))

    def _dump_postgresql(self, name):
        column = "embedding" if name == "old" else name
        types = dict(
            self.run(
                "SELECT attname, atttypid FROM pg_attribute WHERE attrelid = to_regclass('items')"
                " AND attnum > 0 AND NOT attisdropped"
            )
        )
        if column not in types:
            return None
        rows = self.run(f"SELECT id::text, label, {column}::real[] FROM items")
        return {n: (None if v is None else np.float32(v), {"label": x}) for n, x, v in rows}


def serve(kind, folder, postgres):
    """A store of a kind in a folder; ``postgres`` is the fixture."""
    need(kind)
    return ServedPostgres(postgres(), folder) if kind == "postgresql" else Served(kind, folder)


def numbered(rows):
    return {str(number): row for number, row in enumerate(rows)}


def same(dump, expected):
    """Whether a dump has exactly these ids and vectors (None: absent)."""
    assert dump is not None
    assert sorted(dump) == sorted(expected)
    for name, row in expected.items():
        found = dump[name][0]
        if row is None:
            assert found is None, name
        else:
            np.testing.assert_allclose(found, row, rtol=0, atol=2e-7, err_msg=name)
    return True


def files(folder):
    """Every file below a folder with its bytes."""
    return {p: p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
