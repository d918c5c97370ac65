# SPDX-License-Identifier: Apache-2.0
"""Stores that serve: faiss files, Parquet, Qdrant, PostgreSQL with pgvector, Milvus.

`open_store` opens one by its name, `pull` reads it into a feature store, `push` writes upgraded
features beside what is there, `rollback` undoes a push from its `Journal`.
"""

from __future__ import annotations

from fclearn.stores.base import Batch, StoreConnectionError, StoreInfo, VectorStore
from fclearn.stores.journal import Journal
from fclearn.stores.opening import open_store
from fclearn.stores.pull import pull
from fclearn.stores.push import PushResult, push
from fclearn.stores.rollback import RollbackResult, rollback
from fclearn.stores.selection import read_ids

__all__ = [
    "Batch",
    "Journal",
    "PushResult",
    "RollbackResult",
    "StoreConnectionError",
    "StoreInfo",
    "VectorStore",
    "open_store",
    "pull",
    "push",
    "read_ids",
    "rollback",
]
