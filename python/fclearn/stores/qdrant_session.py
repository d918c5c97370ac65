# SPDX-License-Identifier: Apache-2.0
"""The client of a collection of Qdrant: opened when needed, its errors as those of a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fclearn.stores.base import StoreConnectionError, require
from fclearn.stores.qdrant_files import check_folder
from fclearn.stores.urls import StoreUrl


class QdrantSession:
    """A collection on a server or in a folder.

    Args:
        url: Of the store.
        collection: Its name.
        vector: Of the vectors of a point; "" where it has one.
    """

    def __init__(self, url: StoreUrl, collection: str, vector: str) -> None:
        """Open nothing yet."""
        self._url, self._collection, self._vector = url, collection, vector
        self._is_server = url.place.startswith(("http://", "https://"))
        self._client: Any = None

    def close(self) -> None:
        """Close the client, which unlocks its folder."""
        if self._client is not None:
            self._client.close()
        self._client = None

    def exists(self) -> bool:
        """Whether the collection is there."""
        if not self._is_server and not (Path(self._url.place) / "meta.json").is_file():
            if Path(self._url.place).exists() and any(Path(self._url.place).iterdir()):
                raise ValueError(
                    f"store {self._url}: expected an embedded Qdrant, found a folder without "
                    "meta.json"
                )
            return False  # opening it would make it
        with self.errors():
            return bool(self.open().collection_exists(self._collection))

    def open(self) -> Any:
        """The client."""
        if self._client is None:
            module = require("qdrant_client", "qdrant")
            if self._is_server:
                self._client = module.QdrantClient(
                    url=self._url.place,
                    api_key=os.environ.get("QDRANT_API_KEY"),
                    timeout=60,
                    check_compatibility=False,  # it only warns, and of a server that is away too
                )
            else:
                folder = Path(self._url.place)
                check_folder(folder)
                self._client = module.QdrantClient(path=str(folder))
        return self._client

    def params(self) -> Any:
        """What the collection says of the vector; None if there is no such vector."""
        if not self.exists():
            return None
        with self.errors():
            vectors = self.open().get_collection(self._collection).config.params.vectors
        if not isinstance(vectors, dict):
            vectors = {"": vectors} if vectors is not None else {}
        if not self._vector and self._vector not in vectors and vectors:
            raise ValueError(f"store {self._url}: expected &vector=, one of {', '.join(vectors)}")
        params = vectors.get(self._vector)
        if params is not None and params.multivector_config is not None:
            raise ValueError(f"store {self._url}: expected one vector per point, found several")
        return params

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of the client as ours: a lost connection, or something it refuses."""
        exceptions = require("qdrant_client.http.exceptions", "qdrant")
        try:
            yield
        except (exceptions.ResponseHandlingException, ConnectionError) as error:
            raise StoreConnectionError(f"store {self._url}: no connection: {error}") from error
        except (RuntimeError, KeyError, ValueError, exceptions.ApiException) as error:
            text = str(error)
            raise ValueError(
                text if text.startswith("store ") else f"store {self._url}: {text}"
            ) from error
