# SPDX-License-Identifier: Apache-2.0
"""Go or no-go before anyone trains an encoder: what pairs of old and new features can tell."""

from __future__ import annotations

from fclearn.probe.held import ProbeQueries
from fclearn.probe.run import ADAPTERS, probe
from fclearn.probe.ways import HALFWAY, NEW, NEW_TO_OLD, OLD, OLD_TO_NEW, ORACLE, ProbeResult, Way

__all__ = [
    "ADAPTERS",
    "HALFWAY",
    "NEW",
    "NEW_TO_OLD",
    "OLD",
    "OLD_TO_NEW",
    "ORACLE",
    "ProbeQueries",
    "ProbeResult",
    "Way",
    "probe",
]
