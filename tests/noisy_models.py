# SPDX-License-Identifier: Apache-2.0
"""Features of models that see classes through more or less noise."""

from __future__ import annotations

import numpy as np


def models(noise, num_rows, dim=10, seed=0, classes=8):
    labels = np.random.default_rng(50 + num_rows).integers(0, classes, num_rows)
    centres = np.random.default_rng(99).standard_normal((classes, dim))
    noises = np.random.default_rng(seed).standard_normal((num_rows, dim))
    return (centres[labels] + noise * noises).astype(np.float32), labels
