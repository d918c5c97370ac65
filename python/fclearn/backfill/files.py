# SPDX-License-Identifier: Apache-2.0
"""The list of rows to embed anew, and the list of those that are done."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fclearn._files import replacing
from fclearn.backfill.orders import BackfillOrder
from fclearn.features.ids import read_id_lines
from fclearn.wording import some

COLUMNS = ("id", "rank", "priority", "in_budget")


def write_plan(
    path: str | os.PathLike[str],
    order: BackfillOrder,
    ids: Sequence[str],
    *,
    budget: float,
    done: Collection[str] = (),
) -> tuple[int, int]:
    """Write ``plan.csv``, whole or not at all: what is left to embed anew, the most urgent first.

    Ranks count from 1 over the whole gallery, so that a plan written again with more rows done is
    the same plan without them.

    Args:
        path: File to write: columns ``id``, ``rank``, ``priority`` and ``in_budget`` (1 or 0).
        order: Of all rows.
        ids: Of all rows, in the gallery's order.
        budget: Share of the gallery whose first rows are in the budget, in (0, 1].
        done: Ids to leave out.

    Returns:
        Rows written, and how many of them are in the budget.

    Raises:
        OSError: The folder cannot be made or written.
        ValueError: A budget out of range, ids of another number than rows.

    Example:
        >>> from fclearn.backfill import backfill_order
        >>> order = backfill_order("traffic", np.eye(3), traffic=[5, 0, 9])
        >>> write_plan("plan.csv", order, ["a", "b", "c"], budget=0.67, done={"c"})
        (2, 1)
        >>> print(Path("plan.csv").read_text())
        id,rank,priority,in_budget
        a,2,5,1
        b,3,0,0
        <BLANKLINE>
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget: expected a share of the gallery in (0, 1], got {budget}")
    if len(ids) != len(order.rows):
        raise ValueError(f"ids: expected one for each of {len(order.rows)} rows, got {len(ids)}")
    affordable, left_out = round(budget * len(ids)), set(done)
    written = within = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for place, row in enumerate(order.rows.tolist(), start=1):
            if ids[row] in left_out:
                continue
            is_within = place <= affordable
            writer.writerow([ids[row], place, f"{order.priority[row]:.6g}", int(is_within)])
            written, within = written + 1, within + is_within
    return written, within


def read_done(path: str | os.PathLike[str], ids: Collection[str]) -> set[str]:
    """Read the ids that are embedded anew already, one a line; blank lines and repeats are fine.

    Args:
        path: Text, UTF-8.
        ids: All ids there are.

    Raises:
        OSError: The file cannot be read.
        ValueError: Ids that the gallery lacks, or a file that is not text; the first are named.
    """
    known, found = set(ids), read_id_lines(path)
    strange = [name for name in found if name not in known]
    if strange:
        raise ValueError(
            f"{path}: {len(strange)} of {len(found)} ids are not in the gallery: {some(strange)}"
        )
    return set(found)


def read_labels(path: str | os.PathLike[str], ids: Sequence[str]) -> NDArray[np.str_]:
    r"""Read the label of each id from a csv with the columns ``id`` and ``label``.

    Args:
        path: The file; it may hold more ids than are asked for. An empty label says that an id has
            no class; so does a negative one where all labels of the file are integers.
        ids: Whose labels.

    Returns:
        Labels as text, empty where there is no class, in the order of ``ids``, shape
        ``(len(ids),)``.

    Raises:
        OSError: The file cannot be read.
        ValueError: Another format, missing columns, ids that repeat or lack; the first are named.
            No id with a class.

    Example:
        >>> Path("labels.csv").write_text("id,label\na,3\nb,-1\nc,\n")
        21
        >>> read_labels("labels.csv", ["b", "a", "c"]).tolist()
        ['', '3', '']
    """
    labels: dict[str, str] = {}
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            if not {"id", "label"} <= set(header):
                raise ValueError(
                    f"expected the columns 'id' and 'label', found {', '.join(header) or 'none'}"
                )
            for row in reader:
                if not row["id"] or row["label"] is None:
                    raise ValueError(f"expected an id and a label in line {reader.line_num}")
                if row["id"] in labels:
                    raise ValueError(f"expected each id once, found {row['id']!r} again")
                labels[row["id"]] = row["label"]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot read labels: {error}") from error
    missing = [name for name in ids if name not in labels]
    if missing:
        raise ValueError(f"{path}: no label for {len(missing)} of {len(ids)} ids: {some(missing)}")
    # By all labels of the file, or one file would mean two things to the ids of two stores.
    has_numbers = all(_is_integer(text) for text in labels.values() if text)
    found = np.array([labels[name] for name in ids], dtype=np.str_)
    if has_numbers:
        # The others stay text: a number may be longer than 64 bits.
        found[[bool(text) and int(text) < 0 for text in found.tolist()]] = ""
    if len(ids) and not (found != "").any():
        raise ValueError(f"{path}: expected labels with a class, found none for the {len(ids)} ids")
    return found


def _is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True
