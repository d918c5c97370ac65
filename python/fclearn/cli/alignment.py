# SPDX-License-Identifier: Apache-2.0
"""Rows of a feature store: in the order of other ids, or some of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fclearn.evaluation import Qrels
from fclearn.features import FeatureStore, as_features
from fclearn.features.access import first_bad_and_zeros
from fclearn.features.classes import has_class
from fclearn.features.npy import Features
from fclearn.wording import some


def rows_of_ids(store: FeatureStore, ids: Sequence[str], whose: str) -> NDArray[np.int64]:
    """The row of each id.

    Args:
        store: May hold more rows than are asked for.
        ids: Ids to find.
        whose: What has these ids, for messages.

    Returns:
        Row numbers, shape ``(len(ids),)``, int64.

    Raises:
        ValueError: Ids without a row; the first ones are named.
    """
    row_of = {name: row for row, name in enumerate(store.ids)}
    missing = [name for name in ids if name not in row_of]
    if missing:
        held = f"the store has {some(store.ids)}" if store.ids else "the store has no rows"
        raise ValueError(
            f"{store.path}: no features for {len(missing)} of the {len(ids)} ids of {whose}: "
            f"{some(missing)}; {held}"
        )
    return np.array([row_of[name] for name in ids], dtype=np.int64)


def check_directions(
    features: FeatureStore | Features,
    ids: Sequence[str],
    path: Path,
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Refuse rows without a direction, naming the first as its store knows it.

    Args:
        features: A store, or rows of one, shape ``(N, D)``.
        ids: Of all rows of the store.
        path: Of the store.
        rows: Where in the store the rows stand, shape ``(N,)``; None: they are all of its rows, in
            their order.

    Raises:
        ValueError: A row of norm zero; a NaN or infinity.
    """
    zeros = check_finite(features, ids, path, rows)
    if len(zeros):
        row = int(zeros[0] if rows is None else rows[zeros[0]])
        more = f" (and {len(zeros) - 1} more)" if len(zeros) > 1 else ""
        raise ValueError(
            f"{path}: row {row} has norm zero, so it has no direction: id {ids[row]!r}{more}"
        )


def check_finite(
    features: FeatureStore | Features,
    ids: Sequence[str] | None,
    path: Path,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Refuse rows that are not finite, naming the first as its store knows it.

    Args:
        features: As `check_directions`, also the following.
        ids: Of all rows of the store; None: a file, whose rows have none.
        path: Of the store.
        rows: Where in the store the rows stand.

    Returns:
        Which of the rows are zeros, ascending, int64.

    Raises:
        ValueError: A NaN or infinity.
    """
    bad, zeros = first_bad_and_zeros(as_features(features, str(path)))
    if bad is not None:
        row = bad if rows is None else int(rows[bad])
        named = "" if ids is None else f": id {ids[row]!r}"
        raise ValueError(
            f"{path}: expected finite numbers, got a NaN or infinity in row {row}{named}"
        )
    return zeros


def chosen_rows(
    ids: Sequence[str], limit: int, seed: int, qrels: Qrels | None = None
) -> NDArray[np.int64]:
    """Rows to measure on: at random, but with judgements those that are judged come first.

    Args:
        ids: Of all rows.
        limit: Most rows.
        seed: Of the choice.
        qrels: Judgements, if any.

    Returns:
        Row numbers, ascending, int64.

    Example:
        >>> judged = Qrels({"q": {"c": 1}})
        >>> int(chosen_rows(["a", "b", "c"], 1, 0, judged)[0])
        2
    """
    size = len(ids)
    if size <= limit:
        return np.arange(size)
    order = np.random.default_rng(seed).permutation(size)
    if qrels is not None:
        judged = {name for items in qrels.grades.values() for name in items}
        is_judged = np.array([name in judged for name in ids])
        order = order[np.argsort(~is_judged[order], kind="stable")]
    return np.sort(order[:limit])


def check_labels(
    store: FeatureStore,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    whose: str,
) -> None:
    """Refuse features whose classes are not those of the images.

    Class names are compared where the store has them, else label numbers, else nothing; rows
    without a class have nothing to compare.

    Args:
        store: The features.
        rows: Row of each image.
        labels: Class of each image, shape ``(N,)``, int64.
        class_names: Name of each label; may be empty.
        whose: What has these labels, for messages.

    Raises:
        ValueError: Labels differ; the first ones are named.
    """
    theirs: list[object]
    mine: list[object]
    if "class_name" in store.manifest and len(class_names):
        names = store.manifest["class_name"]
        theirs = [names[row] for row in rows]
        mine = [class_names[label] for label in labels]
        known = [name != "" for name in theirs]
    elif store.labels is not None:
        theirs, mine = store.labels[rows].tolist(), labels.tolist()
        known = has_class(store.labels[rows]).tolist()
    else:
        return
    wrong = [at for at, there in enumerate(theirs) if known[at] and there != mine[at]]
    if wrong:
        raise ValueError(
            f"{store.path}: {len(wrong)} of {len(rows)} labels differ from those of {whose}: "
            + some(
                wrong,
                lambda at: f"{store.ids[rows[at]]!r} is {theirs[at]!r} there and {mine[at]!r} here",
            )
        )
