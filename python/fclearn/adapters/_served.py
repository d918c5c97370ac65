# SPDX-License-Identifier: Apache-2.0
"""What an adapter may be put before: an index whose rows have unit length, as its outputs do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fclearn._faiss_index import IndexParts
from fclearn.features.norms import is_unit, row_norms

if TYPE_CHECKING:
    import faiss

# Rows that are looked at; of them, so many may be of another length.
_SAMPLES = 32
_MOST_OTHERS = 0.1
# Codes that hold lengths to this tell unit rows from others.
_MOST_ERROR = 0.05
# Coarser ones do not: rows that come back as near to 1 as the first are good, the median tells the
# others, and only what unit rows cannot have. (RaBitQ gives them back at sqrt(pi / 2) = 1.2533.)
_COARSE_TOLERANCE = 0.02
_COARSE_MEDIANS = 0.5, 1.3


def check_lengths(index: faiss.Index, metric: str) -> str:
    """Refuse an index that ranks queries of unit length in another way than their cosines.

    Args:
        index: Of the adapter's target space.
        metric: Of the adapter's target; ``"ip"``: the index's inner products are meant, whose
            ranks do not depend on the length of a query.

    Returns:
        What could not be checked or told, or ``""``.

    Raises:
        ValueError: A metric that is neither inner products nor L2; rows that are not unit length,
            or not finite.
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
    kind = type(parts.base).__name__
    # Signs, which LSH keeps, know no length.
    is_known = not isinstance(parts.base, faiss.IndexLSH)
    is_known = is_known and all(map(_keeps_lengths, parts.transforms))
    sample = parts.sample(_SAMPLES) if is_known else None
    if sample is None:
        return f"whether the rows of {kind} have unit length was not checked"
    lengths = row_norms(sample[1])
    error = _length_error(parts)
    if error is None:
        others = np.abs(lengths - 1) > _COARSE_TOLERANCE
    else:  # rows of zeros are what stores take for unit ones, too
        others = ~is_unit(lengths, error) & (lengths > error)
    if others.mean() <= _MOST_OTHERS:
        return ""
    measured = f"lengths {lengths.min():.4g} to {lengths.max():.4g}"
    if error is None and _COARSE_MEDIANS[0] < np.median(lengths) < _COARSE_MEDIANS[1]:
        return (
            f"the rows of {kind} come back with {measured}: its codes are too coarse to tell "
            "whether they had unit length"
        )
    raise ValueError(
        f"index: expected rows of unit length, as an adapter's output is, got {measured} under "
        f"{compares}: an index of the rows brought to unit length takes it"
    )


def _length_error(parts: IndexParts) -> float | None:
    """How far off the lengths of decoded rows may be, beside rounding; None: too far to tell."""
    import faiss  # noqa: PLC0415

    quantizer, kinds = getattr(parts.codec, "sq", None), faiss.ScalarQuantizer
    if quantizer is not None and quantizer.qtype in (kinds.QT_8bit, kinds.QT_8bit_uniform):
        # Trained: the least numbers, then ranges, of each dim or of all. What lies outside of a
        # range is cut, and off by more: few rows, where those trained on were like the others.
        trained = faiss.vector_to_array(quantizer.trained)
        steps = np.broadcast_to(trained[len(trained) // 2 :] / 255, parts.codec.d)
        error = float(np.linalg.norm(steps)) / 2
        return error if error <= _MOST_ERROR else None
    return 0.0 if parts.is_whole else None


def _keeps_lengths(transform: Any) -> bool:
    """Whether rows are as long behind a transform of an index as before it: a rotation."""
    is_rotation = getattr(transform, "is_orthonormal", False) and not transform.have_bias
    return bool(is_rotation) and transform.d_in <= transform.d_out
