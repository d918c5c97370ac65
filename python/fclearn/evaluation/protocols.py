# SPDX-License-Identifier: Apache-2.0
"""Protocols of known benchmarks, as arguments of `evaluate_retrieval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: What is right and what is junk, of the lists a query has.
_REVISITED = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def revisited_protocol(
    ground_truth: Sequence[Mapping[str, Sequence[int]]], difficulty: str
) -> dict[str, list[list[int]]]:
    """Right and junk rows of Revisited Oxford and Paris.

    Args:
        ground_truth: For each query, gallery rows by ``"easy"``, ``"hard"`` and ``"junk"``: the
            ``gnd`` entries of the data set's file.
        difficulty: ``"easy"``, ``"medium"`` or ``"hard"``. Rows of the other difficulty are junk,
            except in medium, where both are right.

    Returns:
        ``positives`` and ``junk``, for `evaluate_retrieval`. The benchmark's own mAP is
        ``map_trapezoid``; queries without a positive are skipped, as there.

    Raises:
        ValueError: Another difficulty, or a query without one of the lists.

    References:
        Radenović, Iscen, Tolias, Avrithis, Chum, *Revisiting Oxford and Paris*, CVPR 2018.

    Example:
        >>> revisited_protocol([{"easy": [3], "hard": [1, 4], "junk": [0]}], "hard")
        {'positives': [[1, 4]], 'junk': [[0, 3]]}
    """
    if difficulty not in _REVISITED:
        raise ValueError(
            f"difficulty: expected {', '.join(map(repr, _REVISITED))}, got {difficulty!r}"
        )
    for query, lists in enumerate(ground_truth):
        missing = [name for name in ("easy", "hard", "junk") if name not in lists]
        if missing:
            raise ValueError(
                f"ground_truth: expected 'easy', 'hard' and 'junk' for query {query}, missing "
                f"{', '.join(missing)}"
            )
    right, junk = (
        [[row for name in names for row in lists[name]] for lists in ground_truth]
        for names in _REVISITED[difficulty]
    )
    return {"positives": right, "junk": junk}
