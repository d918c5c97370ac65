# SPDX-License-Identifier: Apache-2.0
"""What an adapter may be put before: an index whose rows have unit length, as its outputs do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fclearn._faiss_index import IndexParts

if TYPE_CHECKING:
    import faiss

# Rows that are looked at; of them, so many may be of another length.
_SAMPLES = 32
_MOST_OTHERS = 0.1
# How far from 1 the length of a unit row may be: float16 ones were rounded. Coarse codes are
# further off: of them the median tells, and only what unit rows cannot have.
_TOLERANCE = 0.02
_CODED_MEDIANS = 0.5, 1.25


def check_lengths(index: faiss.Index, metric: str) -> str:
    """Refuse an index that ranks queries of unit length in another way than their cosines.

    Args:
        index: Of the adapter's target space.
        metric: Of the adapter's target; ``"ip"``: the index's inner products are meant, whose
            ranks do not depend on the length of a query.

    Returns:
        What could not be checked, or ``""``.

    Raises:
        ValueError: A metric that is neither inner products nor L2; rows that are not unit length.
    """
    import faiss  # noqa: PLC0415  (optional, and slow to import)

    kinds = {faiss.METRIC_INNER_PRODUCT: "inner products", faiss.METRIC_L2: "L2"}
    compares = kinds.get(index.metric_type)
    if compares is None:
        raise ValueError(
            f"index: expected inner products or L2, got faiss's metric {index.metric_type}"
        )
    parts = IndexParts.of(index)
    if index.metric_type == faiss.METRIC_INNER_PRODUCT and metric == "ip":
        return ""
    if parts.transforms and isinstance(parts.transforms[0], faiss.NormalizationTransform):
        return ""  # it brings every query to unit length anyway
    note = f"whether the rows of {type(parts.base).__name__} have unit length was not checked"
    # Signs, which LSH keeps, know no length.
    is_known = not isinstance(parts.base, faiss.IndexLSH)
    is_known = is_known and all(map(_keeps_lengths, parts.transforms))
    sample = parts.sample(_SAMPLES) if is_known else None
    if sample is None:
        return note
    lengths = np.linalg.norm(sample[1], axis=1)
    if (np.abs(lengths - 1) > _TOLERANCE).mean() <= _MOST_OTHERS:
        return ""
    if parts.is_whole or not _CODED_MEDIANS[0] < np.median(lengths) < _CODED_MEDIANS[1]:
        raise ValueError(
            f"index: expected rows of unit length, as an adapter's output is, got lengths "
            f"{lengths.min():.3g} to {lengths.max():.3g} under {compares}: an index of the rows "
            "brought to unit length takes it"
        )
    return note


def _keeps_lengths(transform: Any) -> bool:
    """Whether rows are as long behind a transform of an index as before it: a rotation."""
    is_rotation = getattr(transform, "is_orthonormal", False) and not transform.have_bias
    return bool(is_rotation) and transform.d_in <= transform.d_out
