# SPDX-License-Identifier: Apache-2.0
"""Stores that are one file: never changed in place, written anew as a whole."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fclearn.features import Fingerprint
from fclearn.stores.base import Vectors, VectorStore
from fclearn.stores.urls import StoreUrl
from fclearn.wording import some


@dataclass(frozen=True)
class FileRows:
    """Rows to write into a file.

    Attributes:
        ids: ``B`` distinct ids.
        features: All features there are, shape ``(N, D)``; may be memory-mapped.
        rows: Where each id is in ``features``, shape ``(B,)``.
    """

    ids: Sequence[str]
    features: Vectors
    rows: NDArray[np.int64]

    def block(self, part: slice) -> Vectors:
        """Vectors of some of the ids, in memory."""
        return np.ascontiguousarray(self.features[self.rows[part]])


class FileStore(VectorStore):
    """A store that is one file.

    Attributes:
        path: Of the file, links followed.
        companions: Other files that `write_new` makes.
    """

    companions: Sequence[Path] = ()

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        self.path = Path(url.place).resolve()

    @abstractmethod
    def ids(self) -> list[str]:
        """All ids, in the file's order; distinct."""

    @abstractmethod
    def write_new(
        self,
        path: Path,
        new: FileRows,
        payload: Mapping[str, Sequence[Any]],
        fingerprint: Fingerprint,
    ) -> None:
        """Write a file of these rows alone.

        Args:
            path: Where to.
            new: The rows.
            payload: Further columns, a value per row.
            fingerprint: What made the features.
        """

    @abstractmethod
    def write_replaced(self, path: Path, new: FileRows, fingerprint: Fingerprint | None) -> None:
        """Write this file with the vectors of some of its rows replaced, all else as it is.

        Args:
            path: Where to.
            new: The rows.
            fingerprint: What made the vectors now, if the file said what made them before.
        """

    def check_distinct(self, ids: list[str]) -> list[str]:
        """The ids, if none is empty and none there twice."""
        twice = [name for name, count in Counter(ids).items() if count > 1]
        if twice or "" in ids:
            raise ValueError(
                f"store {self.url}: expected one distinct id per row, found "
                + (f"{some(twice)} again" if twice else "a row without one")
            )
        return ids
