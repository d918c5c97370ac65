# SPDX-License-Identifier: Apache-2.0
"""From a store's name to the store, and patience with connections that drop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from fclearn.stores.base import RowStore, StoreConnectionError, VectorStore
from fclearn.stores.faiss_file import FaissStore
from fclearn.stores.milvus import MilvusStore
from fclearn.stores.parquet import ParquetStore
from fclearn.stores.postgres import PostgresStore
from fclearn.stores.qdrant import QdrantStore
from fclearn.stores.urls import StoreUrl

Result = TypeVar("Result")
_STORES: dict[str, type[VectorStore]] = {
    "faiss": FaissStore,
    "parquet": ParquetStore,
    "qdrant": QdrantStore,
    "postgresql": PostgresStore,
    "milvus": MilvusStore,
}
_WAITS = (0.2, 1.0, 3.0)  # seconds before each new attempt


def open_store(name: str) -> VectorStore:
    """Open a store of vectors by its name; nothing is made or changed.

    Args:
        name: ``kind:place?option=value``: ``faiss:FILE``, ``parquet:FILE?column=…``,
            ``qdrant:FOLDER?collection=…``, ``postgresql://…?table=…&column=…``,
            ``milvus:FILE.db?collection=…``; docs/stores.md has all options.

    Returns:
        The store; use it in a ``with`` block.

    Raises:
        ModuleNotFoundError: The package for it is missing; the message says what to install.
        ValueError: Another name.

    Example:
        >>> open_store("parquet:gallery.parquet").info() is None
        True
    """
    url = StoreUrl.parse(name)
    return _STORES[url.kind](url)


def patiently(store: VectorStore, action: Callable[[], Result]) -> Result:
    """Do something that may be repeated, again if the connection drops, a few times.

    Raises:
        StoreConnectionError: The store stays away.
    """
    for attempt in range(len(_WAITS)):
        try:
            return action()
        except StoreConnectionError:
            wait_and_reconnect(store, attempt)
    return action()


def wait_and_reconnect(store: VectorStore, attempt: int) -> None:
    """Connect anew; a server that is not back yet is found out by what comes next."""
    time.sleep(_WAITS[min(attempt, len(_WAITS) - 1)])
    if isinstance(store, RowStore):
        try:
            store.reconnect()
        except StoreConnectionError:
            return
