# SPDX-License-Identifier: Apache-2.0
"""Go or no-go before anyone trains an encoder: what pairs of old and new features can tell."""

from __future__ import annotations

from fclearn.probe.items import Judgements, ProbeQueries
from fclearn.probe.run import ADAPTERS, probe
from fclearn.probe.ways import (
    BY_CLASSES,
    BY_ITEMS,
    HALFWAY,
    NEW,
    NEW_TO_OLD,
    OLD,
    OLD_TO_NEW,
    ORACLE,
    SPLITS,
    JudgementCounts,
    ProbeResult,
    Way,
)

__all__ = [
    "ADAPTERS",
    "BY_CLASSES",
    "BY_ITEMS",
    "HALFWAY",
    "NEW",
    "NEW_TO_OLD",
    "OLD",
    "OLD_TO_NEW",
    "ORACLE",
    "SPLITS",
    "JudgementCounts",
    "Judgements",
    "ProbeQueries",
    "ProbeResult",
    "Way",
    "probe",
]
