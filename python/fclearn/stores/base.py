# SPDX-License-Identifier: Apache-2.0
"""What every store of vectors can do, so that reading and writing are told once."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fclearn.features import Fingerprint
from fclearn.stores.urls import StoreUrl

Vectors = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


class StoreConnectionError(OSError):
    """A server that cannot be reached, or that went away: the same command can go on later."""


@dataclass(frozen=True)
class StoreInfo:
    """What a store says about itself.

    Attributes:
        count: Rows that have a vector.
        dim: Numbers per vector; 0 if the store is empty and does not say.
        dtype: ``"float32"`` or ``"float16"``: what the store keeps.
        metric: One of `fclearn.features.METRICS`, or ``""`` if the store has none.
        normalises: Whether vectors are brought to unit length when they are written.
        fingerprint: What made the vectors; None where nobody wrote that down.
        owned: Whether `push` made the whole table, collection or file.
        takes_rows: Whether it has no rows at all, and a row is nothing but id, vector and payload.
    """

    count: int
    dim: int
    dtype: str = "float32"
    metric: str = ""
    normalises: bool = False
    fingerprint: Fingerprint | None = None
    owned: bool = False
    takes_rows: bool = False


class Batch(NamedTuple):
    """Some rows of a store: ids, vectors ``(B, D)``, payloads, and where to go on after them."""

    ids: list[str]
    vectors: Vectors
    payload: list[dict[str, Any]]
    cursor: str


class Found(NamedTuple):
    """What a store holds of some ids, each of shape ``(B,)``; vectors ``(B, D)``, 0 if absent."""

    row: Mask
    vector: Mask
    vectors: Vectors


class VectorStore(ABC):
    """One set of vectors with ids: a column, a collection, a file.

    A store is opened without being touched: nothing is made before `RowStore.create`.

    Args:
        url: Its name in parts.

    Attributes:
        url: As given.
    """

    def __init__(self, url: StoreUrl) -> None:
        self.url = url

    def __repr__(self) -> str:
        """The store's name, without a password."""
        return f"{type(self).__name__}({str(self.url)!r})"

    def __enter__(self) -> VectorStore:
        """The store; `close` follows."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the store."""
        self.close()

    @abstractmethod
    def info(self) -> StoreInfo | None:
        """What the store holds; None if there is no such column, collection or file."""

    @abstractmethod
    def batches(
        self, size: int, after: str | None = None, payload: Sequence[str] = ()
    ) -> Iterator[Batch]:
        """Read all rows that have a vector, in a fixed order.

        Args:
            size: Most rows of a batch.
            after: Cursor of the last batch read; None to start.
            payload: Which further columns to read.
        """

    def check_ids(self, ids: Sequence[str]) -> None:  # noqa: B027  (most take any id)
        """Refuse ids that no row of this store could have.

        Raises:
            ValueError: Such an id.
        """

    def close(self) -> None:  # noqa: B027  (nothing to close is fine)
        """Let go of files and connections."""


class RowStore(VectorStore):
    """A store whose rows change one by one. Every write may be repeated: the result is the same."""

    @abstractmethod
    def lookup(self, ids: Sequence[str]) -> Found:
        """Which ids have a row, which of them a vector, and the vectors as the store has them.

        Raises:
            ValueError: An id that this store cannot have, or that has several rows.
        """

    @abstractmethod
    def create(self, fingerprint: Fingerprint) -> None:
        """Make what is missing: the column, or the whole table or collection."""

    @abstractmethod
    def write_tag(self, fingerprint: Fingerprint, *, owned: bool) -> None:
        """Write down what made the vectors."""

    @abstractmethod
    def has_container(self) -> bool:
        """Whether the table or collection is there, with or without the vectors."""

    @abstractmethod
    def update(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Set the vectors of rows that exist, and nothing else of them."""

    @abstractmethod
    def insert(
        self, ids: Sequence[str], vectors: Vectors, payload: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add rows; those there already are replaced."""

    @abstractmethod
    def unset(self, ids: Sequence[str]) -> None:
        """Take the vectors away; the rows stay."""

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> None:
        """Remove rows."""

    @abstractmethod
    def drop(self, *, container: bool) -> None:
        """Undo `create`: remove the empty column, or the empty table or collection."""

    def reconnect(self) -> None:
        """Connect anew after a `StoreConnectionError`."""


def require(module: str, extra: str) -> Any:
    """Import a package that only some stores need.

    Raises:
        ModuleNotFoundError: It is missing; the message says what to install.

    Example:
        >>> require("no_such_package", "qdrant")
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: no_such_package is missing: pip install "fcl-ext[qdrant]"
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f'{module} is missing: pip install "fcl-ext[{extra}]"', name=module
        ) from None


def found_rows(ids: Sequence[str], dim: int, vectors: Mapping[str, Any], rows: set[str]) -> Found:
    """A `Found` from what a store returned by id."""
    found = np.zeros((len(ids), dim), dtype=np.float32)
    has = np.array([name in vectors for name in ids], dtype=bool)
    for at in np.flatnonzero(has).tolist():
        found[at] = vectors[ids[at]]
    return Found(np.array([name in rows for name in ids], dtype=bool), has, found)
