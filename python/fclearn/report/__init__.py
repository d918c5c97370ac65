# SPDX-License-Identifier: Apache-2.0
"""Reports of upgrades, chains, probes and plans: self-contained pages, pictures and JSON."""

from __future__ import annotations

from fclearn.report.chains import write_chain_report
from fclearn.report.examples import Hit, RetrievalExample, make_examples, pick_examples
from fclearn.report.items import Items, describe_items
from fclearn.report.probes import write_probe_report
from fclearn.report.runs import rebuild, write_comparison
from fclearn.report.writer import rebuild_report, write_report

__all__ = [
    "Hit",
    "Items",
    "RetrievalExample",
    "describe_items",
    "make_examples",
    "pick_examples",
    "rebuild",
    "rebuild_report",
    "write_chain_report",
    "write_comparison",
    "write_probe_report",
    "write_report",
]
