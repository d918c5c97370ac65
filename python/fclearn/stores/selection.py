# SPDX-License-Identifier: Apache-2.0
"""Which rows of a feature store are pushed: found by id, and checked before anything is touched."""

from __future__ import annotations

import csv
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fclearn.features import FeatureStore
from fclearn.features.ids import read_id_lines
from fclearn.features.norms import is_unit, row_norms
from fclearn.stores.base import Vectors
from fclearn.wording import some

_BLOCK_ROWS = 8192


@dataclass(frozen=True)
class Selection:
    """Rows to push.

    Attributes:
        store: Where they are.
        ids: Their ids, in the order they are pushed.
        rows: Where in the store, shape ``(len(ids),)``.
        checksum: Of ids and vectors.
        all_unit: Whether each of these rows has unit length, whatever the fingerprint says.
        other_lengths: Ids of those that have another, rows of zeros apart.
    """

    store: FeatureStore
    ids: list[str]
    rows: NDArray[np.int64]
    checksum: str
    all_unit: bool
    other_lengths: list[str]

    def batches(self, size: int) -> Iterator[tuple[int, list[str], Vectors, NDArray[np.int64]]]:
        """Number, ids, vectors ``(B, D)`` float32, and store rows of each batch."""
        for number, begin in enumerate(range(0, len(self.ids), size)):
            rows = self.rows[begin : begin + size]
            vectors = np.asarray(self.store.features[rows], dtype=np.float32)
            yield number, self.ids[begin : begin + size], vectors, rows


def select(store: FeatureStore, ids: Sequence[str] | None, *, refuse_zeros: bool) -> Selection:
    """Find rows by id and look at every number.

    Args:
        store: The features.
        ids: Which rows, in which order; None for all.
        refuse_zeros: Whether a row of zeros is refused too: it has no direction.

    Raises:
        ValueError: No rows, ids that repeat or are not in the store, NaN or infinite rows; the
            first are named.
    """
    wanted = store.ids if ids is None else list(ids)
    row_of = {name: row for row, name in enumerate(store.ids)}
    if not wanted:
        raise ValueError(f"{store.path}: expected at least one row to push, got none")
    unknown = [name for name in wanted if name not in row_of]
    if unknown:
        raise ValueError(
            f"{store.path}: no features for {len(unknown)} of {len(wanted)} ids: {some(unknown)}"
        )
    twice = [name for name, count in Counter(wanted).items() if count > 1]
    if twice:
        raise ValueError(f"ids: expected each id once, got {some(twice)} again")
    rows = np.array([row_of[name] for name in wanted], dtype=np.int64)
    selection = Selection(store, wanted, rows, "", all_unit=True, other_lengths=[])
    all_unit, other_lengths = True, []
    checksum = zlib.crc32("\n".join(wanted).encode("utf-8"))
    for _, names, vectors, _ in selection.batches(_BLOCK_ROWS):
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{store.path}: expected finite numbers, got a NaN or infinity in {bad.sum()} "
                f"rows: {some([names[row] for row in np.flatnonzero(bad)])}"
            )
        zero = ~vectors.any(axis=1)
        unit = is_unit(row_norms(vectors))
        all_unit &= bool(unit.all())
        other_lengths += [names[row] for row in np.flatnonzero(~unit & ~zero)]
        if refuse_zeros and zero.any():
            raise ValueError(
                f"{store.path}: rows of zeros have no direction, and the store brings rows to "
                f"unit length: {some([names[row] for row in np.flatnonzero(zero)])}"
            )
        checksum = zlib.crc32(np.ascontiguousarray(vectors).tobytes(), checksum)
    return Selection(store, wanted, rows, f"{checksum:08x}", all_unit, other_lengths)


def read_ids(path: Path) -> list[str]:
    r"""Ids of a file: the rows in the budget of ``fcl plan``'s plan.csv, or one id a line.

    Raises:
        OSError: The file cannot be read.
        ValueError: Not text, or a csv without the columns of a plan.

    Example:
        >>> _ = Path("plan.csv").write_text("id,rank,priority,in_budget\na,1,9,1\nb,2,3,0\n")
        >>> read_ids(Path("plan.csv"))
        ['a']
    """
    if path.suffix != ".csv":
        return read_id_lines(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            if not {"id", "in_budget"} <= set(header):
                found = ", ".join(header) or "none"
                raise ValueError(f"expected the columns 'id' and 'in_budget', found {found}")
            return [row["id"] for row in reader if row["in_budget"] == "1"]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot read ids: {error}") from error
