# SPDX-License-Identifier: Apache-2.0
"""Which gallery rows to embed anew first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fclearn.adapters import ForwardMap
from fclearn.backfill.priorities import ORDERS, OrderInputs
from fclearn.features import FeatureSource, as_features, check_rows
from fclearn.features.classes import class_numbers, has_class
from fclearn.wording import nearest

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BackfillOrder:
    """All rows of a gallery, the most urgent first.

    Attributes:
        name: Of the order.
        rows: Row numbers, a permutation, shape ``(G,)``, int64.
        priority: Of every row, in the gallery's order, shape ``(G,)``, float64.
    """

    name: str
    rows: Ints
    priority: Floats


def backfill_order(
    name: str,
    features: FeatureSource,
    *,
    labels: ArrayLike | None = None,
    traffic: ArrayLike | None = None,
    forward_map: ForwardMap | None = None,
    seed: int = 0,
) -> BackfillOrder:
    """Put the rows of a gallery in the order in which they should be embedded anew.

    Args:
        name: A key of `ORDERS`.
        features: Old features of the gallery, shape ``(G, D)``; files are read block by block,
            except for ``"centrality"``, whose graph needs them in memory.
        labels: Class per row, shape ``(G,)``, integers or strings; rows with a negative one, or
            empty text, have no class: no mean is of them, and the nearest mean stands for theirs.
        traffic: How often each row was asked for or returned, shape ``(G,)``, not negative.
        forward_map: Fitted on pairs of old and new features, with ``uncertainty=True``.
        seed: Of ``"random"``, and of the order among equal priorities.

    Returns:
        The order; equal inputs and seed give equal orders.

    Raises:
        TypeError: Features that are not floating.
        ValueError: An unknown name, an input that the order needs, an empty gallery, NaN,
            infinite or zero rows, labels or traffic of another length, negative or NaN traffic.

    Example:
        >>> import numpy as np
        >>> features = np.eye(3, dtype=np.float32)
        >>> backfill_order("traffic", features, traffic=[5, 0, 9]).rows
        array([2, 0, 1])
        >>> ORDERS["class-mean"].formula
        '1 - cos(x_i, w_{y_i}), w_c the mean of the unit rows of class c'
    """
    if name not in ORDERS:
        raise ValueError(f"order: unknown name {name!r}; {nearest(name, ORDERS)}")
    spec = ORDERS[name]
    size = len(as_features(features))
    if size == 0:
        raise ValueError("features: expected at least one row, got an empty gallery")
    inputs = OrderInputs(
        features,
        seed,
        None if labels is None else _classes(labels, size),
        None if traffic is None else check_traffic(traffic, size),
        forward_map,
    )
    missing = [need for need in spec.needs if getattr(inputs, need) is None]
    if missing:
        raise ValueError(f"order {name!r} needs {' and '.join(missing)}")
    zeros = check_rows(features)
    if len(zeros):
        raise ValueError(f"features: row {zeros[0]} has norm zero, so it has no direction")
    priority = spec.priority(inputs)
    shuffled = np.random.default_rng(seed).permutation(size)
    # Equal priorities in random order: by row they would follow how the gallery was filled.
    rows = shuffled[np.argsort(-priority[shuffled], kind="stable")]
    return BackfillOrder(name, rows, priority)


def check_traffic(traffic: ArrayLike, size: int, name: str = "traffic") -> Floats:
    """Counts of requests as float64 ``(size,)``.

    Raises:
        ValueError: Not one number per row, negative, NaN or infinite ones.
    """
    try:
        counts = np.asarray(traffic).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers: {error}") from error
    if counts.shape != (size,):
        raise ValueError(
            f"{name}: expected one number for each of the {size} rows, got shape "
            f"{list(counts.shape)}"
        )
    bad = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0)))
    if len(bad):
        raise ValueError(
            f"{name}: expected counts >= 0, got {counts[bad[0]]:g} in row {bad[0]}"
            + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
        )
    return counts


def _classes(labels: ArrayLike, size: int) -> Ints:
    given = np.asarray(labels)
    if given.shape != (size,):
        raise ValueError(
            f"labels: expected one for each of the {size} rows, got shape {list(given.shape)}"
        )
    if given.dtype.kind not in "iuU":
        given = given.astype(np.str_)
    if not has_class(given).any():
        raise ValueError("labels: expected rows with a class, got none")
    return class_numbers(given)
