# SPDX-License-Identifier: Apache-2.0
"""Which features may be judged by the cosine, as plans, probes and adapters judge all of them."""

from __future__ import annotations

import numpy as np

from fclearn.features import FeatureStore, Fingerprint
from fclearn.features.norms import is_unit, row_norms

_BLOCK_ROWS = 1 << 16


def check_fingerprint(fingerprint: Fingerprint, name: str) -> None:
    """Refuse features that say of themselves that the cosine ranks them otherwise than they are.

    Args:
        fingerprint: Of the features.
        name: What to call them in messages.

    Raises:
        ValueError: Such features.
    """
    # Rows of unit length are ranked alike by all three metrics.
    if fingerprint.metric != "cosine" and fingerprint.norm != "l2":
        raise ValueError(
            f"{name}: expected features compared by the cosine, or of unit length; the "
            f"fingerprint says metric {fingerprint.metric!r}, norm {fingerprint.norm!r}"
        )


def check_store(store: FeatureStore) -> None:
    """The same of a store; what it says of the length of its rows must be so.

    Reads the features only where lengths matter: not of stores compared by the cosine.

    Raises:
        ValueError: Such a store.
    """
    check_fingerprint(store.fingerprint, str(store.path))
    if store.fingerprint.metric == "cosine":
        return
    for begin in range(0, len(store), _BLOCK_ROWS):
        norms = row_norms(store.features[begin : begin + _BLOCK_ROWS])
        # What is not finite is for others to name.
        bad = np.flatnonzero(np.isfinite(norms) & ~is_unit(norms))
        if len(bad):
            raise ValueError(
                f"{store.path}: expected features compared by the cosine, or of unit length; the "
                f"fingerprint says metric {store.fingerprint.metric!r}, norm 'l2', but row "
                f"{begin + bad[0]} has length {norms[bad[0]]:.4g}"
            )
