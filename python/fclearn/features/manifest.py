# SPDX-License-Identifier: Apache-2.0
"""The table beside the features: one row per vector, in the same order."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fclearn._files import reason
from fclearn.features.cells import check_cells, class_names, label_lists, text_labels
from fclearn.wording import some

Column = list[Any] | NDArray[Any]
Manifest = dict[str, Column]

FILES = {"csv": "manifest.csv", "parquet": "manifest.parquet"}
_INTEGERS = ("label", "group")


def check_manifest(
    columns: Mapping[str, Sequence[Any] | NDArray[Any]],
    num_rows: int,
    name: str,
    file_format: str | None = None,
) -> Manifest:
    """Columns of the right length and type: ids as text, labels and groups as int64.

    Args:
        columns: ``id`` and any others; each with a value per row.
        num_rows: Rows of the features.
        name: What to call the manifest in messages.
        file_format: What it is to be written as; None: it was read.

    Returns:
        ``id`` a list of str; ``label`` and ``group`` int64 of shape ``(N,)``; ``class_name`` a list
        of str, empty for None, NaN and NA; ``labels`` as text for a csv, as lists of str for
        parquet; others as they came.

    Raises:
        ValueError: No ids, ids that repeat or are empty, columns of another length, labels or
            groups that are not integers; with a format, cells that it cannot hold.
    """
    if "id" not in columns:
        raise ValueError(f"{name}: expected a column 'id', found {some(list(columns)) or 'none'}")
    manifest: Manifest = {}
    for key, values in columns.items():
        if not isinstance(key, str) or not key:
            raise ValueError(f"{name}: expected columns with names, found {key!r}")
        if len(values) != num_rows:
            raise ValueError(
                f"{name}: expected {num_rows} rows, one per row of the features, found "
                f"{len(values)} in column {key!r}"
            )
        manifest[key] = _column(values, key, name, file_format)
    manifest["id"] = ids = [str(value) for value in manifest["id"]]
    first: dict[str, int] = {}
    for row, value in enumerate(ids):
        if not value:
            raise ValueError(f"{name}: expected an id in every row, found none in row {row}")
        if first.setdefault(value, row) != row:
            raise ValueError(
                f"{name}: expected distinct ids, found {value!r} in rows {first[value]} and {row}"
            )
    return manifest


def write_manifest(folder: Path, manifest: Manifest, file_format: str) -> None:
    """Write a manifest that `check_manifest` returned, in place of any other.

    Args:
        folder: Where ``manifest.csv`` or ``manifest.parquet`` goes.
        manifest: Columns of equal length.
        file_format: ``"csv"`` or ``"parquet"``.

    Raises:
        ValueError: Another format, or a column that parquet cannot hold, such as text and numbers.
    """
    check_format(file_format)
    for other in FILES.values():
        (folder / other).unlink(missing_ok=True)
    path = folder / FILES[file_format]
    if file_format == "parquet":
        import pyarrow as pa  # noqa: PLC0415  (slow to import, and csv needs none of it)
        import pyarrow.parquet as pq  # noqa: PLC0415

        arrays = {}
        for key, column in manifest.items():
            try:
                arrays[key] = pa.array(column)
            # pyarrow's own errors derive from these.
            except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
                raise ValueError(
                    f"manifest: expected what parquet can hold in column {key!r}: {reason(error)}"
                ) from error
        pq.write_table(pa.table(arrays), path)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        # The default line end, CR LF, is also what makes the writer quote either in an id.
        writer = csv.writer(file)
        writer.writerow(manifest)
        writer.writerows(zip(*manifest.values(), strict=True))


def check_format(file_format: str) -> None:
    """Refuse a manifest format other than ``"csv"`` and ``"parquet"``.

    Args:
        file_format: The format asked for.

    Raises:
        ValueError: Any other.
    """
    if file_format not in FILES:
        raise ValueError(f"manifest_format: expected 'csv' or 'parquet', got {file_format!r}")


def read_manifest(folder: Path, num_rows: int) -> Manifest:
    """Read the manifest of a folder.

    Columns other than ``label`` and ``group`` are text in a csv; a parquet file keeps their types.

    Args:
        folder: Holds ``manifest.csv`` or ``manifest.parquet``.
        num_rows: Rows that the features have.

    Raises:
        ValueError: No manifest or two, an unreadable one, or what `check_manifest` refuses.
    """
    found = [folder / file for file in FILES.values() if (folder / file).is_file()]
    if len(found) != 1:
        raise ValueError(
            f"{folder}: expected either manifest.csv or manifest.parquet, found "
            f"{'both' if found else 'neither'}"
        )
    path = found[0]
    try:
        columns = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    except Exception as error:  # a hostile file can fail in many ways inside pyarrow
        text = reason(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: cannot read the manifest: {text}") from error
    return check_manifest(columns, num_rows, str(path))


def _read_csv(path: Path) -> Manifest:
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets add a byte order mark
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise ValueError(f"expected distinct columns, found {', '.join(header)}")
        rows = []
        for row in reader:
            if len(row) != len(header):
                raise ValueError(
                    f"expected {len(header)} cells in line {reader.line_num}, found {len(row)}"
                )
            rows.append(row)
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    return {key: list(column) for key, column in zip(header, columns, strict=True)}


def _read_parquet(path: Path) -> Manifest:
    import pyarrow as pa  # noqa: PLC0415  (slow to import, and csv needs none of it)
    import pyarrow.parquet as pq  # noqa: PLC0415

    # memory_map would keep the file open; partitioning would read folder names as columns.
    table = pq.read_table(path, partitioning=None)
    columns: Manifest = {}
    for key, column in zip(table.column_names, table.columns, strict=True):
        numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        plain = numeric and column.null_count == 0
        columns[key] = column.to_numpy() if plain else column.to_pylist()
    return columns


def _column(
    values: Sequence[Any] | NDArray[Any], key: str, name: str, file_format: str | None
) -> Column:
    if key in _INTEGERS:
        return _integers(values, key, name)
    if file_format is not None:
        check_cells(values, key, name, file_format)
    if key == "labels" and file_format is not None:
        return text_labels(values, name) if file_format == "csv" else label_lists(values)
    return class_names(values) if key == "class_name" else _plain(values)


def _plain(values: Sequence[Any] | NDArray[Any]) -> Column:
    # Rows of a matrix are lists of numbers to parquet, which takes no matrix.
    return values if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)


def _integers(values: Sequence[Any] | NDArray[Any], key: str, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype == np.uint64 and len(array) and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: expected 64-bit integers in column {key!r}: {array.max()}")
    if array.dtype.kind not in "iu" and len(array):
        try:
            # Text, from a csv. Numbers with a fraction must not be cut off.
            array = np.array([_integer(value) for value in values], dtype=np.int64)
        except (ValueError, OverflowError) as error:
            hint = " (texts go into 'class_name')" if key == "label" else ""
            raise ValueError(
                f"{name}: expected integers in column {key!r}{hint}: {error}"
            ) from error
    return array.astype(np.int64)


def _integer(value: object) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise ValueError(f"found {value!r}")
